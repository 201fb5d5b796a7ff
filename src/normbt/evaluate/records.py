"""From items and the rewards of their answers to the lines of ``pairs.jsonl`` or ``prompts.jsonl``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normbt.evaluate.answers import Answers, Side
from normbt.results import EvaluationPair, EvaluationPrompt
from normbt.suites import Item, PairSuite, PromptSuite, Record, Suite


def make_records(suite: Suite, items: Sequence[Item], answers: Answers) -> list[Record]:
    """One record for each item, in the same order.

    Args:
        suite: decides what counts as right.
        items: what was scored.
        answers: what the model gave.

    Returns:
        Pairs for a suite of pairs, prompts for one of several answers.
    """
    if isinstance(suite, PairSuite):
        return _pairs(suite, items, answers)
    assert isinstance(suite, PromptSuite)
    return _prompts(suite, items, answers)


def _pairs(suite: PairSuite, items: Sequence[Item], answers: Answers) -> list[Record]:
    chosen, rejected, distance = answers.chosen, answers.rejected, answers.distance
    assert distance is not None
    outcomes = suite.outcomes(items, chosen.rewards.astype(np.float64), rejected.rewards.astype(np.float64))
    return [
        EvaluationPair(
            id=item.id,
            source=item.source,
            category=item.category,
            subset=item.subset,
            cluster_id=item.cluster_id,
            score_chosen=_finite_or_none(chosen.rewards[index]),
            score_rejected=_finite_or_none(rejected.rewards[index]),
            correct=bool(outcomes.correct[index]),
            tie=bool(outcomes.tie[index]),
            distance=_finite_or_none(distance[index]),
            n_tokens_chosen=len(chosen.ids[index]),
            n_tokens_rejected=len(rejected.ids[index]),
            truncated=chosen.truncated[index] or rejected.truncated[index],
            n_characters_chosen=_characters(item.chosen[0]),
            n_characters_rejected=_characters(item.rejected[0]),
        )
        for index, item in enumerate(items)
    ]


def _prompts(suite: PromptSuite, items: Sequence[Item], answers: Answers) -> list[Record]:
    records: list[Record] = []
    for index, item in enumerate(items):
        chosen, rejected = answers.chosen.of(index), answers.rejected.of(index)
        record = EvaluationPrompt(
            id=item.id,
            source=item.source,
            category=item.category,
            subset=item.subset,
            cluster_id=item.cluster_id,
            scores_chosen=_rewards(answers.chosen, chosen),
            scores_rejected=_rewards(answers.rejected, rejected),
            credit=0.0,
            tie=False,
            n_tokens_chosen=[len(ids) for ids in answers.chosen.ids[chosen]],
            n_tokens_rejected=[len(ids) for ids in answers.rejected.ids[rejected]],
            truncated_chosen=answers.chosen.truncated[chosen],
            truncated_rejected=answers.rejected.truncated[rejected],
            n_characters_chosen=[_characters(text) for text in item.chosen],
            n_characters_rejected=[_characters(text) for text in item.rejected],
        )
        verdicts = suite.verdicts(record)
        record["credit"] = float(np.mean([verdict.credit for verdict in verdicts]))
        record["tie"] = any(verdict.tie for verdict in verdicts)
        records.append(record)
    return records


def _rewards(side: Side, place: slice) -> list[float | None]:
    return [_finite_or_none(reward) for reward in side.rewards[place]]


def _characters(answer: str | Sequence[Mapping[str, Any]]) -> int:
    return len(answer) if isinstance(answer, str) else sum(len(message.get("content") or "") for message in answer)


def _finite_or_none(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None  # counted as non_finite in every score of the summary
