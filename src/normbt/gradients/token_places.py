"""Where the tokens of each pair stand in the tensors of a forward, and groups of pairs that are computed together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normbt.gradients.pair_inputs import PairInputs

_GROUP_TOKENS = {"cpu": 1024}
"""Tokens of a group at most: on the CPU its Gram matrices should stay in the cache."""
_GROUP_TOKENS_ELSEWHERE = 32_768
_FILLER = 1.1  # a group may cost so much more than its pairs one by one, in squares of tokens


class PairPlaces(NamedTuple):
    """Places of one pair's tokens: ``aligned`` ones of chosen and rejected that stand side by side, and the rest."""

    chosen: list[int]
    rejected: list[int]
    rest: list[int]


@dataclass(frozen=True)
class PairGroup:
    """Some pairs of similar lengths, as one index of tokens.

    Attributes:
        pairs: their numbers, shape ``(n,)``.
        places: flat positions of their tokens, shape ``(n, tokens)``: ``aligned`` ones of the chosen sequence, as many
            of the rejected one, then the rest.
        aligned: the k-th token and the ``aligned + k``-th have the same position in their sequences.
        filler: true where a place is only there to fill the index, same shape; None where there is none.
    """

    pairs: Tensor
    places: Tensor
    aligned: int
    filler: Tensor | None


