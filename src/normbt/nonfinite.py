"""NaN and Inf in training: which pairs they came from, and an optimizer step that they cannot reach.

The host learns of them only when it reads the device anyway, at a log. Until then the device protects the parameters
by itself: a step whose gradient is not finite changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_NAMED = 8


def finite_pairs(chosen: Tensor, rejected: Tensor, distance: Tensor, margin: Tensor | None = None) -> Tensor:
    """Which pairs have nothing but finite numbers.

    Args:
        chosen: rewards of the preferred answers, shape ``(pairs,)``.
        rejected: rewards of the other answers, shape ``(pairs,)``.
        distance: representation distance, shape ``(pairs,)``.
        margin: shape ``(pairs,)``, or None.

    Returns:
        Shape ``(pairs,)``, boolean.

    Example:
        >>> finite_pairs(torch.tensor([1.0, torch.nan]), torch.zeros(2), torch.ones(2))
        tensor([ True, False])
    """
    finite = chosen.isfinite() & rejected.isfinite() & distance.isfinite()
    return finite if margin is None else finite & margin.isfinite()


def guard_step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Make the optimizer's next step harmless unless the gradient is finite; decided on the device.

    A fused optimizer then leaves parameters and state as they are: it has this switch for the gradient scaler. Any
    other takes the step with a gradient of zero, in which momentum and weight decay still act.

    Args:
        optimizer: about to step.
        finite: whether its gradient is, a 0-dimensional boolean tensor, the same on every process.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.AdamW([weight], fused=True)
        >>> weight.grad = torch.tensor([torch.nan])
        >>> guard_step(optimizer, weight.grad.isfinite().all())
        >>> optimizer.step()
        >>> weight.item()
        1.0
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        switchable: Any = optimizer
        switchable.found_inf = (~finite).float()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradient = parameter.grad
                local = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # FSDP's shard of it
                local.masked_fill_(~finite.to(local.device), 0.0)


@dataclass(frozen=True)
class Findings:
    """What was not finite since the last look.

    Attributes:
        pairs: names of the first such pairs.
        pair_count: how many pairs there were.
        steps: the optimizer steps whose gradient was not finite.
        steps_seen: how many steps were looked at.
        skipped_in_a_row: how many of the latest steps had no finite gradient, one after another.
    """

    pairs: tuple[str, ...] = ()
    pair_count: int = 0
    steps: tuple[int, ...] = ()
    steps_seen: int = 0
    skipped_in_a_row: int = 0

    def __bool__(self) -> bool:
        return bool(self.pair_count or self.steps)

    def joined_by(self, others: Sequence["Findings"]) -> "Findings":
        """The findings of all processes: pairs add up, steps are common to them."""
        pairs = dict.fromkeys(name for one in others for name in one.pairs)
        return Findings(
            tuple(pairs)[:_NAMED],
            sum(one.pair_count for one in others),
            self.steps,
            self.steps_seen,
            self.skipped_in_a_row,
        )

    def describe(self) -> str:
        """The findings in words.

        Example:
            >>> Findings(("row-7",), 1, (12,), 10, 0).describe()
            'NaN or Inf in 1 pair: row-7; in the gradient of step 12.'
        """
        parts = []
        if self.pair_count:
            more = f" and {self.pair_count - len(self.pairs):,} more" if self.pair_count > len(self.pairs) else ""
            noun = "pair" if self.pair_count == 1 else "pairs"
            parts.append(f"in {self.pair_count:,} {noun}: {', '.join(self.pairs)}{more}")
        if self.steps:
            named = ", ".join(str(step) for step in self.steps[:_NAMED])
            more = f" and {len(self.steps) - _NAMED:,} more" if len(self.steps) > _NAMED else ""
            parts.append(f"in the gradient of step{'s' if len(self.steps) > 1 else ''} {named}{more}")
        return f"NaN or Inf {'; '.join(parts)}."


class FiniteWatch:
    """Remembers, on the device, which pairs and which steps were finite, until somebody looks."""

    def __init__(self) -> None:
        self._pairs: list[tuple[int, Sequence[str], Tensor]] = []
        self._steps: list[tuple[int, Tensor]] = []
        self._skipped_in_a_row = 0

    def see_pairs(self, step: int, names: Sequence[str], finite: Tensor) -> None:
        """Note a micro-batch.

        Args:
            step: the optimizer step it belongs to.
            names: what each pair is called; empty where they have no names.
            finite: shape ``(pairs,)``; not read now.
        """
        self._pairs.append((step, names, finite))

    def see_step(self, step: int, finite: Tensor) -> None:
        """Note whether a step's gradient was finite; not read now."""
        self._steps.append((step, finite))

    @property
    def last_step(self) -> Tensor | None:
        """Whether the last noted step's gradient was finite; None where there is none."""
        return self._steps[-1][1] if self._steps else None

    def take(self) -> Findings:
        """Look: wait for the device, say what was found, and forget it."""
        pairs, steps = self._pairs, self._steps
        self._pairs, self._steps = [], []
        names = []
        if pairs:
            finite = torch.cat([flags for _, _, flags in pairs]).tolist()
            named = [
                called[place] if called else f"pair {place + 1} of a micro-batch of step {step}"
                for step, called, flags in pairs
                for place in range(len(flags))
            ]
            names = [name for name, is_finite in zip(named, finite, strict=True) if not is_finite]
        flags = torch.stack([flag for _, flag in steps]).tolist() if steps else []
        for is_finite in flags:
            self._skipped_in_a_row = 0 if is_finite else self._skipped_in_a_row + 1
        bad_steps = tuple(step for (step, _), is_finite in zip(steps, flags, strict=True) if not is_finite)
        distinct = tuple(dict.fromkeys(names))
        return Findings(distinct[:_NAMED], len(names), bad_steps, len(steps), self._skipped_in_a_row)
