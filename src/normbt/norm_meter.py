"""Gradient norms of many pairs: the fast way where it is right for the model, proved on the first pairs of a run."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from normbt.cost import LARGEST_BUDGET, decoder_shape, plan_memory
from normbt.errors import ConfigError, ModelError
from normbt.gradients import pair_gradient_norms_by_group
from normbt.gradients.selection import select_parameters
from normbt.head import unwrap
from normbt.loading import text_config
from normbt.packing import TokenPair, build_padded
from normbt.results import SelfCheck
from normbt.step_plan import free_bytes

logger = logging.getLogger(__name__)

Asked = Literal["auto", "ghost", "exact"]
METHODS: tuple[Asked, ...] = ("auto", "ghost", "exact")

CHECKED_PAIRS = 4
"""Pairs of the self-check: each costs one forward and one backward pass more."""

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 0.05
"""For 16-bit weights: the two ways round in another order, and neither is the truth."""

_CPU_BUDGET = 2_048
"""Tokens beyond which a batch is no faster on a CPU, whose caches its activations leave."""


class GroupNorms(NamedTuple):
    """Norms of the gradient of ``r_chosen - r_rejected``, by parameters; each of shape ``(pairs,)``, float64."""

    head: NDArray[np.float64]
    backbone: NDArray[np.float64]

    @property
    def full(self) -> NDArray[np.float64]:
        """Norm over all parameters."""
        return np.hypot(self.head, self.backbone)


@dataclass(frozen=True)
class NormMeter:
    """Measures gradient norms of pairs in batches of similar length.

    Attributes:
        model: the reward model, on its device.
        method: ``ghost`` (one backward pass for a batch) or ``exact`` (one for each pair).
        reason: why this method.
        check: how the two methods compared; None where only one was asked for.
        batch_tokens: most tokens of a batch, padding included; a longer pair is a batch of its own.
    """

    model: nn.Module
    method: Literal["ghost", "exact"]
    reason: str
    check: SelfCheck | None
    batch_tokens: int

    @property
    def parameters(self) -> int:
        """Number of parameters the full norm is over: those that training would update."""
        return sum(parameter.numel() for parameter in select_parameters(self.model, "all").values())

    def norms(self, pairs: Sequence[TokenPair]) -> GroupNorms:
        """Norms of some pairs, in their order.

        Raises:
            ConfigError: a batch does not fit the device's memory.
            ModelError: the model has no usable head, or is sharded.
        """
        return _measure(self.model, pairs, self.method, self.batch_tokens)


def make_norm_meter(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    *,
    method: Asked = "auto",
    batch_tokens: int,
    low_precision: bool = False,
) -> NormMeter:
    """Choose the way to measure, and prove the fast one on the first pairs.

    Args:
        model: the reward model, on its device.
        pairs: pairs of the run, at least one; the first few are measured in both ways.
        method: ``"auto"``: the fast way, or, with a warning, the slow one where the model is refused or the two do not
            agree. ``"ghost"``: the fast way or an error. ``"exact"``: the slow one.
        batch_tokens: most tokens of a batch.
        low_precision: whether activations are 16-bit though the weights are not (autocast).

    Returns:
        The meter.

    Raises:
        ConfigError: the method is unknown, or a batch does not fit the memory.
        ModelError: ``"ghost"`` was asked for and is not right for the model; or the model has no usable head.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be {', '.join(METHODS)}, found '{method}'.")
    if method == "exact":
        return NormMeter(model, "exact", "asked for", None, batch_tokens)
    check = _self_check(model, pairs[:CHECKED_PAIRS], batch_tokens, low_precision)
    if check["passed"]:
        return NormMeter(model, "ghost", check["message"], check, batch_tokens)
    if method == "ghost":
        raise ModelError(f"method ghost is not right for this model: {check['message']}. Use method auto or exact.")
    logger.warning("Gradient norms are computed pair by pair, which is slower: %s.", check["message"])
    return NormMeter(model, "exact", check["message"], check, batch_tokens)


