"""Some pairs through the model: rewards, distances, gradient norms, and what people read of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normbt.bias import prediction_error
from normbt.diagnose.texts import Row, pair_texts, place_of, word_similarity
from normbt.inference import RewardModel
from normbt.norm_meter import Asked, NormMeter, make_norm_meter
from normbt.packing import TokenPair, common_prefix
from normbt.results import DiagnosisPair
from normbt.scoring import Scores, score
from normbt.stats import pair_outcomes
from normbt.weights import pair_distance


@dataclass
class ChunkDiagnosis:
    """Diagnoses pairs chunk by chunk, all in the same way.

    Attributes:
        model: the model and how it reads text.
        method: how gradient norms are to be computed; the first chunk decides.
        batch_tokens: most tokens of a batch of the forward pass.
        gradient_tokens: most tokens of a batch of the backward pass.
    """

    model: RewardModel
    method: Asked
    batch_tokens: int
    gradient_tokens: int
    _meter: NormMeter | None = field(default=None, init=False)

    def run(self, rows: Sequence[Row]) -> tuple[dict[str, Any], list[DiagnosisPair]]:
        """The header and the records of a chunk; weights and what follows from them wait for mu, and are None.

        Raises:
            ConfigError: a batch does not fit the memory.
            DataError: a row cannot be encoded.
            ModelError: the model cannot be measured as asked for.
        """
        chosen, rejected, truncated = self._encode(rows)
        scores = score(self.model.model, [*chosen, *rejected], batch_tokens=self.batch_tokens, keep_hidden=True)
        pairs = [TokenPair(one, other, common_prefix(one, other)) for one, other in zip(chosen, rejected, strict=True)]
        if self._meter is None:
            self._meter = make_norm_meter(
                self.model.model, pairs, method=self.method, batch_tokens=self.gradient_tokens
            )
        meter = self._meter
        norms = meter.norms(pairs)
        numbers = _numbers(scores)
        numbers |= {
            "gradient_norm": norms.full,
            "gradient_norm_head": norms.head,
            "gradient_norm_backbone": norms.backbone,
            "update_bt": numbers["error"] * norms.full,
        }
        header = {
            "pairs": len(rows),
            "method": meter.method,
            "reason": meter.reason,
            "self_check": meter.check,
            "gradient_tokens": meter.batch_tokens,
            "parameters": meter.parameters,
            "batching": scores.batching,
        }
        return header, list(_records(rows, scores, numbers, pairs, truncated))

    def _encode(self, rows: Sequence[Row]) -> tuple[list[list[int]], list[list[int]], list[bool]]:
        sides = []
        for name in ("chosen", "rejected"):
            texts = [(row["prompt"], row[name]) if "prompt" in row else row[name] for row in rows]
            sides.append(self.model.encode(texts))
        (chosen, chosen_cut), (rejected, rejected_cut) = sides
        return chosen, rejected, [a or b for a, b in zip(chosen_cut, rejected_cut, strict=True)]


def _numbers(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Everything that follows from rewards and hidden states, in float64, NaN where it is not a number."""
    assert scores.hidden is not None
    hidden = scores.hidden.chunk(2)
    chosen, rejected = scores.rewards.astype(np.float64).reshape(2, -1)
    with np.errstate(invalid="ignore"):  # the difference of two infinities is not a number, and is counted as such
        margin = chosen - rejected
    return {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "margin_reward": margin,
        "error": prediction_error(margin),
        "distance": pair_distance(*hidden).double().numpy(),
        "distance_relative": pair_distance(*hidden, kind="relative").double().numpy(),
        "distance_cosine": pair_distance(*hidden, kind="cosine").double().numpy(),
    }


def _records(
    rows: Sequence[Row],
    scores: Scores,
    numbers: dict[str, NDArray[np.float64]],
    pairs: Sequence[TokenPair],
    truncated: Sequence[bool],
) -> Iterable[DiagnosisPair]:
    outcomes = pair_outcomes(*scores.rewards.reshape(2, -1))
    for index, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        texts = pair_texts(row)
        place = place_of(row, texts.prompt)
        found = {name: _finite_or_none(values[index]) for name, values in numbers.items()}
        yield DiagnosisPair(
            id=row["id"],
            source=place.source,
            category=place.category,
            subset=place.subset,
            cluster_id=place.cluster_id,
            prompt=texts.prompt,
            chosen=texts.chosen,
            rejected=texts.rejected,
            reward_chosen=found["reward_chosen"],
            reward_rejected=found["reward_rejected"],
            margin_reward=found["margin_reward"],
            error=found["error"],
            misranked=not outcomes.correct[index],
            tie=bool(outcomes.tie[index]),
            distance=found["distance"],
            distance_relative=found["distance_relative"],
            distance_cosine=found["distance_cosine"],
            weight=None,
            gradient_norm=found["gradient_norm"],
            gradient_norm_head=found["gradient_norm_head"],
            gradient_norm_backbone=found["gradient_norm_backbone"],
            update_bt=found["update_bt"],
            update_normbt=None,
            n_tokens_chosen=len(pair.chosen_ids),
            n_tokens_rejected=len(pair.rejected_ids),
            similarity=word_similarity(texts.chosen, texts.rejected),
            truncated=truncated[index],
        )


def _finite_or_none(value: np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None  # counted as non_finite in the summary
