"""The ghost method against one backward per pair: every architecture, every way a parameter is used, every refusal."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradient_cases import PAIRS, batch_of, lora_model, shared_model
from normbt import pair_gradient_norms, pair_gradient_norms_by_group
from normbt.errors import ModelError
from normbt.gradients import check_ghost, formulas, tally
from normbt.gradients.formulas import gram_costs_less, gram_squares, lookup_squares, outer_squares
from normbt.gradients.pair_inputs import pair_inputs
from normbt.gradients.token_places import token_places
from normbt.packing import TokenPair, build_packed, build_padded, common_prefix
from tiny import DECODERS, ENCODERS, PAD, VOCABULARY, padded, random_rows, tiny_model


def phi3() -> Any:
    from transformers import Phi3Config, Phi3ForSequenceClassification

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    config = Phi3Config(**sizes, **heads, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, num_labels=1)
    return Phi3ForSequenceClassification(config).eval()


MODELS = {
    **{kind: lambda kind=kind: tiny_model(kind) for kind in (*DECODERS, *ENCODERS, "bart") if kind != "deberta-v2"},
    "phi3": phi3,
    "bart-scaled": lambda: tiny_model("bart", scale_embedding=True),
    "lora": lora_model,
    "lora on gpt2": lambda: lora_model("gpt2", fan_in_fan_out=True),
    "lora on bert": lambda: lora_model("bert"),
    "lora on the head": lambda: lora_model(target_modules=["q_proj", "score"], task_type=None),
}
REFUSED = {
    "t5": (lambda: tiny_model("t5"), r"SelfAttention\.relative_attention_bias\.weight is used in embedding"),
    "deberta-v2": (lambda: tiny_model("deberta-v2"), r"attention\.self\.pos_\w+_proj\.weight is used in linear"),
    "dora": (lambda: lora_model(use_dora=True), r"lora_\w+.*\.weight is used in \w+"),
}


def ghost(model: Any, batch: Any, **settings: Any) -> Tensor:
    return pair_gradient_norms(model, batch, method="ghost", **settings)


def assert_ghost_is_exact(model: Any, batch: Any, *, rtol: float, atol: float = 0) -> None:
    torch.testing.assert_close(ghost(model, batch), pair_gradient_norms(model, batch), rtol=rtol, atol=atol)


# --- every architecture ---


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gram", [True, False], ids=["gram", "outer"])
def test_ghost_is_exact(name, gram, monkeypatch):
    monkeypatch.setattr(tally, "gram_costs_less", lambda *sizes: gram)
    model = MODELS[name]().double()
    # The layers of Gemma that compute in float32 in a float64 model round differently in another batch.
    assert_ghost_is_exact(model, batch_of(), rtol=1e-8 if name.startswith("gemma") else 1e-12)
    assert_ghost_is_exact(model.float(), batch_of(), rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(name):
    build, message = REFUSED[name]
    model = build()
    with pytest.raises(ModelError, match=f"{message}.*method='exact'"):
        ghost(model, batch_of())
    assert ghost(model, batch_of(), params="head").isfinite().all()  # the head alone is known


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "lora"])
def test_groups_are_those_of_the_exact_method(name):
    model = MODELS[name]()
    groups = {
        "all": "all",
        "head": "head",
        "backbone": "backbone",
        "few": lambda name, p: "1" in name,
    }
    exact = pair_gradient_norms_by_group(model, batch_of(), groups)
    found = pair_gradient_norms_by_group(model, batch_of(), groups, method="ghost")
    for group in groups:
        torch.testing.assert_close(found[group], exact[group], rtol=1e-5, atol=0, msg=group)
    torch.testing.assert_close(found["all"] ** 2, found["head"] ** 2 + found["backbone"] ** 2)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "qwen3"])
def test_packed_pairs_have_the_norms_of_padded_ones(kind):
    from normbt.attention import pair_attention

    pairs = [TokenPair(chosen, rejected, common_prefix(chosen, rejected)) for chosen, rejected in PAIRS]
    model = tiny_model(kind).double()
    wanted = pair_gradient_norms(model, build_padded(pairs, PAD))
    for share in (True, False):
        packed = build_packed(pairs, share=share)
        with pair_attention(model):
            exact, found = pair_gradient_norms(model, packed), ghost(model, packed)
        torch.testing.assert_close(exact, wanted, rtol=1e-6, atol=0)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_near(autocast):
    model, batch = tiny_model("llama"), batch_of()
    wanted = pair_gradient_norms(model, batch)
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = ghost(model, batch)
        assert check_ghost(model, batch).passed
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.2, atol=0)  # bf16's own noise; the check above is stricter


def test_adapters_in_float32_on_a_bfloat16_model_get_its_tolerance():
    model = lora_model().bfloat16()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    check = check_ghost(model, batch_of())
    assert check.passed
    assert check.tolerance == 0.1


def test_nothing_of_the_model_is_changed():
    model = tiny_model("gpt2", resid_pdrop=0.5).train()
    model.transformer.wte.requires_grad_(False)
    flags, state = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    ghost(model, batch_of())
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    with pytest.raises(IndexError):
        ghost(model, {"input_ids": batch_of()["input_ids"] + 1000})
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(context):
    model = shared_model("llama")
    with context():
        found = ghost(model, batch_of())
    torch.testing.assert_close(found, pair_gradient_norms(model, batch_of()))


# --- laws ---

WORDS = st.lists(st.integers(5, VOCABULARY - 1), min_size=1, max_size=9)
SOME_PAIRS = st.lists(st.tuples(WORDS, WORDS).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=4)
law = settings(deadline=None, max_examples=25)
ROUNDING = {"rtol": 1e-6, "atol": 1e-5}
"""Norms are 1 to 100 here, but for answers of one repeated word, whose rewards are equal. Rotary tables are float32."""


@law
@given(pairs=SOME_PAIRS, kind=st.sampled_from(["llama", "bert", "gpt2"]))
def test_ghost_is_exact_on_any_pairs(pairs, kind):
    assert_ghost_is_exact(shared_model(kind), batch_of(pairs), **ROUNDING)


@law
@given(pairs=SOME_PAIRS, kind=st.sampled_from(["llama", "bert"]))
def test_swapping_chosen_and_rejected_changes_nothing(pairs, kind):
    swapped = batch_of([(rejected, chosen) for chosen, rejected in pairs])
    norms = ghost(shared_model(kind), batch_of(pairs))
    torch.testing.assert_close(ghost(shared_model(kind), swapped), norms, **ROUNDING)


@law
@given(pairs=SOME_PAIRS, more=st.integers(1, 5), kind=st.sampled_from(["llama", "bert"]))
def test_more_padding_changes_nothing(pairs, more, kind):
    batch = batch_of(pairs)
    longer = {name: nn.functional.pad(value, (0, more)) for name, value in batch.items()}
    for method in ("ghost", "exact"):
        norms = pair_gradient_norms(shared_model(kind), batch, method=method)
        padded_norms = pair_gradient_norms(shared_model(kind), longer, method=method)
        torch.testing.assert_close(padded_norms, norms, **ROUNDING)


@law
@given(pairs=SOME_PAIRS)
def test_the_side_of_the_padding_changes_nothing(pairs):
    model = shared_model("llama")  # rotary positions
    for method in ("ghost", "exact"):
        right = pair_gradient_norms(model, batch_of(pairs), method=method)
        left = pair_gradient_norms(model, batch_of(pairs, side="left"), method=method)
        torch.testing.assert_close(left, right, **ROUNDING)


@law
@given(pairs=SOME_PAIRS)
def test_a_pair_does_not_notice_the_others(pairs):
    together = ghost(shared_model("llama"), batch_of(pairs))
    alone = torch.cat([ghost(shared_model("llama"), batch_of([pair])) for pair in pairs])
    torch.testing.assert_close(together, alone, **ROUNDING)


@law
@given(pairs=SOME_PAIRS, chosen=st.sets(st.integers(0, 18)))
def test_squares_of_disjoint_groups_add_up(pairs, chosen):
    model = shared_model("llama")
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    part = {name for name, number in numbers.items() if number in chosen} | {"score.weight"}
    norms = pair_gradient_norms_by_group(
        model,
        batch_of(pairs),
        {"all": "all", "in": lambda name, _: name in part, "out": lambda name, _: name not in part},
        method="ghost",
    )
    torch.testing.assert_close(norms["all"] ** 2, norms["in"] ** 2 + norms["out"] ** 2, **ROUNDING)


def test_identical_answers_have_no_gradient():
    found = ghost(shared_model("llama"), batch_of([(PAIRS[0][0], PAIRS[0][0]), PAIRS[1]]))
    assert found[0] < 1e-9 * found[1]


# --- formulas ---


def test_the_formulas_agree():
    x, d = torch.randn(3, 20, 7, dtype=torch.float64), torch.randn(3, 20, 5, dtype=torch.float64)
    wanted = (d.mT @ x).square().sum((1, 2))
    torch.testing.assert_close(outer_squares(x, d), wanted)
    for aligned in (0, 6, 10):
        torch.testing.assert_close(gram_squares(x, d, aligned), wanted)


def test_the_formulas_agree_beyond_one_strip_and_one_scratch(monkeypatch):
    monkeypatch.setattr(formulas, "_STRIP", 7)
    x, d = torch.randn(3, 20, 7, dtype=torch.float64), torch.randn(3, 20, 5, dtype=torch.float64)
    wanted = (d.mT @ x).square().sum((1, 2))
    torch.testing.assert_close(gram_squares(x, d, 8), wanted)
    for scratch in (1, 15, 36, 75):
        monkeypatch.setattr(formulas, "_SCRATCH", scratch)
        torch.testing.assert_close(outer_squares(x, d), wanted)


def test_the_inputs_of_the_formulas_are_left_alone():
    x, d = torch.randn(1, 6, 3), torch.randn(1, 6, 2)
    before = x.clone(), d.clone()
    for aligned in (0, 2):
        gram_squares(x, d, aligned)
    outer_squares(x, d)
    assert torch.equal(x, before[0])
    assert torch.equal(d, before[1])


def test_a_pair_that_nearly_cancels_keeps_its_digits():
    """Without the sums and differences the Gram form would leave nothing of a norm a thousandth of its terms."""
    x, d = torch.randn(1, 50, 32, dtype=torch.float64), torch.randn(1, 50, 32, dtype=torch.float64)
    near_x, near_d = x + 1e-4 * torch.randn_like(x), -d + 1e-4 * torch.randn_like(d)
    both_x, both_d = torch.cat([x, near_x], dim=1).float(), torch.cat([d, near_d], dim=1).float()
    wanted = outer_squares(both_x.double(), both_d.double()).sqrt()
    torch.testing.assert_close(gram_squares(both_x, both_d, aligned=50).sqrt(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(outer_squares(both_x, both_d).sqrt(), wanted, rtol=1e-3, atol=0)
    assert (gram_squares(both_x, both_d, aligned=0).sqrt() / wanted - 1).abs() > 1e-2


def test_a_near_duplicate_keeps_its_digits():
    """Two long answers that differ in one word: a norm many times smaller than that of either answer."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128, num_attention_heads=4)
    [row] = random_rows([100])
    other = [*row[:5], row[5] % 50 + 6, *row[6:]]
    batch = batch_of([(row, other)])
    rows = [
        pair_gradient_norms(model, {name: torch.stack([value[i], value[i]]) for name, value in batch.items()})
        for i in (0, 1)
    ]
    assert float(sum(rows)) < 1e-3  # each answer against itself
    assert_ghost_is_exact(model, batch, rtol=1e-5)


