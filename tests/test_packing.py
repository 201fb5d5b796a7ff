"""Builders of pair batches: every token where it would be alone, every mistake named."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normbt.errors import DataError
from normbt.packing import PackedLayout, TokenPair, as_token_pair, build_packed, build_padded, common_prefix

ids = st.lists(st.integers(1, 3), min_size=1, max_size=8)
token_pairs = st.builds(lambda chosen, rejected: TokenPair(chosen, rejected, common_prefix(chosen, rejected)), ids, ids)
batches = st.lists(token_pairs, min_size=1, max_size=5)


def seen_by_last_tokens(batch: dict) -> list[tuple[list[int], list[int]]]:
    """Read each branch back out of the layout alone: the tokens and positions of its keys."""
    layout: PackedLayout = batch["pair_layout"]
    keys = layout.kv_index.split(layout.cu_k.diff().tolist())
    return [(batch["input_ids"][0, key].tolist(), batch["position_ids"][0, key].tolist()) for key in keys]


@given(batches, st.booleans())
def test_each_branch_holds_exactly_its_sequence_at_its_own_positions(pairs: list[TokenPair], share: bool) -> None:
    batch = build_packed(pairs, share=share)
    wanted = [list(sequence) for pair in pairs for sequence in (pair.chosen_ids, pair.rejected_ids)]
    assert seen_by_last_tokens(batch.inputs) == [(sequence, list(range(len(sequence)))) for sequence in wanted]


@given(batches, st.booleans())
def test_queries_cover_the_row_once_and_end_where_their_keys_end(pairs: list[TokenPair], share: bool) -> None:
    batch = build_packed(pairs, share=share)
    layout: PackedLayout = batch.inputs["pair_layout"]
    assert layout.cu_q[-1] == batch.processed_tokens == layout.tokens == batch.inputs["input_ids"].shape[1]
    last_queries = layout.cu_q[1:].long() - 1
    assert torch.equal(layout.kv_index[layout.cu_k[1:].long() - 1], last_queries)
    assert torch.equal(last_queries.view(-1, 2), torch.stack([layout.last_chosen, layout.last_rejected], dim=1))
    assert layout.query_lengths == layout.cu_q.diff().tolist()
    assert layout.key_lengths == layout.cu_k.diff().tolist()
    assert all(length >= 1 for length in layout.query_lengths)


@given(batches)
def test_sharing_stores_a_prefix_once(pairs: list[TokenPair]) -> None:
    shared, unshared = build_packed(pairs), build_packed(pairs, share=False)
    assert shared.processed_tokens == shared.unique_tokens == unshared.unique_tokens
    prefixes = sum(common_prefix(pair.chosen_ids, pair.rejected_ids) for pair in pairs)
    assert unshared.processed_tokens - shared.processed_tokens == prefixes


@given(batches)
def test_padded_rows_are_the_sequences_chosen_first(pairs: list[TokenPair]) -> None:
    batch = build_padded(pairs, pad_token_id=1)  # also a real token here: the mask tells them apart
    rows = [
        row[mask.bool()].tolist()
        for row, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True)
    ]
    assert rows == [list(pair.chosen_ids) for pair in pairs] + [list(pair.rejected_ids) for pair in pairs]
    assert batch.processed_tokens == batch.inputs["input_ids"].numel()
    assert batch.unique_tokens == build_packed(pairs).processed_tokens


@given(ids, ids)
def test_common_prefix_is_the_longest_that_leaves_a_token_to_both(chosen: list[int], rejected: list[int]) -> None:
    length = common_prefix(chosen, rejected)
    assert chosen[:length] == rejected[:length]
    longest = min(len(chosen), len(rejected)) - 1
    assert length == longest or chosen[length] != rejected[length]


def test_a_prefix_that_is_a_whole_answer_leaves_it_one_token() -> None:
    batch = build_packed([TokenPair([1, 2], [1, 2, 3], 2)])
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 2, 3]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 1, 2]]


def test_longest_lengths_are_round_numbers_above_the_true_ones() -> None:
    layout = build_packed([TokenPair([1] * 300 + [2], [1] * 300 + [3] * 5, 300)]).inputs["pair_layout"]
    assert (layout.max_q, layout.max_k) == (512, 512)
    layout = build_packed([TokenPair([1] * 256, [2], 0)]).inputs["pair_layout"]
    assert (layout.max_q, layout.max_k) == (256, 256)


def test_a_batch_moves_whole_and_forgets_its_masks() -> None:
    batch = build_packed([TokenPair([1, 2], [1, 3], 1)])
    batch.inputs["pair_layout"].masks["built"] = torch.zeros(1)
    moved = batch.to("meta")
    layout = moved.inputs["pair_layout"]
    tensors = [value for value in moved.inputs.values() if isinstance(value, torch.Tensor)]
    tensors += [layout.cu_q, layout.cu_k, layout.kv_index, layout.last_chosen, layout.last_rejected]
    assert len(tensors) == 8
    assert all(tensor.is_meta for tensor in tensors)
    assert layout.masks == {}
    assert layout.pairs == batch.inputs["pair_layout"].pairs


def test_an_encoded_row_becomes_a_pair() -> None:
    row = {"chosen_ids": [1, 2], "rejected_ids": [1, 3], "prefix_length": 1, "margin": 0.5}
    assert as_token_pair(row) == TokenPair([1, 2], [1, 3], 1)


@pytest.mark.parametrize("build", [build_packed, lambda pairs: build_padded(pairs, 0)], ids=["packed", "padded"])
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one pair"),
        ([TokenPair([1], [], 0)], "pair 0 .* rejected sequence has no token"),
        ([TokenPair([1], [2], 0), TokenPair([], [1], 0)], "pair 1 .* chosen sequence has no token"),
        ([TokenPair([1, 2, 3], [1, 9, 3], 2)], "prefix_length is 2, .* have 1 leading"),
        ([TokenPair([1, 2, 3], [1, 9, 3], -1)], "prefix_length is -1"),
    ],
)
def test_what_is_not_a_batch_is_refused(build, pairs: list[TokenPair], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(pairs)
