"""Token ids to rewards: the one inference loop that every job uses.

Scores do not depend on how rows fall into batches (in float32 up to 1e-5): rows are packed exactly or padded on the
right, the pooled token is the last of each sequence, and the head runs in float32.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normbt.attention import packing_obstacle, pair_attention
from normbt.batching import arrange, balance
from normbt.errors import ConfigError, DataError, ModelError
from normbt.head import capture_hidden, unwrap
from normbt.loading import text_config
from normbt.packing import Batching, TokenPair, build_packed, common_prefix
from normbt.packing_check import check_packing, evaluating
from normbt.processes import ALONE, Processes
from normbt.weights import pair_distance

logger = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = 16_384
PAIRS_IN_MEMORY = 4_096
"""Pairs whose hidden states are held at once: 128 MB at a hidden size of 4096."""

_CHECKED_COUPLES = 2
"""How many couples of the shortest sequences the packing self-check compares with separate ones."""

Progress = Callable[[int], None]
"""Called with the number of sequences done so far."""


class _Batch(NamedTuple):
    """What goes through the model at once: rows, its tokens with the padding, and what makes the model's inputs."""

    rows: list[int]
    tokens: int
    build: Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Scores:
    """Rewards of sequences, in the order of the input.

    Attributes:
        rewards: shape ``(rows,)``, float32.
        hidden: what the head read, shape ``(rows, hidden)``, float32, on the CPU; None unless asked for.
        non_finite: number of rows whose reward is NaN or infinite.
        forwarded: number of distinct sequences, each of which went through the model once.
        batching: ``packed`` or ``padded``.
    """

    rewards: NDArray[np.float32]
    hidden: Tensor | None
    non_finite: int
    forwarded: int
    batching: Batching


@dataclass(frozen=True)
class PairScores:
    """Rewards and representation distances of pairs; every array has shape ``(pairs,)``.

    Attributes:
        chosen: rewards of the preferred answers, float32.
        rejected: rewards of the other answers, float32.
        distance: l2 distance between the two inputs of the head, float32.
        chosen_tokens: length of the preferred sequence in tokens.
        rejected_tokens: length of the other sequence in tokens.
        non_finite: number of rewards that are NaN or infinite.
        batching: ``packed`` or ``padded``.
    """

    chosen: NDArray[np.float32]
    rejected: NDArray[np.float32]
    distance: NDArray[np.float32]
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]
    non_finite: int
    batching: Batching