def test_the_cheaper_form_is_chosen():
    for tokens, inputs, outputs in [(100, 768, 768), (1000, 768, 768), (100, 768, 8), (5, 8, 768), (2, 768, 1)]:
        strips = -(-tokens // formulas._STRIP)
        gram = sum(
            (tokens - strip * formulas._STRIP) * min(formulas._STRIP, tokens - strip * formulas._STRIP)
            for strip in range(strips)
        )
        wanted = gram * (inputs + outputs) < tokens * inputs * outputs
        assert gram_costs_less(tokens, inputs, outputs) == wanted


def test_lookups_of_one_row_are_added_before_they_are_squared():
    ids, d = torch.tensor([3, 3, 5, 3]), torch.tensor([[1.0], [-1.0], [2.0], [4.0]])
    assert lookup_squares(ids, d, torch.tensor([0, 0, 0, 1]), pairs=2, vocabulary=9).tolist() == [4.0, 16.0]


@law
@given(pairs=SOME_PAIRS, side=st.sampled_from(["left", "right"]))
def test_every_real_token_has_one_place(pairs, side):
    batch = batch_of(pairs, side=side)
    places = token_places(pair_inputs(batch), torch.device("cpu"))
    real = batch["attention_mask"].flatten().nonzero().flatten().tolist()
    found = [
        place
        for group in places.groups
        for row, filler in zip(
            group.places, group.filler if group.filler is not None else torch.zeros_like(group.places), strict=True
        )
        for place, empty in zip(row.tolist(), filler.tolist(), strict=True)
        if not empty
    ]
    assert sorted(found) == real
    assert sorted(number for group in places.groups for number in group.pairs.tolist()) == list(range(len(pairs)))
    assert sorted([*found, *places.padding.tolist()]) == list(range(batch["input_ids"].numel()))


@pytest.mark.parametrize("gram", [True, False])
def test_pairs_of_nearly_equal_lengths_are_computed_together(gram, monkeypatch):
    monkeypatch.setattr(tally, "gram_costs_less", lambda *sizes: gram)
    rows = random_rows([40, 40, 41, 40, 40, 42])
    batch = batch_of([(rows[0], rows[1]), (rows[2], rows[3]), (rows[4], rows[5])])
    groups = token_places(pair_inputs(batch), torch.device("cpu")).groups
    assert len(groups) == 1
    assert groups[0].filler is not None
    assert_ghost_is_exact(Model().double(), batch, rtol=1e-10)


# --- ways to use a parameter ---


class Model(nn.Module):
    """A token-level reward model; subclasses say how tokens become states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(VOCABULARY, 8, padding_idx=PAD)
        self.up = nn.Linear(8, 8)
        self.score = nn.Linear(8, 1)

    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.up(x))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.states(self.embed(input_ids), attention_mask)
        seen = (states * attention_mask.unsqueeze(-1)).cumsum(1)  # the last token reads all before it
        return self.score(seen).gather(1, attention_mask.sum(1).view(-1, 1, 1) - 1)[:, 0]


class CalledTwice(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.up(torch.tanh(self.up(x)))


class SharedMatrix(Model):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(8, 8)
        self.down.weight = self.up.weight

    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


class Norms(Model):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm((2, 4)), nn.RMSNorm(8), nn.RMSNorm((2, 4), eps=1e-3)])
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.shift = nn.Parameter(torch.rand(8))
        for norm in self.norms:
            nn.init.uniform_(norm.weight)

    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.up(x).view(*x.shape[:2], *norm.weight.shape)).flatten(2)
        return self.shift + self.scale * x


class Unused(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        self.up(x)
        with torch.no_grad():
            frozen = self.up(x)
        return x + frozen


class ByColumn(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(x @ self.up.weight.T + self.up.bias)


class ComputedMatrix(Model):
    """A known operation on a bias, beside a matrix that was made of a parameter in an unknown way."""

    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x, torch.tanh(self.up.weight), self.up.bias))


class Tied(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * nn.functional.linear(x, self.embed.weight).mean(-1, keepdim=True)


class PaddingLeaks(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.up(x).mean(1, keepdim=True) + 0 * x


class Overwritten(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.up(x)
        with torch.no_grad():
            x.mul_(2)
        return y


class Checkpointed(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return checkpoint(self.up, x, use_reentrant=False)


class SequenceFirst(Model):
    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.up(x.transpose(0, 1))).transpose(0, 1)


@pytest.mark.parametrize("model_class", [Model, CalledTwice, SharedMatrix, Norms, Unused])
def test_ways_to_use_a_parameter(model_class):
    model = model_class().double()
    assert_ghost_is_exact(model, batch_of(), rtol=1e-10)
    check = check_ghost(model, batch_of(), pairs=5)
    assert check.difference < 1e-10  # of each parameter
    assert check.pairs == 5


@pytest.mark.parametrize("padding_idx", [None, 7, -1])
def test_the_row_of_an_embedding_that_gets_no_gradient_has_none(padding_idx):
    """padding_idx is about the id, not the mask: also where a real token has it."""
    model = Model().double()
    model.embed.padding_idx = padding_idx
    batch = batch_of([([5, 7, 9, VOCABULARY - 1], [7, 5]), ([7, 7], [VOCABULARY - 1, 7, 8])])
    assert_ghost_is_exact(model, batch, rtol=1e-10)


@pytest.mark.parametrize(
    ("model_class", "message"),
    [
        (ByColumn, r"up\.weight is used in \w*Permute\w*|up\.weight is used in T\w*Backward0"),
        (ComputedMatrix, r"up\.weight is used in TanhBackward0"),
        (Tied, r"embed\.weight is shared by operations of different kinds"),
        (PaddingLeaks, "the rewards depend on padding"),
        (Overwritten, r"what up\.weight was applied to was overwritten in place"),
        (Checkpointed, "a Linear was run again in the backward"),
        (SequenceFirst, r"up\.weight is used in linear with an output of shape \(12, 10, \.\.\.\)"),
    ],
)
def test_refusals(model_class, message):
    model = model_class()
    with pytest.raises(ModelError, match=f"(?s)({message}).*method='exact'"):
        ghost(model, batch_of())


def test_rows_and_tokens_of_equal_number_are_told_apart():
    """With 12 sequences of 12 tokens a tensor that has the tokens first looks like one that has the sequences first."""
    pairs = [*PAIRS, *random_pair_of_twelve()]
    batch = batch_of(pairs)
    assert batch["input_ids"].shape == (12, 12)
    assert_ghost_is_exact(shared_model("llama"), batch, rtol=1e-9)
    for model in (SequenceFirst(), tiny_model("t5")):
        with pytest.raises(ModelError, match="can't be told apart"):
            ghost(model, batch)


def random_pair_of_twelve() -> list[tuple[list[int], list[int]]]:
    first, second = random_rows([12, 12], seed=9)
    return [(first, second)]


# --- the self-check ---


@pytest.mark.parametrize("formula", ["gram_squares", "outer_squares", "lookup_squares", "vector_squares"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_wrong_formula_is_caught(formula, kind, monkeypatch):
    model, batch = tiny_model(kind), batch_of()
    passed = check_ghost(model, batch)
    assert passed.passed
    assert "agrees with one backward per pair on 2 pairs" in passed.summary()
    right = getattr(tally, formula)
    monkeypatch.setattr(tally, formula, lambda *args, **kwargs: 1.1 * right(*args, **kwargs))
    if formula == "gram_squares":  # short rows of small matrices: the other form would be chosen everywhere else
        monkeypatch.setattr(tally, "gram_costs_less", lambda *sizes: True)
    assert not check_ghost(model, batch).passed
    with pytest.raises(
        ModelError, match=r"DIFFERS FROM one backward per pair on 2 pairs: .* at \S+, tolerance 1\.0e-04"
    ):
        ghost(model, batch, check_pairs=2)


def test_a_missing_cross_term_is_caught(monkeypatch):
    """What tools for per-row gradients compute: the sum of the two answers' squares."""

    def by_row(x: Tensor, d: Tensor) -> Tensor:
        half = x.shape[1] // 2
        return outer_squares(x[:, :half], d[:, :half]) + outer_squares(x[:, half:], d[:, half:])

    monkeypatch.setattr(tally, "gram_costs_less", lambda *sizes: False)
    monkeypatch.setattr(tally, "outer_squares", by_row)
    assert not check_ghost(tiny_model("llama"), batch_of()).passed


def test_the_check_says_which_parameter(monkeypatch):
    right = tally.lookup_squares
    monkeypatch.setattr(tally, "lookup_squares", lambda *args, **kwargs: 4 * right(*args, **kwargs))
    check = check_ghost(tiny_model("llama"), batch_of())
    assert check.parameter == "model.embed_tokens.weight"


def test_a_check_of_nan_does_not_pass(monkeypatch):
    right = tally.outer_squares
    monkeypatch.setattr(tally, "outer_squares", lambda *args: float("nan") * right(*args))
    assert not check_ghost(tiny_model("llama"), batch_of()).passed


def test_a_pair_whose_rewards_are_nan_has_no_norm_and_is_not_called_a_leak():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    sides = [[1, 9, 2], [1, 5, 6, 2]], [[1, 7, 8, 6, 2], [1, 5, 2]]
    batch = padded([side[i] for i in (0, 1) for side in sides])
    norms = ghost(model, batch)
    torch.testing.assert_close(norms, pair_gradient_norms(model, batch), equal_nan=True)
    assert norms.isnan().tolist() == [True, False]
    with pytest.raises(
        ModelError, match=r"1 of the 2 pairs compared have no finite gradient.*Look for NaN in the weig"
    ):
        ghost(model, batch, check_pairs=2)


def test_checking_without_the_ghost_method_is_an_error():
    with pytest.raises(ValueError, match="nothing to check"):
        pair_gradient_norms(shared_model("llama"), batch_of(), check_pairs=2)


def test_padded_helper_is_what_trl_makes():
    """Chosen rows first, then rejected ones."""
    assert batch_of(PAIRS[:1])["input_ids"].tolist() == padded(PAIRS[0])["input_ids"].tolist()
