"""Rewards of the answers of every item: each distinct prompt with its answer goes through the model once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normbt.inference import RewardModel
from normbt.processes import Processes
from normbt.scoring import score, score_pairs
from normbt.suites import Item

Progress = Callable[[int, int], None]
"""Called with the number of sequences done and in all."""


@dataclass(frozen=True)
class Side:
    """The right or the wrong answers of every item, in the order of the items; one entry for each answer.

    Attributes:
        ids: token ids of the answer after its prompt.
        rewards: what the model gave, float32.
        truncated: whether the sequence was cut.
        starts: where the answers of each item begin, and behind the last item where they all end.
    """

    ids: list[list[int]]
    rewards: NDArray[np.float32]
    truncated: list[bool]
    starts: NDArray[np.int64]

    def of(self, position: int) -> slice:
        """The place of the answers of one item."""
        return slice(int(self.starts[position]), int(self.starts[position + 1]))


@dataclass(frozen=True)
class Answers:
    """The answers of every item, scored.

    Attributes:
        chosen: the right ones.
        rejected: the wrong ones.
        distance: of the representations of a pair, shape ``(items,)``; None where items have several answers.
        batching: ``packed`` or ``padded``.
    """

    chosen: Side
    rejected: Side
    distance: NDArray[np.float32] | None
    batching: str


def score_items(
    scorer: RewardModel,
    items: Sequence[Item],
    *,
    in_pairs: bool,
    batch_tokens: int,
    processes: Processes,
    progress: Progress | None = None,
) -> Answers:
    """Score every answer of every item.

    Args:
        scorer: the model, its template decided.
        items: what to score.
        in_pairs: every item is one pair, whose distance is wanted too.
        batch_tokens: most tokens of a batch.
        processes: those that share the batches.
        progress: called after every batch.

    Returns:
        The rewards, with the token ids they belong to.
    """
    sides = []
    for name in ("chosen", "rejected"):
        answers = [getattr(item, name) for item in items]
        starts = np.cumsum([0, *(len(texts) for texts in answers)])
        rows: list[Any] = [
            text if item.prompt is None else (item.prompt, text)
            for item, texts in zip(items, answers, strict=True)
            for text in texts
        ]
        sides.append((*scorer.encode(rows), starts))
    (chosen_ids, chosen_cut, chosen_starts), (rejected_ids, rejected_cut, rejected_starts) = sides
    total = len(chosen_ids) + len(rejected_ids)
    tell = (lambda done: progress(done, total)) if progress else None
    settings: dict[str, Any] = {"batch_tokens": batch_tokens, "progress": tell, "processes": processes}
    if in_pairs:
        pairs = score_pairs(scorer.model, chosen_ids, rejected_ids, **settings)
        chosen, rejected, distance, batching = pairs.chosen, pairs.rejected, pairs.distance, pairs.batching
    else:
        scores = score(scorer.model, [*chosen_ids, *rejected_ids], **settings)
        chosen, rejected = np.split(scores.rewards, [len(chosen_ids)])
        distance, batching = None, scores.batching
    return Answers(
        chosen=Side(chosen_ids, chosen, chosen_cut, chosen_starts),
        rejected=Side(rejected_ids, rejected, rejected_cut, rejected_starts),
        distance=distance,
        batching=batching,
    )
