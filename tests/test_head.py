"""Heads of every common shape: the captured hidden state is the one that produced the logits."""

import logging
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear

from normbt.errors import ModelError
from normbt.head import capture_hidden, find_head, last_token, pool, unwrap
from tiny import DECODERS, ENCODER_DECODERS, ENCODERS, EOS, PAD, VOCABULARY, padded, random_rows, tiny_model

pytestmark = [
    # peft 0.21 reads an attribute that transformers 5.23 renamed; gone once peft asks for the new name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

KINDS = [*DECODERS, *ENCODERS, *ENCODER_DECODERS]
ROTARY = [kind for kind in DECODERS if kind != "gpt2"]
HEADS = dict.fromkeys(DECODERS, "score") | {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "modernbert": "classifier",
    "deberta-v2": "classifier",
    "t5": "classification_head.out_proj",
    "bart": "classification_head.out_proj",
}
ROWS = random_rows([9, 6, 4, 7])

every_kind = pytest.mark.parametrize("kind", KINDS)
every_decoder = pytest.mark.parametrize("kind", DECODERS)

shared_model = cache(tiny_model)
"""Models that tests only read; the context leaves them as they were, and a test below holds it to that."""


def captured_forward(model: nn.Module, **batch: Any) -> tuple[Tensor, Any]:
    with torch.no_grad(), capture_hidden(model) as captured:
        logits = model(**batch).logits
    return logits, captured


def rewards_alone(model: nn.Module, rows: list[list[int]]) -> Tensor:
    """The reward of each row by itself: no padding, no pooling rule to get wrong."""
    with torch.no_grad():
        return torch.cat([model(**padded([row])).logits[:, 0] for row in rows])


def parameter_gradients(model: nn.Module, capture: bool, **batch: Any) -> dict[str, Tensor]:
    model.zero_grad()
    with capture_hidden(model) if capture else nullcontext() as captured:
        logits = model(**batch).logits
        rewards = captured.rewards if capture else logits[:, 0]
        (rewards * torch.arange(1.0, len(rewards) + 1)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- every architecture ---


def test_every_architecture_of_the_promise_is_here():
    assert len(KINDS) == len(HEADS) == 14


@every_kind
def test_the_head_is_found_by_name(kind):
    name, head = find_head(shared_model(kind))
    assert name == HEADS[kind]
    assert head.out_features == 1


@every_kind
def test_captured_hidden_made_the_logits(kind):
    model, batch = shared_model(kind), padded(ROWS)
    with torch.no_grad():
        plain = model(**batch).logits
    logits, captured = captured_forward(model, **batch)
    head = find_head(model)[1]
    assert plain.std() > 1e-3  # rewards that are all alike would prove nothing
    torch.testing.assert_close(logits, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(captured.rewards, logits[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(linear(captured.hidden, head.weight, head.bias)[:, 0], captured.rewards)
    assert captured.hidden.shape == (len(ROWS), head.in_features)
    assert logits.shape == (len(ROWS), 1)


@every_decoder
def test_captured_hidden_is_the_last_layer_at_the_last_real_token(kind):
    model, batch = shared_model(kind), padded(ROWS)
    _, captured = captured_forward(model, **batch)
    with torch.no_grad():
        states = getattr(model, model.base_model_prefix)(**batch).last_hidden_state
    expected = torch.stack([states[i, len(row) - 1] for i, row in enumerate(ROWS)])
    torch.testing.assert_close(captured.hidden, expected)


@every_kind
def test_rewards_do_not_depend_on_the_batch(kind):
    model = shared_model(kind)
    logits, _ = captured_forward(model, **padded(ROWS))
    torch.testing.assert_close(logits[:, 0], rewards_alone(model, ROWS), rtol=1e-5, atol=1e-5)
    for row, expected in zip(ROWS, logits, strict=True):
        alone, captured = captured_forward(model, **padded([row]))
        torch.testing.assert_close(alone[0], expected, rtol=1e-5, atol=1e-5)
        assert captured.rewards.shape == (1,)


@every_kind
def test_gradients_are_the_models_own(kind):
    model, batch = tiny_model(kind).double(), padded(ROWS)
    expected = parameter_gradients(model, capture=False, **batch)
    found = parameter_gradients(model, capture=True, **batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@every_kind
@pytest.mark.parametrize("mode", ["weights", "autocast"])
def test_the_head_runs_in_float32_in_bfloat16(kind, mode):
    model, batch = tiny_model(kind), padded(ROWS)
    if mode == "weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"), capture_hidden(model) as captured:
        logits = model(**batch).logits
    head = find_head(model)[1]
    assert logits.dtype == captured.rewards.dtype == torch.float32
    if mode == "weights":
        assert captured.hidden.dtype == head.weight.dtype == torch.bfloat16
    expected = linear(captured.hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    torch.testing.assert_close(captured.rewards, expected[:, 0], rtol=1e-6, atol=1e-6)
    captured.rewards.sum().backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(
        head.weight.grad.float(), captured.hidden.float().sum(0, keepdim=True), rtol=1e-2, atol=1e-2
    )


# --- padding ---


@pytest.mark.parametrize("kind", ROTARY)
def test_left_and_right_padding_give_the_same_rewards(kind):
    model = shared_model(kind)
    right, _ = captured_forward(model, **padded(ROWS))
    left, captured = captured_forward(model, **padded(ROWS, side="left"))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    assert captured.hidden.shape[0] == len(ROWS)


def test_absolute_positions_need_position_ids_with_left_padding():
    model, batch = shared_model("gpt2"), padded(ROWS, side="left")
    right, _ = captured_forward(model, **padded(ROWS))
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    left, _ = captured_forward(model, **batch, position_ids=positions)
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    # What the docstring of capture_hidden says of a user who leaves them out: the text starts at a later position.
    shifted, _ = captured_forward(model, **batch)
    assert not torch.allclose(shifted, right, atol=1e-2)


@every_decoder
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pad_token_that_is_eos_is_read_by_mask(kind, side, caplog):
    model = tiny_model(kind, pad_token_id=EOS)
    batch = padded(ROWS, side=side, pad=EOS)
    if kind == "gpt2" and side == "left":
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    with caplog.at_level(logging.WARNING, "normbt.head"), torch.no_grad(), capture_hidden(model) as captured:
        model(**batch)
        model(**batch)
    expected = rewards_alone(shared_model(kind), ROWS)  # the same weights, a pad token of its own
    torch.testing.assert_close(captured.rewards, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(model(**batch).logits[:, 0], expected, atol=1e-2)  # plain Transformers
    assert len(caplog.records) == 1
    assert "pad token (2)" in caplog.text
    assert "plain Transformers" in caplog.text


def test_a_pad_token_of_its_own_gives_no_warning(caplog):
    with caplog.at_level(logging.WARNING, "normbt.head"):
        captured_forward(shared_model("llama"), **padded(ROWS))
    assert not caplog.records


def test_padding_without_a_mask_is_refused():
    model, batch = shared_model("llama"), padded(ROWS)
    with pytest.raises(ModelError, match=r"no attention_mask.*Pass attention_mask"):
        captured_forward(model, input_ids=batch["input_ids"])


def test_rows_of_one_length_need_no_mask():
    rows = random_rows([6, 6])
    logits, _ = captured_forward(shared_model("llama"), input_ids=padded(rows)["input_ids"])
    torch.testing.assert_close(logits[:, 0], rewards_alone(shared_model("llama"), rows), rtol=1e-5, atol=1e-5)


def test_a_mask_passed_by_position_counts():
    model, batch = shared_model("llama"), padded(ROWS)
    with torch.no_grad(), capture_hidden(model) as captured:
        model(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(captured.rewards, rewards_alone(model, ROWS), rtol=1e-5, atol=1e-5)


def test_a_mask_that_names_no_tokens_is_refused():
    model, batch = shared_model("llama"), padded(random_rows([5, 5]))
    with pytest.raises(ModelError, match=r"attention_mask must have shape \(rows, tokens\)"):
        captured_forward(model, input_ids=batch["input_ids"], attention_mask=torch.zeros(2, 1, 5, 5))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_the_pooled_token_is_the_last_one_the_mask_keeps(rows):
    mask = torch.tensor(rows, dtype=torch.long)
    expected = [max((i for i, kept in enumerate(row) if kept), default=0) for row in rows]
    assert last_token(mask).tolist() == last_token(mask.bool()).tolist() == expected
    hidden = torch.arange(len(rows) * 7.0).reshape(len(rows), 7, 1)  # two tokens more, put in front by the model
    assert pool(hidden, mask)[:, 0].tolist() == [i * 7 + 2 + position for i, position in enumerate(expected)]


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_encoder_decoders_want_equal_numbers_of_eos(kind):
    rows = random_rows([7, 7])
    rows[0][3] = EOS
    with pytest.raises(ValueError, match="same number of <eos> tokens"):
        captured_forward(shared_model(kind), **padded(rows))
    rows[1][2] = EOS
    logits, _ = captured_forward(shared_model(kind), **padded(rows))
    torch.testing.assert_close(logits[:, 0], rewards_alone(shared_model(kind), rows), rtol=1e-5, atol=1e-5)


# --- adapters ---


def lora(**settings: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**({"r": 4, "init_lora_weights": False, "task_type": "SEQ_CLS"} | settings))


def adapted(kind: str, config: Any) -> Any:
    from peft import get_peft_model

    torch.manual_seed(1)
    return get_peft_model(tiny_model(kind), config).eval()


def prompt_tuning() -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)


ADAPTERS = {
    "lora": ("llama", lambda: lora(target_modules=["q_proj"]), "score.modules_to_save.default"),
    "lora, all linear": ("llama", lambda: lora(target_modules="all-linear"), "score.modules_to_save.default"),
    "lora on the head": ("llama", lambda: lora(target_modules=["q_proj", "score"], task_type=None), "score"),
    "lora on bert": ("bert", lambda: lora(target_modules=["query"]), "classifier.modules_to_save.default"),
    "lora on roberta": (
        "roberta",
        lambda: lora(target_modules=["query"]),
        "classifier.modules_to_save.default.out_proj",
    ),
    "prompt tuning": ("llama", prompt_tuning, "score.modules_to_save.default"),
}
every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)


@every_adapter
def test_adapters_are_seen_through(adapter):
    kind, config, name = ADAPTERS[adapter]
    model = adapted(kind, config())
    assert find_head(model)[0] == name
    logits, captured = captured_forward(model, **padded(ROWS))
    torch.testing.assert_close(find_head(model)[1](captured.hidden)[:, 0], captured.rewards)
    torch.testing.assert_close(logits[:, 0], captured.rewards, rtol=0, atol=0)
    torch.testing.assert_close(logits[:, 0], rewards_alone(model, ROWS), rtol=1e-5, atol=1e-5)


@every_adapter
def test_gradients_of_adapters_are_their_own(adapter):
    kind, config, _ = ADAPTERS[adapter]
    model = adapted(kind, config()).double()
    # Prompt tuning hides the ids from Transformers, which then reads the last position: compare without padding.
    batch = padded(random_rows([6, 6]))
    expected = parameter_gradients(model, capture=False, **batch)
    found = parameter_gradients(model, capture=True, **batch)
    assert any("score" in name or "classifier" in name for name in found)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("adapter", ["lora", "lora on the head"])
def test_adapters_in_bfloat16_have_float32_rewards(adapter):
    kind, config, _ = ADAPTERS[adapter]
    model = adapted(kind, config()).bfloat16()
    logits, captured = captured_forward(model, **padded(ROWS))
    assert logits.dtype == torch.float32
    head = find_head(model.float())[1]
    torch.testing.assert_close(head(captured.hidden.float())[:, 0], captured.rewards)


def test_the_active_adapter_is_the_one_that_counts():
    model = adapted("llama", lora(target_modules=["q_proj"]))
    model.add_adapter("default2", lora(target_modules=["q_proj"]))  # begins with the other one's name
    nn.init.constant_(model.get_base_model().score.modules_to_save["default2"].weight, 0.7)
    for active in ("default2", "default"):
        model.set_adapter(active)
        assert find_head(model)[0] == f"score.modules_to_save.{active}"
        logits, _ = captured_forward(model, **padded(ROWS))
        torch.testing.assert_close(logits[:, 0], rewards_alone(model, ROWS), rtol=1e-5, atol=1e-5)


def test_adapters_disabled_inside_the_context_are_an_error():
    model = adapted("llama", lora(target_modules=["q_proj"]))
    with (
        capture_hidden(model),
        model.disable_adapter(),
        pytest.raises(ModelError, match=r"did not run its head score\."),
    ):
        model(**padded(ROWS))


# --- the context ---


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything a hook or a replaced attribute would change."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


@every_kind
@pytest.mark.parametrize("failing", [False, True], ids=["clean", "after an exception"])
def test_the_model_is_restored(kind, failing):
    model, batch = shared_model(kind), padded(ROWS)
    before = state_of(model)
    with torch.no_grad():
        logits = model(**batch).logits
    if failing:
        unknown = torch.full_like(batch["input_ids"], VOCABULARY)
        unknown[:, -1] = EOS
        with pytest.raises(IndexError), capture_hidden(model):
            model(**(batch | {"input_ids": unknown}))
    else:
        captured_forward(model, **batch)
    assert state_of(model) == before
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_nested_captures_agree(kind, dtype):
    model, batch = tiny_model(kind).to(dtype), padded(ROWS)
    before = state_of(model)
    expected, _ = captured_forward(model, **batch)
    with torch.no_grad(), capture_hidden(model) as outer:
        with capture_hidden(model) as inner:
            logits = model(**batch).logits
            torch.testing.assert_close(inner.rewards, outer.rewards)
            torch.testing.assert_close(inner.hidden.float(), outer.hidden.float())
        torch.testing.assert_close(logits, expected)
        # The outer one goes on after the inner one has left.
        single = model(**padded(ROWS[:1])).logits
        torch.testing.assert_close(single[:, 0], outer.rewards, rtol=0, atol=0)
        assert outer.hidden.shape[0] == 1
    assert state_of(model) == before


def test_a_forward_replaced_by_others_is_called_and_given_back():
    model = tiny_model("llama")
    own = model.score.forward
    model.score.forward = replaced = lambda hidden: own(hidden) + 1.0  # as Accelerate's device hooks do
    logits, _ = captured_forward(model, **padded(ROWS))
    torch.testing.assert_close(logits[:, 0], rewards_alone(shared_model("llama"), ROWS) + 1.0, rtol=1e-5, atol=1e-5)
    assert model.score.forward is replaced


def test_each_forward_replaces_the_record():
    model = shared_model("llama")
    expected = rewards_alone(model, ROWS)
    with torch.no_grad(), capture_hidden(model) as captured:
        for some in (slice(0, 4), slice(0, 2), slice(2, 3)):
            model(**padded(ROWS[some]))
            torch.testing.assert_close(captured.rewards, expected[some], rtol=1e-5, atol=1e-5)
            assert captured.hidden.shape[0] == len(ROWS[some])


def test_a_record_without_a_forward_says_so():
    with (
        capture_hidden(shared_model("llama")) as captured,
        pytest.raises(ModelError, match="the scoring head has not run"),
    ):
        _ = captured.hidden


def test_a_head_run_from_outside_is_refused():
    """Without the model's forward there is no mask to pool by, and under DDP the gradients would be wrong."""
    model = shared_model("llama")
    with capture_hidden(model), pytest.raises(ModelError, match="head score ran outside a forward of the Llama"):
        model.score(torch.zeros(1, 3, 16))


def test_gradients_flow_through_hidden_and_rewards():
    model = tiny_model("llama")
    with capture_hidden(model) as captured:
        model(**padded(ROWS))
    assert captured.hidden.requires_grad
    (by_hidden,) = torch.autograd.grad(captured.rewards.sum(), captured.hidden)
    torch.testing.assert_close(by_hidden, model.score.weight.detach().expand(len(ROWS), -1))


# --- other models, and models that cannot be served ---


class Scorer(nn.Module):
    """A model from outside Transformers, with hooks for what goes wrong."""

    def __init__(self, after_head=lambda logits: logits, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 8)
        self.reward = nn.Linear(8, 1, bias=bias)
        self.after_head = after_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        logits = self.reward(self.embed(input_ids))
        return {"logits": self.after_head(logits[torch.arange(len(logits)), attention_mask.sum(1) - 1])}


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_from_outside_transformers(bias):
    model, batch = Scorer(bias=bias), padded(ROWS)
    expected = model(**batch)["logits"]
    with capture_hidden(model) as captured:
        model(**batch)
    torch.testing.assert_close(captured.rewards, expected[:, 0])
    torch.testing.assert_close(captured.hidden, model.embed(torch.full((len(ROWS),), EOS)))


def test_a_head_registered_under_two_names_is_one_head():
    model = Scorer()
    model.alias = model.reward
    assert find_head(model)[0] == "reward"


def test_a_head_tied_to_other_weights():
    model = Scorer()
    model.reward.weight = nn.Parameter(model.embed.weight.detach()[7:8])
    model.embed.tied = model.reward.weight
    with capture_hidden(model) as captured:
        model(**padded(ROWS))
    captured.rewards.sum().backward()
    torch.testing.assert_close(model.embed.tied.grad, captured.hidden.detach().sum(0, keepdim=True))


@pytest.mark.parametrize(
    "after_head",
    [
        lambda logits: 30 * torch.tanh(logits / 30),
        lambda logits: -logits,
        lambda logits: logits * 1.001,
        lambda logits: logits + 0.001,
        lambda logits: logits.roll(1, 0),
        torch.sigmoid,
    ],
    ids=["soft cap", "sign", "scale", "shift", "order", "sigmoid"],
)
def test_logits_changed_after_the_head_are_refused(after_head):
    model, batch = Scorer(after_head), padded(random_rows([9, 6, 4, 7], eos=False))  # rows end in different words
    with (
        capture_hidden(model),
        pytest.raises(ModelError, match="logits of Scorer are not the output of its head reward"),
    ):
        model(**batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_that_are_only_rounded_are_served(dtype):
    with capture_hidden(model := Scorer(lambda logits: logits.to(dtype))) as captured:
        model(**padded(ROWS))
    assert captured.rewards.dtype == torch.float32


def test_a_model_with_two_labels_is_refused():
    with pytest.raises(ModelError, match=r"no scoring head.*score \(2 outputs\).*num_labels=1"):
        find_head(tiny_model("llama", num_labels=2))


def test_a_language_model_is_refused():
    from transformers import LlamaForCausalLM

    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no scoring head.*lm_head \(64 outputs\)"):
        find_head(LlamaForCausalLM(shared_model("llama").config))


def test_a_backbone_alone_is_refused_with_a_short_message():
    with pytest.raises(ModelError, match=r"14, the last ones .*layers\.1\.mlp\.down_proj \(16 outputs\)") as error:
        find_head(shared_model("llama").model)
    assert "layers.0.self_attn.q_proj" not in str(error.value)


def test_a_model_without_any_linear_is_refused():
    with pytest.raises(ModelError, match=r"Linear modules seen there: none\. Top-level modules: 0 \(Embedding\)"):
        find_head(nn.Sequential(nn.Embedding(4, 2)))


def test_two_heads_are_refused_by_name():
    model = Scorer()
    model.other = nn.Linear(8, 1)
    with pytest.raises(ModelError, match=r"Scorer has 2 Linear modules of one output .*\(reward, other\)"):
        find_head(model)


def test_a_token_classifier_is_refused():
    from transformers import LlamaForTokenClassification

    model = LlamaForTokenClassification(type(shared_model("llama").config)(**shared_model("llama").config.to_dict()))
    with pytest.raises(ModelError, match=r"logits of shape \(4, 9, 1\); wanted one reward for each of the 4 rows"):
        captured_forward(model, **padded(ROWS))


# --- wrappers ---


@pytest.fixture
def one_process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_distributed_data_parallel_is_seen_through(kind):
    model, batch = tiny_model(kind), padded(ROWS)
    expected = parameter_gradients(model, capture=False, **batch)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert unwrap(wrapped) is model
    assert find_head(wrapped)[0] == HEADS[kind]
    found = parameter_gradients(wrapped, capture=True, **batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"module.{name}"], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_unwrapping_reaches_the_model_inside_peft():
    model = adapted("llama", lora(target_modules=["q_proj"]))
    assert type(unwrap(model)).__name__ == "LlamaForSequenceClassification"
    assert unwrap(model).config.pad_token_id == PAD
