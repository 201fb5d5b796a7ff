"""Plans of an optimizer step: what is chosen for a model, and that arranging loses no pair."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from normbt import attention, step_plan
from normbt.cost import activation_bytes, decoder_shape, training_state_bytes
from normbt.errors import ConfigError
from normbt.sharding import Shards
from normbt.step_plan import StepPlan, free_bytes, make_step_plan
from tiny import PAD, tiny_model

AMPLE = 2**40
GPU = torch.device("cuda", 0)
CHOICES: dict[str, Any] = {
    "batching": "packed",
    "token_budget": None,
    "checkpointing": None,
    "longest_sequence": 20,
    "pairs_per_draw": 3,
    "pad_token_id": PAD,
    "pad_to_multiple_of": None,
    "low_precision": False,
}


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    """Sets the free memory the plan is made for."""
    return lambda number: monkeypatch.setattr(step_plan, "free_bytes", lambda *_: number)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Sets the free memory of a GPU that isn't there; the host's, which is none of its business, can't be asked for."""

    def with_free(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (number - 300, 10 * number))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 800)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500)  # 300 are free for torch
        monkeypatch.delattr(step_plan.psutil, "virtual_memory", raising=False)

    return with_free


def plan_for(kind: str = "llama", **changes: Any) -> StepPlan:
    return make_step_plan(tiny_model(kind), **CHOICES | changes)


def example(number: int, prefix: int, chosen: int, rejected: int) -> dict[str, Any]:
    """A pair told apart by its margin; ``prefix`` tokens are equal, every answer has at least one token of its own."""
    shared = list(range(5, 5 + prefix))
    sides = {"chosen_ids": shared + [40] * chosen, "rejected_ids": shared + [50] * rejected}
    return sides | {"prefix_length": prefix, "margin": float(number)}


pairs = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=20).map(
    lambda sizes: [example(number, *size) for number, size in enumerate(sizes)]
)


def numbers(batch) -> list[int]:
    return [int(number) for number in batch.margin]


def row_tokens(batch) -> int:
    return batch.inputs["input_ids"].numel()


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["packed", "packed-unshared", "padded"])
def test_the_layout_asked_for_is_kept_where_it_is_exact(free, batching) -> None:
    free(AMPLE)
    plan = plan_for(batching=batching)
    assert plan.batching == batching
    assert plan.reason.startswith(f"batching {batching}; ")


def test_a_model_that_cannot_pack_is_padded_and_the_reason_names_it(free) -> None:
    free(AMPLE)
    plan = plan_for("bert")
    assert plan.batching == "padded"
    assert "batching padded, because bert.encoder" in plan.reason
    assert "attends in both directions" in plan.reason


def test_a_model_without_readable_sizes_is_padded_with_checkpointing_as_asked() -> None:
    class Opaque(nn.Linear):
        config = type("Config", (), {"get_text_config": lambda self: self})()

    for asked in (None, False, True):
        plan = make_step_plan(Opaque(2, 1), **CHOICES | {"checkpointing": asked})
        assert (plan.batching, plan.checkpointing) == ("padded", bool(asked))
        assert plan.token_budget == 3 * 2 * 20  # of a draw: nothing says that more would fit
        assert "memory not estimated" in plan.reason


def test_falling_back_keeps_all_but_the_layout(free) -> None:
    free(AMPLE)
    plan = plan_for()
    fallen = plan.falling_back("because of a test")
    assert (fallen.batching, fallen.reason) == ("padded", "because of a test")
    assert (fallen.token_budget, fallen.checkpointing) == (plan.token_budget, plan.checkpointing)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_checkpointing_is_off_where_activations_fit_and_on_where_they_do_not(free, batching) -> None:
    free(AMPLE)
    assert not plan_for(batching=batching).checkpointing
    free(1000)
    plan = plan_for(batching=batching)
    assert plan.checkpointing
    assert "checkpointing on" in plan.reason


@pytest.mark.parametrize("asked", [True, False])
def test_checkpointing_that_was_asked_for_is_not_changed(free, asked) -> None:
    for number in (AMPLE, 1000):
        free(number)
        assert plan_for(checkpointing=asked).checkpointing is asked


def test_a_micro_batch_of_a_users_own_collator_is_what_has_to_fit(free) -> None:
    shape = decoder_shape(tiny_model("llama"))
    needed = activation_bytes(shape, 3 * 2 * 20, element_size=4, checkpointing=False)
    free(int(needed / 0.8) + 10)  # activations may take 0.8 of what is free
    own = {"batching": "padded", "arranges": False}
    assert not plan_for(**own).checkpointing
    assert plan_for(**own, pairs_per_draw=4).checkpointing
    assert plan_for(**own, longest_sequence=21).checkpointing


def test_a_padded_micro_batch_gets_the_budget_of_a_packed_one(free) -> None:
    shape = decoder_shape(tiny_model("llama"))
    free(int(activation_bytes(shape, 100, element_size=4, checkpointing=False) / 0.8) + 10)
    for draw in (1, 64):
        plan = plan_for(batching="padded", pairs_per_draw=draw)
        assert (plan.token_budget, plan.checkpointing) == (100, False)
        assert "at most 100 tokens a micro-batch" in plan.reason


