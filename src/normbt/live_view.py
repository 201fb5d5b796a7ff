"""Who gets the update while a model trains: the shares of a diagnosis, on a fixed probe, in the training log."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from normbt.bias import (
    distance_groups,
    effective_pairs,
    pearson,
    prediction_error,
    quiet_mistakes,
    spearman,
    update_shares,
)
from normbt.bias.shares import Floats
from normbt.errors import ConfigError
from normbt.norm_meter import NormMeter, default_batch_tokens, make_norm_meter
from normbt.objective import run_weights
from normbt.packing import TokenPair, as_token_pair
from normbt.scoring import score
from normbt.stats import pair_outcomes
from normbt.weights import Weighting, pair_distance

logger = logging.getLogger(__name__)

ProbeNorm = Literal["full", "head"]

TERCILES = ("near", "mid", "far")
"""Names of the thirds of the probe, smallest distances first."""


class Probe:
    """A fixed set of pairs, and what it says about a model at any time; the model is left as it was.

    Args:
        model: the reward model, whole on this device.
        pairs: the pairs, at least three.
        norm: ``"full"`` measures the gradient norm over all trained parameters; ``"head"`` over the head, where it is
            the distance.
    """

    def __init__(self, model: Any, pairs: Sequence[TokenPair], *, norm: ProbeNorm) -> None:
        self._model = model
        self._pairs = pairs
        self._meter: NormMeter | None = None
        if norm == "full":
            longest = max(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
            tokens = default_batch_tokens(model, longest)
            self._meter = make_norm_meter(model, pairs, batch_tokens=tokens)

    def measure(self, weigh: Callable[[Tensor, Tensor], Tensor] | None = None) -> dict[str, float]:
        """The metrics, by name.

        Args:
            weigh: gives the run's weight of each pair from what the head read of the chosen and of the rejected
                sequences, each of shape ``(pairs, hidden)``; None for a run without weights.

        Returns:
            Shares, accuracies, correlations and counts; a number that does not exist is left out.
        """
        sequences = [pair.chosen_ids for pair in self._pairs] + [pair.rejected_ids for pair in self._pairs]
        scores = score(self._model, sequences, keep_hidden=True, pack=False)
        assert scores.hidden is not None
        hidden = scores.hidden.chunk(2)
        distance = pair_distance(*hidden).double().numpy()
        norm = distance if self._meter is None else self._meter.norms(self._pairs).full
        chosen, rejected = scores.rewards.astype(np.float64).reshape(2, -1)
        finite = np.isfinite(chosen) & np.isfinite(rejected) & np.isfinite(distance) & np.isfinite(norm)
        update = prediction_error(chosen - rejected) * norm
        correct = pair_outcomes(chosen, rejected).correct
        metrics = {"non_finite": float((~finite).sum())}
        metrics |= _metrics(distance[finite], update[finite], correct[finite])
        metrics |= _means(distance[finite], prediction_error(chosen - rejected)[finite])
        if self._meter is not None and finite.any():
            columns, once = [distance[finite], norm[finite]], np.ones((1, int(finite.sum())))
            metrics["pearson"] = float(pearson(columns, [(0, 1)])(once)[0, 0])
            metrics["spearman"] = float(spearman(columns, [(0, 1)])(once)[0, 0])
        if weigh is not None:
            weight = weigh(*hidden).double().numpy()
            weighted = _metrics(distance[finite], (weight * update)[finite], correct[finite])
            names = [name for name in weighted if name.startswith(("share_", "quiet_", "effective_"))]
            metrics |= {f"weighted_{name}": weighted[name] for name in names}
        return {f"probe_{name}": value for name, value in metrics.items() if math.isfinite(value)}


class LiveView(TrainerCallback):
    """Logs a probe before the first step, and again after every so many.

    Args:
        measure: gives the metrics.
        log: hands them to the run's loggers.
        steps: optimizer steps between two logs.
    """

    def __init__(
        self, measure: Callable[[], dict[str, float]], log: Callable[[dict[str, float]], None], steps: int
    ) -> None:
        self._measure = measure
        self._log = log
        self._steps = steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the start; a resumed run has logged it already."""
        if state.global_step == 0 and state.is_world_process_zero:
            self._log(self._measure())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log where it is due."""
        if state.global_step % self._steps == 0 and state.is_world_process_zero:
            self._log(self._measure())


def make_live_view(trainer: Any) -> LiveView:
    """The live view of a trainer, by its settings ``probe_steps``, ``probe_pairs`` and ``probe_norm``.

    Args:
        trainer: a :class:`normbt.trainer.NormBTTrainer` whose data sets are encoded.

    Raises:
        ConfigError: no process has the whole model, or the data are a stream.
    """
    args = trainer.args
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "probe_steps needs the whole model in one process, and FSDP or DeepSpeed shards it. Leave probe_steps out, "
            "and run `normbt diagnose` on a checkpoint."
        )
    pairs = _draw(trainer.train_dataset, trainer.eval_dataset, count=args.probe_pairs, seed=args.seed)
    probe: list[Probe] = []  # made at the first measurement, when the model is where it trains

    def weigh(chosen: Tensor, rejected: Tensor) -> Tensor:
        distance = pair_distance(chosen, rejected, kind=args.distance)
        reference = probe_reference(distance, args.weighting, trainer.mu)
        return run_weights(distance, args.weighting, reference, eps=args.eps, max_weight=args.max_weight)

    def measure() -> dict[str, float]:
        with trainer.accelerator.autocast():  # rounding is then judged by the precision that training has
            if not probe:
                probe.append(Probe(trainer.model, pairs, norm=args.probe_norm))
            return probe[0].measure(None if args.weighting == "none" else weigh)

    return LiveView(measure, trainer.log_aside, args.probe_steps)


def probe_reference(distance: Tensor, weighting: Weighting, mu: float | None) -> float:
    """What the weights of a probe are made with: the run's mu, or else the probe's own mean distance.

    That stands in for the batch of ``batch``, and before the first step for mu, which starts as a mean distance too.

    Args:
        distance: of each pair of the probe, of the run's kind, shape ``(pairs,)``.
        weighting: the run's.
        mu: the run's running mean; None before the first step.

    Example:
        >>> import torch
        >>> probe_reference(torch.tensor([1.0, 3.0, torch.nan]), "normbt", None)
        2.0
    """
    if weighting == "batch" or mu is None:
        return float(distance[distance.isfinite()].mean())
    return mu


def _draw(train: Any, evaluation: Any, *, count: int, seed: int) -> list[TokenPair]:
    """Pairs of the evaluation set, or of the training set where there is none; always the same for a seed."""
    name, dataset = "evaluation", evaluation
    if isinstance(dataset, dict) and dataset:
        first, dataset = next(iter(dataset.items()))
        name = f"evaluation ('{first}')"
    if not isinstance(dataset, Dataset):
        name, dataset = "training", train
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            "probe_steps needs pairs that can be drawn, and the data are a stream. Give an evaluation set that is not, "
            "or leave probe_steps out."
        )
    drawn = sorted(np.random.default_rng(seed).permutation(len(dataset))[:count].tolist())
    logger.info(
        "The probe is %d of the %d pairs of the %s set, drawn with seed %d.", len(drawn), len(dataset), name, seed
    )
    return [as_token_pair(dataset[index]) for index in drawn]


def _metrics(distance: Floats, update: Floats, correct: "np.ndarray[Any, np.dtype[np.bool_]]") -> dict[str, float]:
    groups = distance_groups(distance, len(TERCILES))
    metrics: dict[str, float] = {}
    for name, group, share in zip(TERCILES, groups, update_shares(update, groups), strict=True):
        if share is not None:
            metrics[f"share_{name}"] = share
        if len(group):
            metrics[f"accuracy_{name}"] = float(correct[group].mean())
    effective = effective_pairs(update)
    if effective is not None:
        metrics["effective_pairs"] = effective
    metrics["misranked"] = float((~correct).sum())
    metrics["quiet_mistakes"] = float(quiet_mistakes(update, ~correct).quiet)
    return metrics


def _means(distance: Floats, error: Floats) -> dict[str, float]:
    return {"distance": float(distance.mean()), "error": float(error.mean())} if distance.size else {}
