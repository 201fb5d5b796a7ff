"""From a row that was read and the scores it was given to a line of ``pairs.jsonl``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from normbt import rewardbench
from normbt.results import EvaluationPair
from normbt.scoring import PairScores
from normbt.stats import pair_outcomes

Row = Mapping[str, Any]


def pair_records(
    rows: Iterable[Row], suite: str, truncated: Sequence[bool], scores: PairScores
) -> list[EvaluationPair]:
    """The lines of ``pairs.jsonl``.

    Args:
        rows: the pairs as they were read.
        suite: ``"rewardbench"`` or ``"pairs"``; decides clusters and, where the data name none, categories.
        truncated: whether either side was cut, for each pair.
        scores: what the model gave.

    Returns:
        One record for each pair, in the same order.
    """
    outcomes = pair_outcomes(scores.chosen, scores.rejected)
    records = []
    for index, row in enumerate(rows):
        prompt, subset = _prompt_text(row), row.get("subset")
        if suite == "rewardbench":
            cluster, section = rewardbench.cluster_id(str(subset), prompt or ""), rewardbench.section_of(str(subset))
        else:
            cluster, section = rewardbench.prompt_cluster(prompt) if prompt else f"pair-{row['id']}", None
        records.append(
            EvaluationPair(
                id=row["id"],
                source=_text_or_none(row.get("source")),
                category=_text_or_none(row.get("category")) or (section and section.lower().replace(" ", "_")),
                subset=_text_or_none(subset),
                cluster_id=cluster,
                score_chosen=_finite_or_none(scores.chosen[index]),
                score_rejected=_finite_or_none(scores.rejected[index]),
                correct=bool(outcomes.correct[index]),
                tie=bool(outcomes.tie[index]),
                distance=_finite_or_none(scores.distance[index]),
                n_tokens_chosen=int(scores.chosen_tokens[index]),
                n_tokens_rejected=int(scores.rejected_tokens[index]),
                truncated=truncated[index],
                n_characters_chosen=_characters(row["chosen"]),
                n_characters_rejected=_characters(row["rejected"]),
            )
        )
    return records


def _prompt_text(row: Row) -> str | None:
    """Text of what both answers reply to; None where prompt and answer are one text."""
    if "prompt" in row:
        return row["prompt"] if isinstance(row["prompt"], str) else _contents(row["prompt"])
    if isinstance(row["chosen"], str):
        return None
    shared = [one for one, other in zip(row["chosen"][:-1], row["rejected"][:-1], strict=False) if one == other]
    return _contents(shared)


def _contents(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(message.get("content") or "" for message in messages)


def _characters(answer: str | Sequence[Mapping[str, Any]]) -> int:
    return len(answer) if isinstance(answer, str) else sum(len(message.get("content") or "") for message in answer)


def _finite_or_none(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None  # counted as non_finite in every score of the summary


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