def test_half_the_bytes_need_half_the_memory(free) -> None:
    shape = decoder_shape(tiny_model("llama"))
    free(int(activation_bytes(shape, 100, element_size=4, checkpointing=False) / 0.8) + 10)
    assert plan_for().token_budget == 100
    assert plan_for(low_precision=True).token_budget == 200


def test_a_budget_chosen_holds_the_longest_pair(free) -> None:
    free(1000)
    assert plan_for(longest_sequence=37).token_budget == 2 * 37
    assert plan_for(longest_sequence=None).token_budget == 2 * tiny_model("llama").config.max_position_embeddings


def test_a_budget_chosen_on_a_cpu_stays_in_its_caches_unless_a_pair_is_longer(free) -> None:
    free(AMPLE)
    assert plan_for().token_budget == 2048
    assert plan_for(longest_sequence=3000).token_budget == 6000
    assert plan_for(token_budget=9000).token_budget == 9000


def test_a_budget_asked_for_is_kept_and_named(free) -> None:
    free(AMPLE)
    plan = plan_for(token_budget=1234)
    assert plan.token_budget == 1234
    assert "at most 1,234 tokens" in plan.reason
    with pytest.raises(ConfigError, match="token_budget must be a positive"):
        plan_for(token_budget=0)


def test_memory_for_gradients_and_moments_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    state = training_state_bytes(model.parameters())
    available = type("Memory", (), {"available": state + 500})()
    monkeypatch.setattr(step_plan.psutil, "virtual_memory", lambda: available)
    assert free_bytes(model) == 500
    available.available = state - 1
    assert free_bytes(model) == 0
    model.requires_grad_(False)
    assert free_bytes(model) == state - 1


def test_a_model_that_the_engine_moves_later_gets_the_memory_of_the_gpu_it_is_moved_to(gpu) -> None:
    """FSDP and DeepSpeed leave it in the host's memory until training starts."""
    gpu(AMPLE)
    plan = plan_for(device=GPU)
    assert (plan.token_budget, plan.checkpointing) == (16_384, False)
    assert "of 1024.0 GiB free" in plan.reason
    gpu(1000)
    assert plan_for(device=GPU).checkpointing


@pytest.mark.parametrize("shards", [Shards(), Shards(1, 4), Shards(4, 4)])
def test_a_model_on_its_way_takes_its_part_of_the_gpus_memory(gpu, shards) -> None:
    model = tiny_model("llama")
    parameters = sum(each.numel() * each.element_size() for each in model.parameters())
    part = parameters // shards.parameters + 3 * parameters // shards.state
    gpu(part + 500)
    assert free_bytes(model, GPU, shards) == 500
    gpu(part - 1)
    assert free_bytes(model, GPU, shards) == 0
    model.requires_grad_(False)
    gpu(parameters + 500)
    assert free_bytes(model, GPU, shards) == 500 + parameters - parameters // shards.parameters


def test_parameters_that_zero_3_has_cut_up_count_whole(gpu) -> None:
    model, cut = tiny_model("llama"), tiny_model("llama")
    for parameter in cut.parameters():
        parameter.ds_numel, parameter.ds_shape = parameter.numel(), parameter.shape
        parameter.data = torch.empty(0)
    gpu(AMPLE)
    assert free_bytes(cut, GPU, Shards(2, 2)) == free_bytes(model, GPU, Shards(2, 2)) < AMPLE
    assert decoder_shape(cut) == decoder_shape(model)


