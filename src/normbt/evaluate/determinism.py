"""Do the rewards depend on what shares a batch? A sample of the answers is scored again, one sequence at a time."""

from collections.abc import Sequence

import numpy as np

from normbt.evaluate.answers import Answers, Side
from normbt.inference import RewardModel
from normbt.results import Determinism, RescoredAnswer
from normbt.scoring import score
from normbt.suites import Item

SAMPLED_RECORDS = 100
"""Records whose answers are scored again: enough to see a flip rate of one percent, and seconds of work."""


def check_determinism(
    scorer: RewardModel, items: Sequence[Item], answers: Answers, *, seed: int
) -> tuple[Determinism, list[RescoredAnswer]]:
    """Score the answers of a sample of the records alone and compare.

    Args:
        scorer: the model that gave the rewards.
        items: what was scored.
        answers: the rewards from batches.
        seed: of the sample.

    Returns:
        The comparison, and both rewards of each answer of the sample.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(items))[:SAMPLED_RECORDS])
    rows: list[RescoredAnswer] = []
    differences: list[float] = []
    comparisons = flips = changed = 0
    for position in drawn.tolist():
        batched, alone = [], []
        for name, side in (("chosen", answers.chosen), ("rejected", answers.rejected)):
            place = side.of(position)
            before, after = side.rewards[place].astype(np.float64), _alone(scorer, side, place)
            batched.append(before)
            alone.append(after)
            both = np.isfinite(before) & np.isfinite(after)
            changed += int((np.isfinite(before) != np.isfinite(after)).sum())
            differences += np.abs(before - after)[both].tolist()
            for index, (first, second) in enumerate(zip(before, after, strict=True)):
                answer = name if len(before) == 1 else f"{name}[{index}]"
                rows.append(
                    RescoredAnswer(
                        id=items[position].id, answer=answer, score=_or_none(first), score_alone=_or_none(second)
                    )
                )
        orders = [np.sign(chosen[:, None] - rejected[None, :]) for chosen, rejected in (batched, alone)]
        comparisons += orders[0].size
        # Two comparisons with NaN are the same: `changed` counts what became a number.
        flips += int((np.nan_to_num(orders[0], nan=2.0) != np.nan_to_num(orders[1], nan=2.0)).sum())
    found = Determinism(
        records=len(drawn),
        answers=len(rows),
        largest_difference=max(differences, default=0.0),
        mean_difference=float(np.mean(differences)) if differences else 0.0,
        comparisons=comparisons,
        order_flips=flips,
        non_finite_changed=changed,
    )
    return found, rows


def _alone(scorer: RewardModel, side: Side, place: slice) -> np.ndarray:
    rewards = [score(scorer.model, [ids], batch_tokens=len(ids), pack=False).rewards[0] for ids in side.ids[place]]
    return np.array(rewards, dtype=np.float64)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
