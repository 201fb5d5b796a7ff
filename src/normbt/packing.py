"""Pairs as the rows of one forward: packed with their common prefix stored once, or padded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from normbt.errors import DataError

Batching = Literal["packed", "packed-unshared", "padded"]
"""Layouts of pairs: a common prefix stored once, both sequences whole, or a padded row for each sequence."""

_KERNEL_LENGTH_STEP = 256
"""Longest lengths are rounded up to this, so that compiled code is not specialised on each batch."""


class TokenPair(NamedTuple):
    """The two token sequences of a pair, and how many leading tokens they may share.

    Attributes:
        chosen_ids: prompt and preferred answer, at least one token.
        rejected_ids: prompt and other answer, at least one token.
        prefix_length: tokens at the start that are equal in both, from 0 to the common prefix.
    """

    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    prefix_length: int


class PairLengths(NamedTuple):
    """Tokens of one packed pair ``[prefix | chosen | rejected]``; the answers count only their own tokens."""

    prefix: int
    chosen: int
    rejected: int

    @property
    def tokens(self) -> int:
        """Tokens of the pair in the row."""
        return sum(self)

    @property
    def queries(self) -> tuple[int, int]:
        """Queries of its two segments."""
        return self.prefix + self.chosen, self.rejected

    @property
    def keys(self) -> tuple[int, int]:
        """Keys of its two segments."""
        return self.prefix + self.chosen, self.prefix + self.rejected


@dataclass(frozen=True)
class PackedLayout:
    """Who sees whom in a packed row: every branch is one bottom-right-causal segment of queries and keys.

    A pair gives two segments. The queries of the first are prefix and chosen, those of the second are rejected alone;
    the keys are prefix and chosen, prefix and rejected, gathered from the row by ``kv_index``. Queries are the row
    itself, in order.

    Attributes:
        pairs: tokens of each pair, in row order.
        cu_q: where each segment's queries start and end, shape ``(2 * pairs + 1,)``, int32.
        cu_k: where each segment's gathered keys start and end, shape ``(2 * pairs + 1,)``, int32.
        kv_index: row position of each gathered key, shape ``(keys,)``, int64.
        last_chosen: row position of the last token of each chosen sequence, shape ``(pairs,)``, int64.
        last_rejected: the same for the rejected sequence.
        max_q: upper bound of the queries of a segment, known without asking the device.
        max_k: upper bound of the keys of a segment.
        query_index: row position of each query, shape ``(queries,)``, int64; None when the whole row asks.
        masks: additive masks already built for this row, kept so that all layers use the same ones.
    """

    pairs: tuple[PairLengths, ...]
    cu_q: Tensor
    cu_k: Tensor
    kv_index: Tensor
    last_chosen: Tensor
    last_rejected: Tensor
    max_q: int
    max_k: int
    query_index: Tensor | None = None
    masks: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(pair.tokens for pair in self.pairs)

    @property
    def query_lengths(self) -> list[int]:
        """Queries of each segment."""
        if self.query_index is not None:
            return [1] * (2 * len(self.pairs))
        return [length for pair in self.pairs for length in pair.queries]

    @property
    def key_lengths(self) -> list[int]:
        """Gathered keys of each segment."""
        return [length for pair in self.pairs for length in pair.keys]

    def pooled(self) -> "PackedLayout":
        """The same keys, asked for by the last token of each sequence alone; all that the head reads.

        Returns:
            A layout with one query a segment, at ``query_index``.

        Example:
            >>> layout = build_packed([TokenPair([5, 6, 7], [5, 6, 8, 9], 2)]).inputs["pair_layout"].pooled()
            >>> layout.query_index.tolist(), layout.cu_q.tolist(), layout.query_lengths
            ([2, 4], [0, 1, 2], [1, 1])
        """
        query_index = torch.stack([self.last_chosen, self.last_rejected], dim=1).flatten()
        cu_q = torch.arange(len(query_index) + 1, dtype=torch.int32, device=query_index.device)
        return replace(self, cu_q=cu_q, max_q=1, query_index=query_index)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedLayout":
        """The same layout on a device; Accelerate calls this as it does of tensors."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self._tensors().items()}
        return replace(self, **moved, masks={})

    def pin_memory(self) -> "PackedLayout":
        """The same layout in page-locked memory; data loaders call this as they do of tensors."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        names = ("cu_q", "cu_k", "kv_index", "last_chosen", "last_rejected", "query_index")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class PairBatch:
    """Pairs ready for one forward, whichever way they are laid out: ``model(**batch.inputs)``.

    Inside ``capture_hidden`` that call gives ``2 * pairs`` rewards: all chosen first, then all rejected.

    Attributes:
        inputs: keywords of the model's forward.
        pairs: number of pairs.
        unique_tokens: tokens when every common prefix counts once and padding not at all; equal for all layouts.
        processed_tokens: tokens the model is run on.
    """

    inputs: dict[str, Any]
    pairs: int
    unique_tokens: int
    processed_tokens: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PairBatch":
        """The same batch on a device."""
        moved = {
            name: value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
            for name, value in self.inputs.items()
        }
        return replace(self, inputs=moved)

    def pin_memory(self) -> "PairBatch":
        """The same batch in page-locked memory."""
        pinned = {
            name: value.pin_memory() if hasattr(value, "pin_memory") else value for name, value in self.inputs.items()
        }
        return replace(self, inputs=pinned)


def common_prefix(chosen_ids: Sequence[int], rejected_ids: Sequence[int]) -> int:
    """Tokens two sequences share at their start, leaving each at least one token of its own.

    Args:
        chosen_ids: tokens of one sequence, at least one.
        rejected_ids: tokens of the other, at least one.

    Returns:
        Length of the longest common prefix, at most ``min(len(chosen_ids), len(rejected_ids)) - 1``.

    Example:
        >>> common_prefix([1, 2, 3], [1, 2, 9, 9]), common_prefix([1, 2], [1, 2, 3])
        (2, 1)
    """
    longest = max(0, min(len(chosen_ids), len(rejected_ids)) - 1)
    differing = (i for i in range(longest) if chosen_ids[i] != rejected_ids[i])
    return next(differing, longest)


def build_packed(pairs: Sequence[TokenPair], *, share: bool = True) -> PairBatch:
    """Lay pairs out in one row, each as ``[shared prefix | rest of chosen | rest of rejected]``, without padding.

    The positions of the rejected rest continue after the prefix, so every token has the position it would have alone.
    The row is exact only under :func:`normbt.attention.pair_attention`.

    Args:
        pairs: at least one pair. A prefix that would leave an answer without a token of its own is cut by one.
        share: store the common prefix once; otherwise both sequences stay whole, one after the other.

    Returns:
        The batch; ``inputs["pair_layout"]`` is its :class:`PackedLayout`.

    Raises:
        DataError: there is no pair, a sequence is empty, or a prefix is not common to both sequences.

    Example:
        >>> batch = build_packed([TokenPair([5, 6, 7], [5, 6, 8, 9], 2)])
        >>> batch.inputs["input_ids"], batch.inputs["position_ids"]
        (tensor([[5, 6, 7, 8, 9]]), tensor([[0, 1, 2, 2, 3]]))
        >>> layout = batch.inputs["pair_layout"]
        >>> layout.cu_q.tolist(), layout.cu_k.tolist(), layout.kv_index.tolist()
        ([0, 3, 5], [0, 3, 7], [0, 1, 2, 0, 1, 3, 4])
    """
    _check(pairs)
    ids: list[int] = []
    positions: list[int] = []
    kv_index: list[int] = []
    last_chosen: list[int] = []
    last_rejected: list[int] = []
    lengths: list[PairLengths] = []
    for pair in pairs:
        shared = _shareable(pair) if share else 0
        chosen, rejected = len(pair.chosen_ids), len(pair.rejected_ids)
        start, split = len(ids), len(ids) + chosen
        ids += pair.chosen_ids
        ids += pair.rejected_ids[shared:]
        end = len(ids)
        positions += range(chosen)
        positions += range(shared, rejected)
        kv_index += range(start, split)
        kv_index += range(start, start + shared)
        kv_index += range(split, end)
        last_chosen.append(split - 1)
        last_rejected.append(end - 1)
        lengths.append(PairLengths(shared, chosen - shared, rejected - shared))

    query_lengths = [length for pair in lengths for length in pair.queries]
    key_lengths = [length for pair in lengths for length in pair.keys]
    layout = PackedLayout(
        pairs=tuple(lengths),
        cu_q=_cumulative(query_lengths),
        cu_k=_cumulative(key_lengths),
        kv_index=torch.tensor(kv_index),
        last_chosen=torch.tensor(last_chosen),
        last_rejected=torch.tensor(last_rejected),
        max_q=_rounded_up(max(query_lengths)),
        max_k=_rounded_up(max(key_lengths)),
    )
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        # The layout says who sees whom. Without a mask, Transformers would read the restarting positions as separate
        # documents (and wait for the device to find them); one of four axes it hands on as it is. Being empty, it
        # makes any attention but ours fail instead of ignoring the layout.
        "attention_mask": torch.ones(1, 1, 0, 0, dtype=torch.bool),
        "use_cache": False,
        "pair_layout": layout,
    }
    return PairBatch(inputs, len(pairs), _unique_tokens(pairs), len(ids))


def build_padded(pairs: Sequence[TokenPair], pad_token_id: int, *, pad_to_multiple_of: int | None = None) -> PairBatch:
    """Lay pairs out as ``2 * pairs`` rows, chosen first, padded on the right to the longest: right for every model.

    Args:
        pairs: at least one pair.
        pad_token_id: id that fills the rows; it is masked, so any id is exact.
        pad_to_multiple_of: the rows' length becomes a multiple of this many tokens.

    Returns:
        The batch, with ``input_ids`` and ``attention_mask`` of shape ``(2 * pairs, longest)``.

    Raises:
        DataError: as :func:`build_packed`.

    Example:
        >>> batch = build_padded([TokenPair([5, 6, 7], [5, 8], 1)], pad_token_id=0)
        >>> batch.inputs["input_ids"]
        tensor([[5, 6, 7],
                [5, 8, 0]])
        >>> batch.unique_tokens, batch.processed_tokens
        (4, 6)
    """
    _check(pairs)
    rows = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    multiple = pad_to_multiple_of or 1
    longest = -(-max(map(len, rows)) // multiple) * multiple
    inputs = {
        "input_ids": torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }
    return PairBatch(inputs, len(pairs), _unique_tokens(pairs), len(rows) * longest)


def as_token_pair(row: Mapping[str, Any]) -> TokenPair:
    """The pair in an encoded row with ``chosen_ids``, ``rejected_ids`` and ``prefix_length``."""
    return TokenPair(row["chosen_ids"], row["rejected_ids"], row["prefix_length"])


def _check(pairs: Sequence[TokenPair]) -> None:
    if not pairs:
        raise DataError("a batch needs at least one pair, got none.")
    for number, pair in enumerate(pairs):
        if not pair.chosen_ids or not pair.rejected_ids:
            empty = "rejected" if pair.chosen_ids else "chosen"
            raise DataError(f"pair {number} of the batch: the {empty} sequence has no token. Drop the pair.")
        shared = pair.prefix_length
        if shared < 0 or list(pair.chosen_ids[:shared]) != list(pair.rejected_ids[:shared]):
            raise DataError(
                f"pair {number} of the batch: prefix_length is {shared}, but the two sequences have "
                f"{common_prefix(pair.chosen_ids, pair.rejected_ids)} leading tokens in common. Encode the pairs again."
            )


def _shareable(pair: TokenPair) -> int:
    return min(pair.prefix_length, len(pair.chosen_ids) - 1, len(pair.rejected_ids) - 1)


def _unique_tokens(pairs: Sequence[TokenPair]) -> int:
    return sum(len(pair.chosen_ids) + len(pair.rejected_ids) - _shareable(pair) for pair in pairs)


def _cumulative(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def _rounded_up(length: int) -> int:
    return -(-length // _KERNEL_LENGTH_STEP) * _KERNEL_LENGTH_STEP
