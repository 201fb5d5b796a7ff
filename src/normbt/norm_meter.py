"""Gradient norms of many pairs: the fast way where it is right for the model, proved on the first pairs of a run."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from normbt.cost import LARGEST_BUDGET, LARGEST_CPU_BUDGET, decoder_shape, plan_memory
from normbt.errors import ConfigError, ModelError
from normbt.gradients import Params, check_ghost, pair_gradient_norms_by_group
from normbt.gradients.norms import Method
from normbt.gradients.refusal import GhostRefusal
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


_GROUPS: dict[str, Params] = {"head": "head", "backbone": "backbone"}


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
    method: Method
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
) -> NormMeter:
    """Choose the way to measure, and prove the fast one on the first pairs.

    Args:
        model: the reward model, on its device.
        pairs: pairs of the run, at least one; the first few are measured in both ways.
        method: ``"auto"``: the fast way, or, with a warning, the slow one where the model is refused or the two do not
            agree. ``"ghost"``: the fast way or an error. ``"exact"``: the slow one.
        batch_tokens: most tokens of a batch.

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
    check = _self_check(model, pairs[:CHECKED_PAIRS])
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
        largest_budget=LARGEST_CPU_BUDGET if first.device.type == "cpu" else LARGEST_BUDGET,
    )
    return plan.token_budget


def _self_check(model: nn.Module, pairs: Sequence[TokenPair]) -> SelfCheck:
    try:
        with _memory_in_words(model, pairs):
            found = check_ghost(model, _inputs(model, pairs), pairs=len(pairs))
    except ModelError as refusal:
        reason = refusal.reason if isinstance(refusal, GhostRefusal) else str(refusal)
        message = f"ghost norms refused: {reason.rstrip('.')}"
        return SelfCheck(pairs=0, max_relative_error=None, tolerance=None, passed=False, message=message)
    return SelfCheck(
        pairs=found.pairs,
        max_relative_error=found.difference,
        tolerance=found.tolerance,
        passed=found.passed,
        message=found.summary().rstrip("."),
    )


def _measure(model: nn.Module, pairs: Sequence[TokenPair], method: Method, batch_tokens: int) -> GroupNorms:
    head, backbone = np.zeros((2, len(pairs)))
    for places in _batches(pairs, batch_tokens):
        batch = [pairs[place] for place in places]
        with _memory_in_words(model, batch):
            found = pair_gradient_norms_by_group(model, _inputs(model, batch), _GROUPS, method=method)
        head[places] = found["head"].double().cpu().numpy()
        backbone[places] = found["backbone"].double().cpu().numpy()
    return GroupNorms(head, backbone)


def _inputs(model: nn.Module, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    """A padded batch on the model's device."""
    pad = getattr(text_config(unwrap(model)), "pad_token_id", None)
    batch = build_padded(pairs, pad_token_id=0 if pad is None or pad < 0 else pad)
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.inputs.items()}


@contextmanager
def _memory_in_words(model: nn.Module, pairs: Sequence[TokenPair]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        longest = max(max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs)
        raise ConfigError(
            f"The backward pass of {len(pairs)} pairs of at most {longest} tokens does not fit the memory of "
            f"{next(model.parameters()).device}. Lower gradient_tokens or max_length."
        ) from error


def _batches(pairs: Sequence[TokenPair], batch_tokens: int) -> Iterator[list[int]]:
    """Places of the pairs of each batch, longest pairs first, so that too large a batch fails at the start."""
    longest = [max(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda place: -longest[place])
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // (2 * longest[order[start]]))
        yield order[start : start + size]
        start += size
