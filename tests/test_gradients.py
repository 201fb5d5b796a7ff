"""Gradient norms of pairs: exact against a brute-force twin, ghost against exact, and what must not matter."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradient_cases import PAIRS, batch_of, lora_model, shared_model
from normbt import pair_distance, pair_gradient_norms, pair_gradient_norms_by_group
from normbt.errors import DataError, ModelError
from normbt.gradients import check_ghost
from normbt.head import capture_hidden, find_head
from reference import pair_gradient_squares
from tiny import DECODERS, ENCODER_DECODERS, ENCODERS, padded, tiny_model

KINDS = [*DECODERS, *ENCODERS, *ENCODER_DECODERS]
every_kind = pytest.mark.parametrize("kind", KINDS)


def brute_force(model: Any, pairs: Sequence[tuple[list[int], list[int]]] = PAIRS) -> dict[str, Tensor]:
    """The slow twin: every sequence alone in its own forward, no padding, no slicing."""

    def rewards(number: int) -> tuple[Any, Any]:
        return tuple(model(**padded([row])).logits[0, 0] for row in pairs[number])

    squares = pair_gradient_squares(rewards, dict(model.named_parameters()), len(pairs))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in squares.items()}


def norm_over(squares: dict[str, Tensor], chosen: Callable[[str], bool] = lambda name: True) -> Tensor:
    return torch.stack([values for name, values in squares.items() if chosen(name)]).sum(dim=0).sqrt()


@cache
def brute_force_of(kind: str) -> dict[str, Tensor]:
    return brute_force(tiny_model(kind).double())


# --- the reference method ---


def test_every_architecture_of_the_promise_is_here():
    assert len(KINDS) == 14


@every_kind
def test_exact_is_the_brute_force_gradient(kind):
    norms = pair_gradient_norms(shared_model(kind), batch_of())
    # Some parts of Transformers compute in float32 in a float64 model, and padding changes their rounding.
    torch.testing.assert_close(norms, norm_over(brute_force_of(kind)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_near_duplicate_pair_cancels(kind):
    """A method that treats each row as the sample would be wrong by several times on this pair."""
    model = shared_model(kind)
    rows = []
    for row in PAIRS[-1]:
        model.zero_grad()
        model(**padded([row])).logits.sum().backward()
        rows.append(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    model.zero_grad()
    assert pair_gradient_norms(model, batch_of(PAIRS[-1:])).item() < 0.7 * sum(rows) ** 0.5


@every_kind
def test_groups_are_those_of_the_brute_force_gradient(kind):
    model, squares = shared_model(kind), brute_force_of(kind)
    head = tuple(name for name, p in model.named_parameters() if p in set(find_head(model)[1].parameters()))
    assert head
    vectors = {name for name, p in model.named_parameters() if p.dim() == 1}
    norms = pair_gradient_norms_by_group(
        model, batch_of(), {"head": "head", "backbone": "backbone", "vectors": lambda name, p: p.dim() == 1}
    )
    wanted = {
        "head": norm_over(squares, lambda name: name in head),
        "backbone": norm_over(squares, lambda name: name not in head),
        "vectors": norm_over(squares, lambda name: name in vectors),
    }
    assert norms.keys() == wanted.keys()
    for group, values in wanted.items():
        torch.testing.assert_close(norms[group], values, rtol=1e-7, atol=1e-9, msg=group)


@every_kind
def test_the_norm_over_the_head_is_the_distance(kind):
    model = tiny_model(kind)
    with torch.no_grad(), capture_hidden(model) as captured:
        model(**batch_of())
    if kind == "roberta":  # its head proper is the last Linear; the layer before it counts as backbone
        assert find_head(model)[0] == "classifier.out_proj"
    norms = pair_gradient_norms(model, batch_of(), params="head")
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, pair_distance(*captured.hidden.chunk(2)), rtol=1e-6, atol=1e-6)


# --- what must not matter ---


@pytest.mark.parametrize("failing", [False, True])
def test_nothing_of_the_model_is_changed(failing):
    model = tiny_model("llama", attention_dropout=0.5).train()
    model.model.layers[0].eval()
    model.model.embed_tokens.requires_grad_(False)
    model.gradient_checkpointing_enable()
    marker = torch.ones_like(model.score.weight)
    model.score.weight.grad = marker
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    random_state = torch.get_rng_state()
    batch = batch_of()
    if failing:
        batch["input_ids"] = batch["input_ids"] + 1000  # out of the vocabulary
        with pytest.raises(IndexError):
            pair_gradient_norms(model, batch)
    else:
        pair_gradient_norms(model, batch)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.score.weight.grad is marker
    assert all(p.grad is None for p in model.parameters() if p is not model.score.weight)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in model.score.__dict__
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


def test_dropout_and_checkpointing_are_off():
    model = tiny_model("llama", attention_dropout=0.5)
    wanted = pair_gradient_norms(model, batch_of())
    model.train().gradient_checkpointing_enable()
    torch.testing.assert_close(pair_gradient_norms(model, batch_of()), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(context):
    model = tiny_model("llama")
    with context():
        norms = pair_gradient_norms(model, batch_of())
    assert not norms.requires_grad
    torch.testing.assert_close(norms, pair_gradient_norms(model, batch_of()), rtol=0, atol=0)


def test_norms_of_a_bfloat16_model_are_near_those_in_float32():
    model = tiny_model("llama").bfloat16()
    norms = pair_gradient_norms(model, batch_of())
    assert norms.dtype == torch.float32
    torch.testing.assert_close(
        norms, pair_gradient_norms(model.float(), batch_of()), rtol=0.15, atol=0
    )  # bf16's own noise


def test_a_float32_norm_over_many_elements_is_right():
    """torch's own float32 norm is off by 2e-4 here."""
    model = nn.Sequential(nn.Linear(2600, 2500, bias=False), nn.Linear(2500, 1, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1e-3)
        model[1].weight.uniform_()
    rows = torch.rand(2, 2600)
    step = (rows[0] - rows[1]).double()
    wanted = (
        step.square().sum() * model[1].weight.double().square().sum() + (model[0].weight.double() @ step).square().sum()
    ).sqrt()
    norm = pair_gradient_norms(model, {"input": rows})
    torch.testing.assert_close(norm[0].double(), wanted.detach(), rtol=1e-6, atol=0)


# --- adapters and frozen parts ---


def test_adapters_and_head_are_what_counts_under_peft():
    model = lora_model()
    squares = brute_force(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = pair_gradient_norms_by_group(model, batch_of(), {"all": "all", "lora": "lora", "head": "head"})
    torch.testing.assert_close(norms["all"], norm_over(squares, lambda name: name in trained), rtol=1e-7, atol=0)
    torch.testing.assert_close(norms["lora"], norm_over(squares, lambda name: "lora_" in name), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        norms["head"], norm_over(squares, lambda name: "modules_to_save" in name), rtol=1e-7, atol=0
    )
    torch.testing.assert_close(norms["all"] ** 2, norms["lora"] ** 2 + norms["head"] ** 2)
    model.requires_grad_(False)
    torch.testing.assert_close(pair_gradient_norms(model, batch_of(), params="lora"), norms["lora"], rtol=0, atol=0)


def test_frozen_parameters_count_only_when_asked_for():
    model, squares = tiny_model("llama").double(), brute_force_of("llama")
    model.model.layers[0].requires_grad_(False)
    frozen = "model.layers.0."
    norms = pair_gradient_norms_by_group(
        model, batch_of(), {"all": "all", "frozen": lambda name, p: name.startswith(frozen)}
    )
    torch.testing.assert_close(norms["all"], norm_over(squares, lambda n: not n.startswith(frozen)), rtol=1e-7, atol=0)
    torch.testing.assert_close(norms["frozen"], norm_over(squares, lambda n: n.startswith(frozen)), rtol=1e-7, atol=0)


def test_a_model_of_which_only_the_head_is_trained():
    model = tiny_model("llama").requires_grad_(False)
    model.score.requires_grad_(True)
    norms = pair_gradient_norms_by_group(model, batch_of(), {"all": "all", "head": "head", "backbone": "backbone"})
    assert torch.equal(norms["all"], norms["head"])
    assert torch.equal(norms["backbone"], torch.zeros(len(PAIRS)))
    for method in ({}, {"method": "ghost"}, {"method": "ghost", "check_pairs": 2}):
        alone = pair_gradient_norms(model, batch_of(), params="backbone", **method)
        assert torch.equal(alone, torch.zeros(len(PAIRS)))
    check = check_ghost(model, batch_of(), params="backbone")
    assert (check.passed, check.pairs, check.difference) == (True, 2, 0.0)


# --- refusals ---


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("lora", "LlamaForSequenceClassification has no LoRA adapter"),
        (lambda name, p: False, r"the predicate chose none of the \d+ parameters.*model\.embed_tokens\.weight"),
    ],
)
def test_an_empty_choice_of_parameters_is_refused(params, message):
    with pytest.raises(ModelError, match=message):
        pair_gradient_norms(shared_model("llama"), batch_of(), params=params)


def test_a_model_that_trains_nothing_is_refused():
    with pytest.raises(ModelError, match="no parameter of LlamaForSequenceClassification requires a gradient"):
        pair_gradient_norms(tiny_model("llama").requires_grad_(False), batch_of())


@pytest.mark.parametrize("rows", [0, 3])
def test_a_batch_without_whole_pairs_is_refused(rows):
    batch = {name: value[:rows] for name, value in batch_of().items()}
    with pytest.raises(DataError, match=rf"the batch has {rows} rows under input_ids.*wanted 2 \* pairs"):
        pair_gradient_norms(shared_model("llama"), batch)


def test_unknown_words_are_refused():
    model = shared_model("llama")
    with pytest.raises(ValueError, match="params must be"):
        pair_gradient_norms(model, batch_of(), params="everything")
    with pytest.raises(ValueError, match="method must be"):
        pair_gradient_norms(model, batch_of(), method="fast")
    with pytest.raises(ValueError, match="groups is empty"):
        pair_gradient_norms_by_group(model, batch_of(), {})


def test_sharded_parameters_are_refused():
    model = tiny_model("llama")
    model.score.weight.ds_id = 1
    with pytest.raises(ModelError, match="sharded"):
        pair_gradient_norms(model, batch_of())