@dataclass(frozen=True)
class TokenPlaces:
    """The pairs of a batch in its tensors.

    Attributes:
        pairs: number of pairs.
        rows: length of the first axis of the tensors that have a row for each sequence, or for the packed row.
        tokens: length of their second axis, where tokens are told apart.
        groups: all pairs, grouped, with the places of their real tokens.
        rows_of_pairs: all pairs, in the same groups, with their two rows as places.
        pair_of_token: pair of each token of a packed row, shape ``(tokens,)``; None for rows.
        padding: flat positions of padding, shape ``(n,)``.
    """

    pairs: int
    rows: int
    tokens: int
    groups: tuple[PairGroup, ...]
    rows_of_pairs: tuple[PairGroup, ...]
    pair_of_token: Tensor | None
    padding: Tensor

    @property
    def packed(self) -> bool:
        """Whether all pairs are in one row."""
        return self.pair_of_token is not None

    def groups_of(self, shape: Sequence[int]) -> tuple[PairGroup, ...] | None:
        """The groups that index a tensor, given its shape without the last axis; None if its rows can't be told apart.

        A tensor is known to have one vector for each sequence, its tokens one row after the other, or a row for each
        sequence with anything in it.
        """
        shape = tuple(shape)
        if shape == (2 * self.pairs,):
            return self.rows_of_pairs
        if shape in ((self.rows, self.tokens), (self.rows * self.tokens,)):
            return self.groups
        if not self.packed and len(shape) > 1 and shape[0] == self.rows:
            return tuple(_widened(group, torch.Size(shape[1:]).numel()) for group in self.rows_of_pairs)
        return None

    def pairs_of(self, shape: Sequence[int]) -> Tensor | None:
        """The pair of each element of a tensor, flattened; None as in :meth:`groups_of`."""
        shape = tuple(shape)
        elements = torch.Size(shape).numel()
        if self.pair_of_token is not None and shape != (2 * self.pairs,):
            if shape[:2] == (1, self.tokens) or shape == (self.tokens,):
                return self.pair_of_token.repeat_interleave(elements // self.tokens)
            return None
        if shape[0] == 2 * self.pairs or shape == (self.rows * self.tokens,):
            of_rows = torch.arange(self.pairs, device=self.padding.device).repeat(2)
            return of_rows.repeat_interleave(elements // len(of_rows))
        return None

    def sums(self, values: Tensor) -> Tensor:
        """Sum of the vectors of each pair, ``(..., size)`` to ``(pairs, size)``, where rows can be told apart."""
        size = values.shape[-1]
        if self.pair_of_token is None or len(values) == 2 * self.pairs:
            of_rows = values.reshape(2 * self.pairs, -1, size).sum(dim=1)
            return of_rows[: self.pairs] + of_rows[self.pairs :]
        pair_of = self.pairs_of(values.shape[:-1])
        assert pair_of is not None
        return values.new_zeros(self.pairs, size).index_add_(0, pair_of, values.reshape(-1, size))


def token_places(batch: PairInputs, device: torch.device) -> TokenPlaces:
    """Read off a batch where the tokens of its pairs stand.

    Args:
        batch: the pairs.
        device: where the tensors of the forward are.

    Returns:
        The places; waits for the device once, to read the attention mask.
    """
    pairs, places = batch.pairs, []
    pair_of_token = None
    if batch.layout is not None:
        rows, tokens, start = 1, batch.layout.tokens, 0
        for prefix, chosen, rejected in batch.layout.pairs:
            split, end = start + prefix + chosen, start + prefix + chosen + rejected
            places.append(
                _aligned([*range(start + prefix, split)], [*range(split, end)], [*range(start, start + prefix)])
            )
            start = end
        lengths = torch.tensor([pair.tokens for pair in batch.layout.pairs])
        pair_of_token = torch.arange(pairs).repeat_interleave(lengths).to(device)
        padding: list[int] = []
    else:
        rows, tokens = 2 * pairs, batch.tokens
        mask = batch.attention_mask
        real = torch.ones(rows, tokens, dtype=torch.bool) if mask is None else mask.ne(0).cpu()
        positions = torch.arange(rows * tokens).view(rows, tokens)
        of_rows = [positions[row][real[row]].tolist() for row in range(rows)]
        places = [_aligned(of_rows[number], of_rows[pairs + number], []) for number in range(pairs)]
        padding = positions[~real].tolist()
    limit = _GROUP_TOKENS.get(device.type, _GROUP_TOKENS_ELSEWHERE)
    members = _grouped(places, limit)
    return TokenPlaces(
        pairs=pairs,
        rows=rows,
        tokens=tokens,
        groups=tuple(_group(numbers, [places[number] for number in numbers], device) for numbers in members),
        rows_of_pairs=tuple(
            _group(numbers, [PairPlaces([number], [pairs + number], []) for number in numbers], device)
            for numbers in members
        ),
        pair_of_token=pair_of_token,
        padding=torch.tensor(padding, dtype=torch.long, device=device),
    )


def _aligned(chosen: list[int], rejected: list[int], rest: list[int]) -> PairPlaces:
    aligned = min(len(chosen), len(rejected))
    return PairPlaces(chosen[:aligned], rejected[:aligned], [*rest, *chosen[aligned:], *rejected[aligned:]])


def _grouped(places: Sequence[PairPlaces], limit: int) -> list[list[int]]:
    """Numbers of the pairs of each group: similar lengths, and no more tokens than the limit unless it is one pair."""
    order = sorted(range(len(places)), key=lambda number: (len(places[number].chosen), len(places[number].rest)))
    groups: list[list[int]] = []
    for number in order:
        grown = [*groups[-1], number] if groups else []
        widths = [2 * len(places[member].chosen) + len(places[member].rest) for member in grown]
        longest = 2 * max((len(places[member].chosen) for member in grown), default=0)
        longest += max((len(places[member].rest) for member in grown), default=0)
        cost, needed = len(grown) * longest**2, sum(width**2 for width in widths)
        if grown and len(grown) * longest <= limit and cost <= _FILLER * needed:
            groups[-1] = grown
        else:
            groups.append([number])
    return groups


def _group(numbers: Sequence[int], places: Sequence[PairPlaces], device: torch.device) -> PairGroup:
    aligned = max(len(each.chosen) for each in places)
    rest = max(len(each.rest) for each in places)
    index, filler = [], []
    for each in places:
        for part, width in ((each.chosen, aligned), (each.rejected, aligned), (each.rest, rest)):
            index += [*part, *[0] * (width - len(part))]
            filler += [*[False] * len(part), *[True] * (width - len(part))]
    shape = (len(places), 2 * aligned + rest)
    return PairGroup(
        pairs=torch.tensor(list(numbers), device=device),
        places=torch.tensor(index, device=device).view(shape),
        aligned=aligned,
        filler=torch.tensor(filler, device=device).view(shape) if any(filler) else None,
    )


def _widened(group: PairGroup, width: int) -> PairGroup:
    """The group of rows as one of all their elements: every row has ``width`` of them."""
    places = group.places.unsqueeze(-1) * width + torch.arange(width, device=group.places.device)
    return PairGroup(group.pairs, places.flatten(1), width, None)
