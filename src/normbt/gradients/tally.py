"""Add up what each parameter receives in a backward, pair by pair, and square it once it is whole."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from normbt.gradients.formulas import (
    gram_costs_less,
    gram_squares,
    lookup_squares,
    outer_squares,
    vector_squares,
    wide,
    widened,
)
from normbt.gradients.refusal import GhostRefusal
from normbt.gradients.token_places import PairGroup, TokenPlaces


@dataclass(frozen=True)
class Outer:
    """Part of a matrix's gradient: the sum of ``d xᵀ`` over the tokens of a pair.

    Attributes:
        x: what the matrix was applied to, shape ``(..., inputs)``.
        d: gradient of what came out, shape ``(..., outputs)``.
    """

    x: Tensor
    d: Tensor


@dataclass(frozen=True)
class Lookup:
    """Part of a table's gradient: ``d`` added to the row that each token read.

    Attributes:
        ids: rows read, any shape.
        d: gradient of what was read, one axis more.
        vocabulary: rows of the table.
        padding_idx: the row that gets no gradient, if there is one.
    """

    ids: Tensor
    d: Tensor
    vocabulary: int
    padding_idx: int | None


@dataclass(frozen=True)
class Vector:
    """Part of a vector's gradient, of each pair: shape ``(pairs, size)``."""

    gradient: Tensor


Part = Outer | Lookup | Vector
_T = TypeVar("_T")


class Tally:
    """The squared gradient norms of some parameters, filled while a backward runs.

    A parameter that is read more than once receives a part each time. The square needs all of them, so it is taken when
    as many have arrived as were announced.

    Args:
        names: of the parameters, for messages.
        places: where the tokens of each pair stand.
        device: of the forward.

    Attributes:
        squares: shape ``(parameters, pairs)``.
    """

    def __init__(self, names: Sequence[str], places: TokenPlaces, device: torch.device) -> None:
        self.names = names
        self.places = places
        self.squares = torch.zeros(len(names), places.pairs, dtype=wide(device), device=device)
        self._expected: Counter[int] = Counter()
        self._parts: defaultdict[int, list[Part]] = defaultdict(list)
        self._padding_leaks = torch.zeros((), dtype=torch.bool, device=device)

    def expect(self, number: int, shape: Sequence[int], operation: str, *, matrix: bool) -> None:
        """Announce a part for a parameter.

        Args:
            number: of the parameter.
            shape: of the operation's output without its last axis.
            operation: its name.
            matrix: whether the part will be an :class:`Outer`.

        Raises:
            GhostRefusal: it can't be told which elements of the output belong to which pair.
        """
        known = self.places.groups_of(shape) if matrix else self.places.pairs_of(shape)
        if known is None:
            raise GhostRefusal(
                f"{self.names[number]} is used in {operation} with an output of shape ({', '.join(map(str, shape))}, "
                f"...), in which the {2 * self.places.pairs} sequences of the batch can't be told apart."
            )
        self._expected[number] += 1

    def add(self, number: int, part: Part) -> None:
        """Take a part; the last one of a parameter is followed by its square."""
        self._parts[number].append(part)
        if len(self._parts[number]) == self._expected[number]:
            self._square(number)

    def finish(self) -> Tensor:
        """The squares, once the backward is done.

        Raises:
            GhostRefusal: padding took part in the rewards.
        """
        for number in list(self._parts):  # those of which an announced part never came: its output led nowhere
            self._square(number)
        if bool(self._padding_leaks):
            raise GhostRefusal(
                "the rewards depend on padding, which the attention mask should hide; norms would depend on the batch."
            )
        return self.squares

    def _square(self, number: int) -> None:
        parts = self._parts.pop(number)
        vectors = [part.gradient for part in parts if isinstance(part, Vector)]
        lookups = [part for part in parts if isinstance(part, Lookup)]
        outers = [part for part in parts if isinstance(part, Outer)]
        if len(parts) not in map(len, (vectors, lookups, outers)):
            raise GhostRefusal(
                f"{self.names[number]} is shared by operations of different kinds, so its norm can't be had from "
                "theirs."
            )
        if vectors:
            self.squares[number] = vector_squares(torch.stack(vectors).sum(dim=0))
        elif lookups:
            self.squares[number] = self._square_of_lookups(lookups)
        else:
            self.squares[number] = self._square_of_outers(outers)

    def _square_of_lookups(self, parts: Sequence[Lookup]) -> Tensor:
        pair = torch.cat([_known(self.places.pairs_of(part.ids.shape)) for part in parts])
        ids = torch.cat([part.ids.flatten() for part in parts])
        d = torch.cat([part.d.flatten(0, -2) for part in parts])
        padding_idx = parts[0].padding_idx
        if padding_idx is not None:
            d = d.masked_fill(ids.eq(padding_idx).unsqueeze(-1), 0)
        return lookup_squares(ids, d, pair, self.places.pairs, parts[0].vocabulary)

    def _square_of_outers(self, parts: Sequence[Outer]) -> Tensor:
        squares = torch.zeros_like(self.squares[0])
        xs = [part.x.reshape(-1, part.x.shape[-1]) for part in parts]
        ds = [part.d.reshape(-1, part.d.shape[-1]) for part in parts]
        groups_of_parts = [_known(self.places.groups_of(part.d.shape[:-1])) for part in parts]
        for d, groups in zip(ds, groups_of_parts, strict=True):
            if groups is self.places.groups:
                # A NaN is no sign of a leak: a pair whose reward is NaN has it everywhere, and gets NaN for its norm.
                self._padding_leaks |= d[self.places.padding].abs().gt(0).any()
        for groups in zip(*groups_of_parts, strict=True):
            x, d = _side_by_side(xs, groups), _side_by_side(ds, groups, zero_filler=True)
            if gram_costs_less(d.shape[1], x.shape[-1], d.shape[-1]):
                found = gram_squares(x, d, sum(group.aligned for group in groups))
            else:
                found = outer_squares(x, d)
            squares[groups[0].pairs] = found
        return squares


def _side_by_side(parts: Sequence[Tensor], groups: Sequence[PairGroup], *, zero_filler: bool = False) -> Tensor:
    """The tokens of some pairs in one axis: aligned ones of chosen, of rejected, and the rest, each of all parts."""
    thirds: list[list[Tensor]] = [[], [], []]
    for part, group in zip(parts, groups, strict=True):
        gathered = widened(part[group.places])
        if zero_filler and group.filler is not None:
            gathered = gathered.masked_fill(group.filler.unsqueeze(-1), 0)
        if len(parts) == 1:
            return gathered
        for third, piece in zip(thirds, gathered.tensor_split((group.aligned, 2 * group.aligned), dim=1), strict=True):
            third.append(piece)
    return torch.cat([piece for third in thirds for piece in third], dim=1)


def _known(value: _T | None) -> _T:
    assert value is not None, "expect() lets no other tensor in"
    return value
