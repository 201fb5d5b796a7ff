"""The pairs of one micro-batch: where their two rows are, and what their gradients say about the loss."""

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["halves", "interleaved", "two-calls"]


class Pairs:
    """The pairs of one micro-batch, between their forward and their backward."""

    def __init__(self, layout: Layout, first: Tensor | None = None) -> None:
        self.layout: Layout = layout
        self.calls = 2 if layout == "two-calls" else 1
        self.first = first
        self.distance = self.weight = torch.empty(0)  # until both sides are known
        self.is_complete = False
        self.gradients: dict[int, Tensor] = {}
        self.several_tokens: list[Tensor] = []
        self.is_counted = False

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The two sides of one forward's rows."""
        return _split(rows, self.layout)

    def join(self, per_pair: Tensor) -> Tensor:
        """A value of each pair, for both of its rows."""
        return per_pair.repeat(2) if self.layout == "halves" else per_pair.repeat_interleave(2)

    def imbalances(self) -> tuple[Tensor, Tensor]:
        """How far the two gradients of a pair are from negatives of each other, in this layout and in the other."""
        if self.calls == 2:
            imbalance = _imbalance(self.gradients[0], self.gradients[1])
            return imbalance, imbalance
        other: Layout = "interleaved" if self.layout == "halves" else "halves"
        rows = self.gradients[0]
        return _imbalance(*_split(rows, self.layout)), _imbalance(*_split(rows, other))


def _split(rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    if layout == "interleaved":
        return rows[0::2], rows[1::2]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _imbalance(first: Tensor, second: Tensor) -> Tensor:
    scale = torch.maximum(largest(first.abs()), largest(second.abs())).clamp_min(torch.finfo(torch.float32).tiny)
    # An overflow (a step that a gradient scaler skips) says nothing about the loss.
    return (largest((first + second).abs()) / scale).nan_to_num(nan=0.0, posinf=0.0)


def largest(values: Tensor) -> Tensor:
    """The largest of them in float32, as a tensor without axes; 0 of none.

    Example:
        >>> largest(torch.tensor([1, 3])), largest(torch.tensor([]))
        (tensor(3.), tensor(0.))
    """
    return values.float().amax() if values.numel() else torch.zeros((), device=values.device)


def sum_and_count(distance: Tensor) -> Tensor:
    """Sum and number of the entries, shape ``(2,)``: what ranks add up.

    Example:
        >>> sum_and_count(torch.tensor([1.0, 3.0]))
        tensor([4., 2.])
    """
    return torch.stack([distance.sum(), distance.new_full((), float(len(distance)))])