def test_a_soft_capped_model_is_padded_for_the_gpu_it_will_run_on(free, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flash_attn", lambda: None)
    free(AMPLE)
    assert plan_for("gemma2").batching == "packed"
    plan = plan_for("gemma2", device=GPU)
    assert plan.batching == "padded"
    assert "needs the flash-attn package on a CUDA device" in plan.reason


# --- several processes ------------------------------------------------------------------------------------------------


def least_of(other: StepPlan):
    """What all processes agree on where there are two, the other one with this plan."""
    theirs = [other.token_budget, other.batching != "padded", not other.checkpointing]
    return lambda ours: [int(min(pair)) for pair in zip(ours, theirs, strict=True)]


def test_processes_with_unequal_memory_follow_one_plan(free) -> None:
    free(AMPLE)
    roomy = plan_for()
    free(1000)
    tight = plan_for()
    assert (roomy.token_budget, roomy.checkpointing) != (tight.token_budget, tight.checkpointing)
    for own, other in (
        (roomy, tight),
        (tight, roomy),
        (roomy, tight.falling_back("")),
        (tight.falling_back(""), roomy),
    ):
        plan = own.agreed(least_of(other))
        assert (plan.token_budget, plan.checkpointing) == (tight.token_budget, True)
        assert plan.batching == ("padded" if "padded" in (own.batching, other.batching) else "packed")
        changed = (plan.token_budget, plan.checkpointing) != (own.token_budget, own.checkpointing)
        assert ("in common with the other processes" in plan.reason) == (changed or plan.batching != own.batching)
    assert roomy.agreed(least_of(roomy)) == roomy


@pytest.mark.parametrize("batching", ["packed", "padded"])
@given(examples=pairs, more=st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_a_process_makes_as_many_micro_batches_as_the_one_that_needs_most(plans, batching, examples, more) -> None:
    plan = plans["packed"] if batching == "packed" else plans["packed"].falling_back("")
    needed = len(plan.micro_batches(examples))
    batches = plan.micro_batches(examples, agree=lambda own: own + more)
    assert len(batches) == needed + more
    assert sorted(number for batch in batches if batch.pairs for number in numbers(batch)) == list(range(len(examples)))


# --- micro-batches ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plans() -> dict[str, StepPlan]:
    return {batching: plan_for(batching=batching, token_budget=30) for batching in ("packed", "packed-unshared")}


@pytest.mark.parametrize("batching", ["packed", "packed-unshared"])
@given(examples=pairs)
@settings(deadline=None, max_examples=50)
def test_every_pair_is_packed_once_and_none_over_the_budget_with_another(plans, batching, examples) -> None:
    batches = plans[batching].micro_batches(examples)
    assert sorted(number for batch in batches for number in numbers(batch)) == list(range(len(examples)))
    assert sum(batch.pairs for batch in batches) == len(examples)
    for batch in batches:
        assert batch.pairs == 1 or row_tokens(batch) <= 30
        assert batch.pairs == len(batch.inputs["pair_layout"].pairs)


@given(examples=pairs)
@settings(deadline=None, max_examples=50)
def test_tokens_are_those_of_the_sequences_in_every_layout(plans, examples) -> None:
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in examples)
    for plan in (*plans.values(), plans["packed"].falling_back("")):
        assert sum(batch.tokens for batch in plan.micro_batches(examples)) == tokens


@pytest.mark.parametrize("batching", ["packed", "padded"])
@given(examples=pairs, ranks=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_processes_share_the_pairs_in_equally_many_micro_batches(plans, batching, examples, ranks) -> None:
    plan = plans["packed"] if batching == "packed" else plans["packed"].falling_back("")
    shares = [plan.micro_batches(examples, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    counted = [batch for share in shares for batch in share if batch.pairs]
    assert sorted(number for batch in counted for number in numbers(batch)) == list(range(len(examples)))
    for share in shares:
        for batch in share:
            assert row_tokens(batch) > 0  # an uncounted one is run all the same
            assert batch.pairs or batch.tokens == 0


def test_processes_are_balanced_by_cost_when_packed(free) -> None:
    free(AMPLE)
    examples = [example(0, 2, 30, 30), *(example(number, 2, 4, 4) for number in range(1, 7))]
    plan = plan_for(token_budget=64)
    shares = [plan.micro_batches(examples, rank=rank, ranks=2) for rank in range(2)]
    assert [sorted(number for batch in share for number in numbers(batch)) for share in shares] == [
        [0],
        [1, 2, 3, 4, 5, 6],
    ]


def test_a_pair_longer_than_the_budget_is_alone(plans) -> None:
    examples = [example(0, 2, 3, 3), example(1, 10, 15, 15), example(2, 2, 3, 3)]
    batches = plans["packed"].micro_batches(examples)
    assert [numbers(batch) for batch in batches] == [[1], [0, 2]]
    assert row_tokens(batches[0]) == 40


def test_sharing_decides_what_fits_together(plans) -> None:
    examples = [example(number, 10, 2, 2) for number in range(2)]
    assert [row_tokens(batch) for batch in plans["packed"].micro_batches(examples)] == [28]
    assert [row_tokens(batch) for batch in plans["packed-unshared"].micro_batches(examples)] == [24, 24]


def test_padded_pairs_of_similar_length_are_together(free) -> None:
    free(AMPLE)
    examples = [example(number, 1, 1 + length, 2) for number, length in enumerate([6, 1, 5, 2, 0, 3, 4])]
    batches = plan_for(batching="padded", pad_to_multiple_of=4, token_budget=32).micro_batches(examples)
    assert [numbers(batch) for batch in batches] == [[0, 2], [5, 6], [1, 3, 4]]
    assert [tuple(batch.inputs["input_ids"].shape) for batch in batches] == [(4, 8), (4, 8), (6, 4)]
    assert all(torch.equal(batch.inputs["attention_mask"], batch.inputs["input_ids"].ne(PAD)) for batch in batches)


@given(examples=pairs)
@settings(deadline=None, max_examples=50)
def test_padding_stays_within_the_budget(plans, examples) -> None:
    for batch in plans["packed"].falling_back("").micro_batches(examples):
        assert batch.pairs == 1 or row_tokens(batch) <= 30


def test_the_same_examples_are_arranged_the_same_way(plans) -> None:
    examples = [example(number, number % 5, 1 + number % 7, 2) for number in range(12)]
    first, second = (plans["packed"].micro_batches(examples) for _ in range(2))
    assert [numbers(batch) for batch in first] == [numbers(batch) for batch in second]