def default_batch_tokens(model: nn.Module, longest_pair: int) -> int:
    """Tokens of a batch whose activations fit the free memory of the model's device.

    Args:
        model: the reward model, on its device.
        longest_pair: most tokens that a pair's two sequences may have.

    Returns:
        The number; the longest pair's where nothing larger is known to fit.
    """
    first = next(model.parameters())
    try:
        shape = decoder_shape(unwrap(model))
    except AttributeError:  # a model that names its sizes differently
        return longest_pair
    plan = plan_memory(
        shape,
        free_bytes=free_bytes(model),
        longest_pair=longest_pair,
        element_size=first.element_size(),
        checkpointing=False,
        largest_budget=_CPU_BUDGET if first.device.type == "cpu" else LARGEST_BUDGET,
    )
    return plan.token_budget


def _self_check(model: nn.Module, pairs: Sequence[TokenPair], batch_tokens: int, low_precision: bool) -> SelfCheck:
    dtype = None if low_precision else next(model.parameters()).dtype
    tolerance = _LOW_PRECISION_TOLERANCE if dtype is None else _TOLERANCES.get(dtype, _LOW_PRECISION_TOLERANCE)
    try:
        fast = _measure(model, pairs, "ghost", batch_tokens)
    except (ModelError, NotImplementedError) as refusal:
        return SelfCheck(
            pairs=0,
            max_relative_error=None,
            tolerance=tolerance,
            passed=False,
            message=f"ghost norms refused: {str(refusal).rstrip('.')}",
        )
    slow = _measure(model, pairs, "exact", batch_tokens)
    error = max(_relative_error(one, other) for one, other in zip(fast, slow, strict=True))
    passed = error <= tolerance
    outcome = "agree with" if passed else "DIFFER from"
    return SelfCheck(
        pairs=len(pairs),
        max_relative_error=error,
        tolerance=tolerance,
        passed=passed,
        message=f"ghost norms of {len(pairs)} pairs {outcome} one backward pass each (largest relative difference "
        f"{error:.1e}, tolerance {tolerance:.0e})",
    )


def _relative_error(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Largest difference, relative to the larger norm; a norm that vanishes beside the batch's largest is rounding."""
    larger = np.maximum(one, other)
    scale = np.maximum(larger, 1e-3 * larger.max(initial=0.0))
    both_missing = ~np.isfinite(one) & ~np.isfinite(other)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(both_missing | (scale == 0), 0.0, np.abs(one - other) / scale)
    return float(np.max(np.nan_to_num(error, nan=np.inf), initial=0.0))


def _measure(model: nn.Module, pairs: Sequence[TokenPair], method: str, batch_tokens: int) -> GroupNorms:
    head, backbone = np.zeros((2, len(pairs)))
    device = next(model.parameters()).device
    pad = getattr(text_config(unwrap(model)), "pad_token_id", None)
    for places in _batches(pairs, batch_tokens):
        batch = build_padded([pairs[place] for place in places], pad_token_id=0 if pad is None or pad < 0 else pad)
        inputs: dict[str, Any] = {name: value.to(device) for name, value in batch.inputs.items()}
        try:
            found = pair_gradient_norms_by_group(
                model,
                inputs,
                {"head": "head", "backbone": "backbone"},
                method=method,  # type: ignore[arg-type]
            )
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"The backward pass of {len(places)} pairs of at most {inputs['input_ids'].shape[1]} tokens does not "
                f"fit the memory of {device}. Lower gradient_tokens (now {batch_tokens}) or max_length."
            ) from error
        head[places] = found["head"].double().cpu().numpy()
        backbone[places] = found["backbone"].double().cpu().numpy()
    return GroupNorms(head, backbone)


def _batches(pairs: Sequence[TokenPair], batch_tokens: int) -> Iterator[list[int]]:
    """Places of the pairs of each batch, longest pairs first, so that too large a batch fails at the start."""
    longest = [max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda place: -longest[place])
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // (2 * longest[order[start]]))
        yield order[start : start + size]
        start += size
