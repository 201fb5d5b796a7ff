"""mu of a run: a step's distances are summed over all processes while the step goes on, and mu moves when it is read.

Every process starts the sum at the same place of its program: after the forward of the step's last micro-batch, which
all of them run, counted or not, and before its backward. No other collective can be in the middle of being issued
there: those of DDP, FSDP and DeepSpeed belong to forwards and backwards. So all processes issue all collectives in the
same order, which NCCL and gloo need, and the sum can share the default process group.
"""

from typing import Any

import torch
from torch import Tensor

from normbt.weights import EmaState, update_ema


class RunningMean:
    """The running mean of the distance, kept by :meth:`add`, :meth:`gather` and :meth:`move` in every optimizer step.

    Args:
        start: mean at the first step, in the distance's unit; None where it is not known yet.
        decay: beta, the share of the old mean that stays at each step, in ``[0, 1)``.
        device: where distances are.

    Example:
        >>> mu = RunningMean(4.0, 0.5, torch.device("cpu"))
        >>> mu.add(torch.tensor([4.0, 8.0, torch.nan]), finite=torch.tensor([True, True, False]))
        >>> mu.gather()
        >>> mu.move()
        >>> mu.value
        tensor(5.)
    """

    def __init__(self, start: float | None, decay: float, device: torch.device) -> None:
        self._state = EmaState() if start is None else EmaState(start, 1)
        self._is_known = start is not None
        self._decay = decay
        self._here = torch.zeros(2, device=device)  # sum and count of this step's distances on this process
        self._everywhere: Tensor | None = None  # the same of all processes, once `_work` is done
        self._work: Any = None
        self._is_over = False  # the step has been taken, and the mean has not moved yet
        self._was_taken: Tensor | None = None

    def set(self, state: EmaState, *, is_known: bool = True) -> None:
        """Start, or start again, between two steps.

        Args:
            state: of a checkpoint; or, without an update, the mean distance of the pairs of the first step.
            is_known: whether it has a mean at all.
        """
        self._state, self._is_known = state, is_known
        self._here = torch.zeros_like(self._here)
        self._everywhere, self._work, self._is_over = None, None, False

    def add(self, distance: Tensor, finite: Tensor) -> None:
        """Count a micro-batch in.

        Args:
            distance: of each pair, shape ``(pairs,)``.
            finite: which of them count, shape ``(pairs,)``.
        """
        self._here += sum_of_finite(distance, finite)

    def gather(self) -> None:
        """Start the sum over all processes, each of which must come here; nothing waits for it yet."""
        self._settle()  # a process without a pair in this step has not read mu
        self._everywhere, self._here = self._here, torch.zeros_like(self._here)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            all_reduce: Any = torch.distributed.all_reduce  # torch leaves it untyped
            self._work = all_reduce(self._everywhere, async_op=True)

    def move(self, taken: Tensor | None = None) -> None:
        """The optimizer has stepped: the mean moves, as soon as somebody asks for it.

        Args:
            taken: whether the step was taken, 0-dimensional and boolean, the same on every process; the mean stays
                where it is in one that was not. None for taken.
        """
        self._is_over, self._was_taken = True, taken

    @property
    def state(self) -> EmaState:
        """Mean and updates after all steps that are over. Waits for their sum; on CUDA only the stream does."""
        self._settle()
        return self._state

    @property
    def value(self) -> Tensor | float | None:
        """The mean, in the distance's unit; None where there is none yet."""
        return self.state.mean if self._is_known else None

    @property
    def is_known(self) -> bool:
        """Whether there is a mean."""
        return self._is_known

    def _settle(self) -> None:
        if not self._is_over or self._everywhere is None:
            return
        if self._work is not None:
            self._work.wait()
        total, count = self._everywhere
        if self._was_taken is not None:
            count = count * self._was_taken
        self._state = update_ema(self._state, total, count, self._decay)
        self._everywhere, self._work, self._is_over = None, None, False


def sum_of_finite(distance: Tensor, finite: Tensor) -> Tensor:
    """Sum and number of the distances that count.

    Args:
        distance: of each pair, shape ``(pairs,)``.
        finite: which of them count, shape ``(pairs,)``.

    Returns:
        Shape ``(2,)``.

    Example:
        >>> distance = torch.tensor([1.0, torch.inf, 2.0])
        >>> sum_of_finite(distance, distance.isfinite())
        tensor([3., 2.])
    """
    return torch.stack([torch.where(finite, distance, 0.0).sum(), finite.sum().float()])