def score(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    pack: bool = True,
    keep_hidden: bool = False,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Scores:
    """Reward of every sequence of token ids.

    Each distinct sequence goes through the model once. Where packing is exact for the model, sequences with a common
    prefix (the answers to one prompt) are laid out in couples that compute it once, without padding; otherwise batches
    hold padded sequences of similar length. The largest come first, so that too large a batch fails at the start and
    not at the end.

    Several processes share the batches, which are those of one process, so that the rewards are the same but for the
    rounding of the devices. Every process must then call this, with the same sequences and the same model.

    Args:
        model: a reward model that :func:`normbt.head.capture_hidden` can serve, on its device; its mode is restored.
        sequences: token ids of each row, complete (template, BOS and EOS included), not padded.
        batch_tokens: most tokens in a batch, padding included; a longer sequence or couple is a batch of its own.
        pack: use packed batches where they are exact for the model; a self-check on the first couples decides.
        keep_hidden: return the hidden states too.
        progress: called after every batch. Where processes share the work, each takes the others to be as far as it is.
        processes: those that share the work, this one among them.

    Returns:
        Rewards, and the hidden states if asked for; of all sequences in every process.

    Raises:
        ConfigError: ``batch_tokens`` is not positive, or a batch does not fit the device's memory.
        DataError: a sequence is empty.
        ModelError: the model has no usable head, or does not know how to pad.
        NormbtError: one of these was raised in another process.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be at least 1, found {batch_tokens}.")
    distinct: dict[tuple[int, ...], int] = {}
    row_of = [distinct.setdefault(tuple(sequence), len(distinct)) for sequence in sequences]
    if () in distinct:
        raise DataError(f"sequence {row_of.index(distinct[()])} has no tokens: there is nothing to score.")

    ids = list(distinct)
    copies = np.bincount(row_of, minlength=len(ids)) if row_of else np.zeros(0, dtype=np.int64)
    rewards = torch.zeros(len(ids))
    hidden: list[Tensor] = [torch.empty(0)] * len(ids) if keep_hidden else []
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        # One process decides for all, since batches of two layouts would not add up to one set of rows.
        packed = pack and processes.main_only(lambda: _packing_is_exact(model, ids))
        if packed:
            stack.enter_context(pair_attention(model, pooled_only=True))
            batches = list(_packed_batches(ids, batch_tokens))
        else:
            batches = list(_padded_batches(model, ids, batch_tokens))
        captured = stack.enter_context(capture_hidden(model))
        share = balance([batch.tokens for batch in batches], processes.count)[processes.index]
        own = [int(copies[sorted(set(batches[place].rows))].sum()) for place in share]

        def score_share() -> list[tuple[list[int], Tensor, Tensor | None]]:
            scored, done = [], 0
            for place, count in zip(share, own, strict=True):
                _forward(model, batches[place].build(), batch_tokens)
                states = captured.hidden.float().cpu() if keep_hidden else None
                scored.append((batches[place].rows, captured.rewards.float().cpu(), states))
                done += count
                if progress is not None:
                    progress(done * len(row_of) // sum(own))
            return scored

        for part in processes.together(score_share):
            for rows, values, states in part:
                rewards[rows] = values
                if states is not None:
                    for row, state in zip(rows, states, strict=True):
                        hidden[row] = state

    values = rewards.numpy()[row_of] if row_of else np.zeros(0, dtype=np.float32)
    return Scores(
        rewards=values,
        hidden=torch.stack([hidden[index] for index in row_of]) if hidden else None,
        non_finite=int((~np.isfinite(values)).sum()),
        forwarded=len(ids),
        batching="packed" if packed else "padded",
    )


def score_pairs(
    model: nn.Module,
    chosen: Sequence[Sequence[int]],
    rejected: Sequence[Sequence[int]],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> PairScores:
    """Rewards of both answers of every pair, and the distance between their representations.

    Args:
        model: as in :func:`score`.
        chosen: token ids of the preferred sequences, prompt included.
        rejected: token ids of the other sequences.
        batch_tokens: as in :func:`score`.
        progress: called with the number of sequences done so far, two for each pair.
        processes: as in :func:`score`.

    Returns:
        Rewards, distances and lengths.

    Raises:
        ConfigError: as in :func:`score`.
        DataError: a sequence is empty.
        ModelError: as in :func:`score`.
        ValueError: the two sides differ in number.
    """
    pairs = len(chosen)
    if pairs != len(rejected):
        raise ValueError(f"wanted as many chosen as rejected sequences, found {pairs} and {len(rejected)}")
    rewards, distances, non_finite = np.zeros((2, pairs), dtype=np.float32), np.zeros(pairs, dtype=np.float32), 0
    batching: Batching = "padded"
    for start in range(0, pairs, PAIRS_IN_MEMORY):
        part = slice(start, min(start + PAIRS_IN_MEMORY, pairs))
        scores = score(
            model,
            [*chosen[part], *rejected[part]],
            batch_tokens=batch_tokens,
            keep_hidden=True,
            progress=progress and _counting_from(2 * start, progress),
            processes=processes,
        )
        assert scores.hidden is not None
        rewards[:, part] = scores.rewards.reshape(2, -1)
        distances[part] = pair_distance(*scores.hidden.chunk(2)).numpy()
        non_finite += scores.non_finite
        batching = scores.batching
    return PairScores(
        chosen=rewards[0],
        rejected=rewards[1],
        distance=distances,
        chosen_tokens=np.array([len(row) for row in chosen], dtype=np.int64),
        rejected_tokens=np.array([len(row) for row in rejected], dtype=np.int64),
        non_finite=non_finite,
        batching=batching,
    )


def _packing_is_exact(model: nn.Module, ids: Sequence[tuple[int, ...]]) -> bool:
    if len(ids) < 2 or packing_obstacle(model) is not None:
        return False
    _pad_token_id(model, needed=True)  # the check pads its rows
    checked = sorted(ids, key=len)[: 2 * _CHECKED_COUPLES]
    couples = [TokenPair(first, second, common_prefix(first, second)) for first, second in pairwise(checked)]
    check = check_packing(model, couples, dtype=next(model.parameters()).dtype)
    if not check.passed:
        logger.warning("%s Batches are padded instead.", check.summary())
    return check.passed


def _couples(ids: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Positions two by two, with long common prefixes inside a couple; an odd one is coupled with itself."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    shared = [common_prefix(ids[first], ids[second]) for first, second in pairwise(order)]
    couples, single = [], []
    place = 0
    while place < len(order):
        with_next = shared[place] if place < len(shared) else -1
        # A neighbour that has more in common with its other neighbour is left to that one.
        if with_next >= 0 and with_next >= (shared[place + 1] if place + 1 < len(shared) else 0):
            couples.append((order[place], order[place + 1]))
            place += 2
        else:
            single.append(order[place])
            place += 1
    couples += zip(single[::2], single[1::2], strict=False)
    return couples + ([(single[-1], single[-1])] if len(single) % 2 else [])


def _packed_batches(ids: Sequence[tuple[int, ...]], batch_tokens: int) -> Iterator[_Batch]:
    """Couples in one row; the rows of each batch are the first ones, then the second ones."""
    couples = _couples(ids)
    pairs = [TokenPair(ids[i], ids[j], common_prefix(ids[i], ids[j])) for i, j in couples]
    tokens = [len(pair.chosen_ids) + len(pair.rejected_ids) - pair.prefix_length for pair in pairs]
    for batch in arrange(tokens, batch_tokens):
        rows = [couples[place][0] for place in batch] + [couples[place][1] for place in batch]
        in_batch = [pairs[place] for place in batch]
        yield _Batch(rows, sum(tokens[place] for place in batch), partial(_packed_inputs, in_batch))


def _packed_inputs(pairs: Sequence[TokenPair]) -> Mapping[str, Any]:
    return build_packed(pairs).inputs


def _padded_batches(model: nn.Module, ids: Sequence[tuple[int, ...]], batch_tokens: int) -> Iterator[_Batch]:
    """Rows by length, longest first, as many in a batch as its tokens allow after padding."""
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    start = 0
    while start < len(order):
        longest = len(ids[order[start]])
        rows = order[start : start + max(1, batch_tokens // longest)]
        start += len(rows)
        build = partial(_padded_inputs, [ids[row] for row in rows], _pad_token_id(model, needed=len(rows) > 1))
        yield _Batch(rows, len(rows) * longest, build)


def _padded_inputs(rows: Sequence[tuple[int, ...]], pad: int) -> Mapping[str, Any]:
    """The model's inputs of rows that are filled up on the right; the first is the longest."""
    input_ids = torch.full((len(rows), len(rows[0])), pad, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = torch.as_tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def _forward(model: nn.Module, inputs: Mapping[str, Any], batch_tokens: int) -> None:
    """Run the model on a batch; what it gave is in the capture around this call."""
    device = next(model.parameters()).device
    try:
        model(**{name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()})
    except torch.OutOfMemoryError as error:
        rows, longest = inputs["input_ids"].shape
        raise ConfigError(
            f"A batch of {rows} x {longest} tokens does not fit the memory of {device}. "
            f"Lower batch_tokens (now {batch_tokens}) or max_length."
        ) from error


def _pad_token_id(model: nn.Module, *, needed: bool) -> int:
    """A token id to fill rows up with. It is masked out, so any id the embedding knows will do."""
    pad = getattr(text_config(unwrap(model)), "pad_token_id", None)
    if pad is None and needed:
        # Transformers' own forward refuses a batch then, before anybody looks at the mask.
        raise ModelError(
            f"{type(unwrap(model)).__name__} has no pad_token_id in its config, so it refuses batches of several rows. "
            "Set model.config.pad_token_id to the tokenizer's pad token."
        )
    return pad if pad is not None and pad >= 0 else 0


def _counting_from(start: int, progress: Progress) -> Progress:
    return lambda done: progress(start + done)
