"""Attached models get the gradients of the explicit NormBT loss, under a plain loop and under trainers."""

import gc
import logging
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

from host_waits import HostWaits
from normbt import NormBTLoss, attach, bt_loss, capture_hidden, pair_distance, pair_weights
from normbt.errors import ConfigError, DataError, ModelError, StateError
from tiny import HIDDEN, padded, random_rows, tiny_model

MU = 3.0


def batches(count: int, *, pairs: int = 3, layout: str = "halves") -> list[dict]:
    """Batches of ``pairs`` pairs, the rows in halves or interleaved."""
    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(4, 12, (2 * pairs,), generator=generator).tolist()
        rows = random_rows(lengths, seed=seed)
        if layout == "interleaved":
            rows = [row for index in range(pairs) for row in (rows[index], rows[pairs + index])]
        made.append(padded(rows))
    return made


def halves(batch: dict) -> list[dict]:
    half = len(batch["input_ids"]) // 2
    return [{name: value[start : start + half] for name, value in batch.items()} for start in (0, half)]


def scores(model, batch: dict, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of both sides, as a trainer of that layout computes them."""
    if layout == "two-calls":
        first, second = (model(**part).logits.squeeze(-1) for part in halves(batch))
        return first, second
    rewards = model(**batch).logits.squeeze(-1)
    return (rewards[0::2], rewards[1::2]) if layout == "interleaved" else tuple(rewards.chunk(2))


def plain_loss(model, batch: dict, layout: str = "halves") -> torch.Tensor:
    chosen, rejected = scores(model, batch, layout)
    return -logsigmoid(chosen.float() - rejected.float()).mean()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def explicit_loss(model, batch: dict, mu, layout: str = "halves") -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted loss written out, and the distances."""
    if layout == "two-calls":
        hidden, rewards = [], []
        for part in halves(batch):
            with capture_hidden(model) as captured:
                rewards.append(model(**part).logits.squeeze(-1))
            hidden.append(captured.hidden)
    else:
        with capture_hidden(model) as captured:
            rewards = scores(model, batch, layout)
        both = captured.hidden
        hidden = (both[0::2], both[1::2]) if layout == "interleaved" else both.chunk(2)
    distance = pair_distance(*hidden)
    return (pair_weights(distance, mu) * bt_loss(*rewards)).mean(), distance


def assert_same_gradients(found: dict, expected: dict, *, bf16_body: bool = False) -> None:
    """Within 1e-6. A body in bfloat16 rounds what arrives from the head to 8 bits, so that the last bit of float32,
    which is due to the order of the factors, may become one of bfloat16; the head's own gradient is still within 1e-6.
    """
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    for name, gradient in expected.items():
        exact = "score" in name or not bf16_body
        tolerance = 1e-6 if exact else 0.02 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=tolerance, rtol=0.0, msg=lambda text: f"{name}: {text}")  # noqa: B023 - used at once


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16-autocast"])
@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["stored", "reentrant", "recomputed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("layout", ["halves", "interleaved", "two-calls"])
def test_a_plain_loop_gets_the_gradients_of_the_explicit_loss(layout, lora, checkpointing, autocast):
    """Three steps of two micro-batches; before each the models have the same parameters."""

    def build():
        torch.manual_seed(0)
        model = tiny_model("llama").train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            model.enable_input_require_grads()
        return with_lora(model) if lora else model

    attached, explicit = build().train(), build().train()
    normbt = attach(attached, layout=layout, mu_init=MU)
    optimizer = torch.optim.SGD(attached.parameters(), lr=0.01)
    context = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    mu, steps = torch.tensor(MU), 3
    made = batches(2 * steps, layout=layout)
    for step in range(steps):
        distances = []
        for micro in range(2):
            index = 2 * step + micro
            with context:
                plain = plain_loss(attached, made[index], layout)
                weighted, distance = explicit_loss(explicit, made[index], mu, layout)
            (plain / 2).backward()
            (weighted / 2).backward()
            distances.append(distance)
        assert_same_gradients(gradients(attached), gradients(explicit), bf16_body=autocast)
        optimizer.step()
        attached.zero_grad()
        explicit.zero_grad()
        explicit.load_state_dict(attached.state_dict())
        mu = 0.9 * mu + 0.1 * torch.cat(distances).mean()
        assert normbt.metrics()["mu"] == pytest.approx(float(mu), rel=1e-5)


def test_it_follows_normbtloss_from_the_first_step():
    attached, explicit = tiny_model("qwen2").train(), tiny_model("qwen2").train()
    normbt, loss_fn = attach(attached), NormBTLoss()
    optimizer = torch.optim.AdamW(attached.parameters(), lr=1e-3)
    for batch in batches(4):
        plain_loss(attached, batch).backward()
        with capture_hidden(explicit) as captured:
            rewards = scores(explicit, batch, "halves")
        loss_fn(*rewards, *captured.hidden.chunk(2)).backward()
        assert_same_gradients(gradients(attached), gradients(explicit))
        optimizer.step()
        attached.zero_grad()
        explicit.zero_grad()
        explicit.load_state_dict(attached.state_dict())
        assert normbt.metrics()["mu"] == pytest.approx(float(loss_fn.mean), rel=1e-6)


@pytest.mark.parametrize("loss", ["margin", "smoothing", "log-exp"])
def test_every_loss_of_reward_differences_is_weighted(loss):
    def pair_loss(chosen, rejected):
        if loss == "log-exp":
            return torch.log1p(torch.exp(rejected - chosen))
        return bt_loss(chosen, rejected, 0.5, smoothing=0.2 if loss == "smoothing" else 0.0)

    (batch,) = batches(1)
    attached, explicit = tiny_model().train(), tiny_model().train()
    normbt = attach(attached, mu_init=MU)
    pair_loss(*scores(attached, batch, "halves")).mean().backward()
    with capture_hidden(explicit) as captured:
        losses = pair_loss(*scores(explicit, batch, "halves"))
    (pair_weights(pair_distance(*captured.hidden.chunk(2)), MU) * losses).mean().backward()
    assert_same_gradients(gradients(attached), gradients(explicit))
    normbt.check()


@pytest.mark.parametrize("layout", ["halves", "interleaved", "two-calls"])
def test_a_term_besides_the_differences_is_refused_before_the_first_step(layout):
    model = tiny_model().train()
    attach(model, layout=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    chosen, rejected = scores(model, batches(1, layout=layout)[0], layout)
    (bt_loss(chosen, rejected) + 0.01 * (chosen + rejected).square()).mean().backward()
    with pytest.raises(ModelError, match="center_rewards_coefficient"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize(("given", "right"), [("halves", "interleaved"), ("interleaved", "halves")])
def test_the_wrong_layout_is_refused_with_the_right_one_named(given, right):
    model = tiny_model().train()
    attach(model, layout=given)
    plain_loss(model, batches(1, layout=right)[0], right).backward()
    with pytest.raises(ModelError, match=f"pass layout='{right}'"):
        torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_a_loss_that_stops_being_pairwise_is_found_by_metrics():
    model = tiny_model().train()
    normbt = attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for number, batch in enumerate(batches(3)):
        loss = plain_loss(model, batch)
        if number == 2:  # no step with a check of its own
            loss = loss + 0.1 * model(**batch).logits.square().mean()
        loss.backward()
        optimizer.step()
    with pytest.raises(ModelError, match="terms besides"):
        normbt.metrics()


def test_a_loss_over_tokens_is_refused():
    class PerToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.score = nn.Embedding(9, 4), nn.Linear(4, 1)

        def forward(self, input_ids, attention_mask):
            return (self.score(self.body(input_ids)).squeeze(-1),)

    model = PerToken().train()
    normbt = attach(model)
    (rewards,) = model(input_ids=torch.arange(8).view(2, 4), attention_mask=torch.ones(2, 4))
    bt_loss(rewards[0], rewards[1]).mean().backward()
    with pytest.raises(ModelError, match="several tokens"):
        normbt.check()


def test_an_overflow_that_the_scaler_skips_is_not_taken_for_another_loss():
    model = tiny_model().train()
    normbt = attach(model)
    (plain_loss(model, batches(1)[0]) * float("inf")).backward()
    normbt.check()
    assert normbt.state_dict()["updates"] == 0


# --- optimizer steps --------------------------------------------------------------------------------------------------


def test_mu_moves_once_for_all_optimizers_of_a_step():
    model = tiny_model().train()
    normbt = attach(model)
    head = torch.optim.SGD(model.score.parameters(), lr=0.1)
    body = torch.optim.SGD(model.model.parameters(), lr=0.1)
    for batch in batches(2):
        plain_loss(model, batch).backward()
        head.step()
        body.step()
        assert "distance" in normbt.metrics()  # of this step, which the second optimizer has not made again
    assert normbt.state_dict()["updates"] == 2


def test_an_optimizer_of_another_model_moves_nothing_and_is_reported_once(caplog):
    model, other = tiny_model().train(), nn.Linear(2, 1)
    normbt = attach(model)
    stranger = torch.optim.SGD(other.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING):
        for batch in batches(4):
            plain_loss(model, batch).backward()
            stranger.step()
    assert normbt.state_dict()["updates"] == 0
    assert [record.message.count("call step()") for record in caplog.records] == [1]


def test_step_stands_in_for_an_optimizer_that_holds_other_parameters():
    model = tiny_model().train()
    normbt, moved_by_hook = attach(model, mu_init=MU), tiny_model().train()
    reference = attach(moved_by_hook, mu_init=MU)
    optimizer = torch.optim.SGD(moved_by_hook.parameters(), lr=0.0)
    for batch in batches(2):
        plain_loss(model, batch).backward()
        normbt.step()
        normbt.step()  # without new pairs it does nothing
        plain_loss(moved_by_hook, batch).backward()
        optimizer.step()
    assert normbt.state_dict() == reference.state_dict()


def test_a_named_optimizer_alone_moves_mu():
    model = tiny_model().train()
    masters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)
    normbt = attach(model, optimizer=optimizer)
    plain_loss(model, batches(1)[0]).backward()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert normbt.state_dict()["updates"] == 0
    optimizer.step()
    assert normbt.state_dict()["updates"] == 1


def test_the_pairs_of_a_skipped_step_count_in_the_next():
    model = tiny_model().train()
    normbt = attach(model, mu_init=MU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    distances = []
    for batch in batches(2):
        distances.append(explicit_distance(model, batch))
        plain_loss(model, batch).backward()
    optimizer.step()
    assert normbt.metrics()["mu"] == pytest.approx(0.9 * MU + 0.1 * float(torch.cat(distances).mean()))


def explicit_distance(model, batch):
    with torch.no_grad(), capture_hidden(model) as captured:
        model.eval()(**batch)
    model.train()
    return pair_distance(*captured.hidden.chunk(2))


def test_two_backwards_through_one_graph_count_the_pairs_once():
    batch = batches(1)[0]
    model = tiny_model().train()
    normbt = attach(model)
    loss = plain_loss(model, batch)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert len(normbt._last_step) == 1


def test_the_host_waits_for_the_device_in_no_step_but_the_first():
    model = tiny_model().train()
    model.set_attn_implementation("eager")  # with torch's attention Transformers itself looks at the mask
    attach(model, mu_init=MU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    waits = []
    for batch in batches(3):
        with HostWaits() as mode:
            plain_loss(model, batch).backward()
            optimizer.step()
        waits.append(mode.count)
    assert waits == [1, 0, 0]  # once the pad tokens are looked at, for a warning


# --- modes, state, removal --------------------------------------------------------------------------------------------


def test_evaluation_changes_neither_gradients_nor_mu(caplog):
    batch = batches(1)[0]
    model, untouched = tiny_model(), tiny_model()
    normbt = attach(model, mu_init=MU)
    plain_loss(model, batch).backward()
    plain_loss(untouched, batch).backward()
    assert_same_gradients(gradients(model), gradients(untouched))
    assert "evaluation mode" in caplog.text
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    with torch.no_grad():
        model(**batch)
    assert normbt.state_dict()["mu"] == MU
    assert normbt.metrics() == {"mu": MU, "updates": 1.0}


def test_state_travels_and_refuses_other_settings():
    model = tiny_model().train()
    first = attach(model)
    plain_loss(model, batches(1)[0]).backward()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    state = first.state_dict()
    first.remove()
    second = attach(model)
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.remove()
    with pytest.raises(StateError, match=r"beta: 0.9 in the saved state, 0.5 now"):
        attach(model, beta=0.5).load_state_dict(state)
    with pytest.raises(StateError, match="lacks mu"):
        second.load_state_dict({"updates": 1, "settings": {}})


def test_removed_it_leaves_the_model_as_it_was():
    batch = batches(1)[0]
    model, untouched = tiny_model().train(), tiny_model().train()
    with attach(model) as normbt:
        plain_loss(model, batch)
    assert "forward" not in model.score.__dict__
    assert not model._forward_hooks
    plain_loss(model, batch).backward()
    plain_loss(untouched, batch).backward()
    assert_same_gradients(gradients(model), gradients(untouched))
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert normbt.state_dict()["updates"] == 0
    normbt.remove()  # again, without effect


def test_torchs_hooks_keep_no_model_alive():
    model = tiny_model().train()
    attach(model)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_metrics_are_of_the_pairs_of_the_latest_step():
    batch = batches(1, pairs=4)[0]
    model = tiny_model().train()
    normbt = attach(model, mu_init=MU, max_weight=1.0)
    assert normbt.metrics() == {"mu": MU, "updates": 1.0}
    distance = explicit_distance(model, batch)
    plain_loss(model, batch).backward()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    metrics = normbt.metrics()
    weight = pair_weights(distance, MU, max_weight=1.0)
    assert metrics["distance"] == pytest.approx(float(distance.mean()), rel=1e-5)
    assert metrics["weight_q50"] == pytest.approx(float(weight.quantile(0.5)), rel=1e-5)
    assert metrics["clipped_share"] == float((weight >= 1.0).float().mean())


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "pairs"}, "layout must be one of halves, interleaved, two-calls"),
        ({"beta": 1.0}, "beta must be in"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"max_weight": -1.0}, "max_weight must be positive"),
        ({"mu_init": 0.0}, "mu_init must be positive"),
        ({"distance": "l1"}, "distance must be one of"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        attach(nn.Linear(2, 1), **settings)


def test_a_second_handle_on_one_model_is_refused():
    model = nn.Sequential(nn.Linear(2, 1))
    attach(model)
    with pytest.raises(ConfigError, match="attached already"):
        attach(model)


def test_a_copy_of_an_attached_model_is_refused():
    model = tiny_model()
    attach(model)
    with pytest.raises(ConfigError, match="attach after PEFT"):
        with_lora(model)


def test_a_model_without_a_head_is_refused_and_a_named_head_is_taken():
    class Gated(nn.Module):
        """Two Linears of one output, as in mixtures of experts with a shared expert."""

        def __init__(self):
            super().__init__()
            self.gate, self.value = nn.Linear(HIDDEN, 1), nn.Sequential(nn.Dropout(0.0), nn.Linear(HIDDEN, 1))

        def forward(self, rows):
            return self.value(rows * self.gate(rows).sigmoid())

    model = Gated().train()
    with pytest.raises(ModelError, match="2 Linear modules of one output"):
        attach(model)
    with pytest.raises(ModelError, match="no module 'v_head'"):
        attach(model, head="v_head")
    rows = torch.randn(4, HIDDEN)
    with attach(model, head="value", mu_init=MU):
        chosen, rejected = model(rows).squeeze(-1).chunk(2)
        bt_loss(chosen, rejected).mean().backward()
    found = gradients(model)
    model.zero_grad()
    hidden = rows * model.gate(rows).sigmoid()
    weight = pair_weights(pair_distance(*hidden.chunk(2)), MU)
    (weight * bt_loss(*model(rows).squeeze(-1).chunk(2))).mean().backward()
    assert_same_gradients(found, gradients(model))
    with pytest.raises(ModelError, match="wanted one reward"), attach(Gated().train(), head="value.0") as _:
        _._capture.model(rows)


def test_rows_that_make_no_pairs_are_refused():
    three = padded(random_rows([4, 5, 6]))
    model = tiny_model().train()
    with attach(model), pytest.raises(DataError, match="a forward had 3"):
        model(**three)
    with attach(model, layout="two-calls"):
        model(**three)
        with pytest.raises(DataError, match="3 rows and then 2"):
            model(**padded(random_rows([4, 5])))


def test_half_a_pair_is_refused():
    model = tiny_model().train()
    with attach(model, layout="two-calls"):
        loss = model(**padded(random_rows([4, 5]))).logits.sum()
        with pytest.raises(DataError, match="one side without the other"):
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        with pytest.raises(ModelError, match="the weights are not known"):
            loss.backward()


def test_a_training_forward_without_gradient_is_refused():
    model = tiny_model().train()
    attach(model)
    with torch.no_grad(), pytest.raises(ModelError, match="training mode without gradient"):
        model(**batches(1)[0])


def test_data_parallel_is_refused():
    model = tiny_model().train()
    attach(model)
    model._is_replica = True  # what torch sets on the copies that the threads run
    with pytest.raises(ModelError, match="DataParallel"):
        model(**batches(1)[0])


def test_rows_that_the_model_unpads_are_refused():
    class Unpadding(nn.Module):
        """Puts all rows into one, as padding-free models do."""

        def __init__(self):
            super().__init__()
            self.body, self.score = nn.Embedding(64, 4), nn.Linear(4, 1)

        def forward(self, input_ids, attention_mask):
            return self.score(self.body(input_ids[attention_mask.bool()]).unsqueeze(0))

    model = Unpadding().train()
    attach(model)
    with pytest.raises(ModelError, match="packs or unpads"):
        model(**batches(1)[0])
