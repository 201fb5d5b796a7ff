"""The inputs of one pair out of those of a batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from normbt.errors import DataError
from normbt.head import LAYOUT_KEYWORD
from normbt.packing import PackedLayout, PairBatch, TokenPair, build_packed


@dataclass(frozen=True)
class PairInputs:
    """A batch of pairs for one forward: a row for each sequence, or all pairs packed in one row.

    Attributes:
        inputs: keywords of the model's forward.
        pairs: number of pairs.
        layout: who sees whom in a packed row; None for one row per sequence, chosen first.
    """

    inputs: dict[str, Any]
    pairs: int
    layout: PackedLayout | None

    @property
    def attention_mask(self) -> Tensor | None:
        """1 for real tokens, shape ``(2 * pairs, tokens)``; None where no row is padded, and in a packed row."""
        mask = self.inputs.get("attention_mask")
        return mask if self.layout is None and isinstance(mask, Tensor) and mask.dim() == 2 else None

    @property
    def tokens(self) -> int:
        """Tokens of a row, padding included; 1 where rows have no tokens."""
        for name in ("attention_mask", "input_ids", "inputs_embeds"):
            value = self.inputs.get(name)
            if isinstance(value, Tensor) and value.dim() == (3 if name == "inputs_embeds" else 2):
                return value.shape[1]
        return 1

    def tensors(self) -> list[Tensor]:
        """The inputs that are tensors."""
        return [value for value in self.inputs.values() if isinstance(value, Tensor)]

    def first(self, pairs: int) -> "PairInputs":
        """The first pairs alone."""
        if pairs >= self.pairs:
            return self
        return self._sliced([*range(pairs)])

    def last(self, pairs: int) -> "PairInputs":
        """The last pairs alone."""
        return self._sliced([*range(self.pairs - pairs, self.pairs)])

    def each(self) -> Iterator["PairInputs"]:
        """Every pair alone, without the padding that only longer pairs needed."""
        return (self._sliced([number]) for number in range(self.pairs))

    def _sliced(self, numbers: list[int]) -> "PairInputs":
        if self.layout is not None:
            return pair_inputs(build_packed([self._packed_pair(self.layout, number) for number in numbers]), like=self)
        rows = numbers + [self.pairs + number for number in numbers]
        inputs = {
            name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (2 * self.pairs,) else value
            for name, value in self.inputs.items()
        }
        return PairInputs(_without_trailing_padding(inputs), len(numbers), None)

    def _packed_pair(self, layout: PackedLayout, number: int) -> TokenPair:
        start = sum(pair.tokens for pair in layout.pairs[:number])
        prefix, chosen, _ = lengths = layout.pairs[number]
        ids = self.inputs["input_ids"][0, start : start + lengths.tokens].tolist()
        return TokenPair(ids[: prefix + chosen], ids[:prefix] + ids[prefix + chosen :], prefix)


def pair_inputs(batch: Mapping[str, Any] | PairBatch, *, like: PairInputs | None = None) -> PairInputs:
    """Read a batch of pairs.

    Args:
        batch: the model's inputs with ``2 * pairs`` rows, all chosen first, then all rejected, padded on either side; a
            packed row; or a :class:`~normbt.packing.PairBatch` of either kind.
        like: a batch whose device the result is moved to.

    Returns:
        The batch, read.

    Raises:
        DataError: there are no rows, or an odd number of them.

    Example:
        >>> import torch
        >>> pair_inputs({"input_ids": torch.ones(4, 3, dtype=torch.long)}).pairs
        2
    """
    inputs = dict(batch.inputs if isinstance(batch, PairBatch) else batch)
    if like is not None:
        device = like.inputs["input_ids"].device
        inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in inputs.items()}
    layout = inputs.get(LAYOUT_KEYWORD)
    if layout is not None:
        return PairInputs(inputs, len(layout.pairs), layout)
    main = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if not isinstance(main, Tensor):
        main = next((value for value in inputs.values() if isinstance(value, Tensor) and value.dim()), None)
    rows = 0 if main is None else main.shape[0]
    if main is None or rows < 2 or rows % 2:
        raise DataError(
            f"the batch has {rows} rows under {', '.join(inputs) or 'no name'}; wanted 2 * pairs rows of tensors, all "
            "chosen sequences first, then all rejected ones in the same order."
        )
    return PairInputs(inputs, rows // 2, None)


def _without_trailing_padding(inputs: dict[str, Any]) -> dict[str, Any]:
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return inputs
    tokens = mask.shape[1]
    real = mask.ne(0).any(dim=0).nonzero()
    kept = int(real[-1]) + 1 if len(real) else tokens
    return {
        name: value[:, :kept] if isinstance(value, Tensor) and value.dim() > 1 and value.shape[1] == tokens else value
        for name, value in inputs.items()
    }
