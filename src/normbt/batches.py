"""From drawn examples to the micro-batches of an optimizer step: layout, margins, and counts of pairs and tokens."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from normbt.packing import PairBatch, TokenPair, as_token_pair


class PairExamples:
    """Tokenised pairs as the data loader drew them: kept as they are until a whole optimizer step is known.

    Not a list, so that Accelerate does not walk through every token id in search of tensors.

    Args:
        examples: rows with ``chosen_ids``, ``rejected_ids``, ``prefix_length`` and, optionally, ``margin`` and ``id``.

    Example:
        >>> drawn = PairExamples([{"chosen_ids": [1, 2], "rejected_ids": [1, 3], "prefix_length": 1}])
        >>> len(drawn.examples)
        1
    """

    def __init__(self, examples: Iterable[Mapping[str, Any]]) -> None:
        self.examples = list(examples)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and its loss need: chosen answers first, then the rejected ones in the same order.

    Attributes:
        inputs: keyword arguments of the model's forward.
        margin: margin of each pair in reward units, shape ``(pairs,)``, or None where the data have none.
        pairs: how many pairs. 0 marks a batch that only keeps this process in step with the others, which have more
            pairs: it is run, and counts for nothing.
        tokens: tokens of the pairs' sequences: padding not counted, a shared prefix counted twice.
        names: what each pair is called in messages; empty where they have no names.
        is_last: whether it is the last of its optimizer step on this process; see :class:`StepBatches`.
    """

    inputs: dict[str, Any]
    margin: Tensor | None
    pairs: int
    tokens: int
    names: tuple[str, ...] = ()
    is_last: bool = False

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on ``device``; the host does not wait for the copy."""

        def moved(value: Any) -> Any:
            if not hasattr(value, "to"):
                return value
            return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)

        inputs = {name: moved(value) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, margin=moved(self.margin))

    def uncounted(self) -> "MicroBatch":
        """The same, run but counted for nothing."""
        return replace(self, pairs=0, tokens=0, names=())


def lay_out(examples: Sequence[Mapping[str, Any]], layout: Callable[[Sequence[TokenPair]], PairBatch]) -> MicroBatch:
    """One micro-batch out of some examples.

    Args:
        examples: rows as in :class:`PairExamples`; at least one.
        layout: a builder of :mod:`normbt.packing`.

    Returns:
        The micro-batch, on the CPU.

    Example:
        >>> from functools import partial
        >>> from normbt.packing import build_padded
        >>> rows = [{"chosen_ids": [1, 2, 3], "rejected_ids": [1, 4], "prefix_length": 1, "margin": 0.5}]
        >>> batch = lay_out(rows, partial(build_padded, pad_token_id=0))
        >>> batch.inputs["input_ids"].tolist(), batch.margin, batch.tokens
        ([[1, 2, 3], [1, 4, 0]], tensor([0.5000]), 5)
    """
    built = layout([as_token_pair(example) for example in examples])
    margin = None
    if "margin" in examples[0]:
        margin = torch.tensor([example["margin"] for example in examples], dtype=torch.float32)
    tokens = sum(len(example["chosen_ids"]) + len(example["rejected_ids"]) for example in examples)
    names = tuple(str(example["id"]) for example in examples) if "id" in examples[0] else ()
    return MicroBatch(dict(built.inputs), margin, built.pairs, tokens, names)


def from_collator(inputs: Mapping[str, Any]) -> MicroBatch:
    """A micro-batch made by a user's own collator, in TRL's layout.

    Args:
        inputs: ``input_ids`` of shape ``(2 * pairs, tokens)``, chosen rows first, ``attention_mask``, and optionally
            ``margin``.

    Returns:
        The same as a micro-batch.

    Example:
        >>> from_collator({"input_ids": torch.ones(4, 3), "attention_mask": torch.ones(4, 3)}).pairs
        2
    """
    rest = {name: value for name, value in inputs.items() if name != "margin"}
    mask = rest.get("attention_mask")
    tokens = rest["input_ids"].numel() if mask is None else int(mask.sum())
    return MicroBatch(rest, inputs.get("margin"), pairs=pair_count(inputs), tokens=tokens)


def pair_count(drawn: PairExamples | Mapping[str, Any]) -> int:
    """How many pairs a data loader's batch has, ours or a user's own collator's.

    Args:
        drawn: what the collator returned.

    Returns:
        Number of pairs.

    Example:
        >>> pair_count({"input_ids": torch.ones(4, 3)})
        2
    """
    return len(drawn.examples) if isinstance(drawn, PairExamples) else len(drawn["input_ids"]) // 2


class StepBatches(dict[str, Any]):
    """All micro-batches of one optimizer step of this process.

    A dict, because Transformers looks for the model's main input in what a step is given; this has none.

    Args:
        micro_batches: in the order they are run; the last one is marked as such.

    Example:
        >>> [batch.is_last for batch in StepBatches([MicroBatch({}, None, 1, 3)] * 2).micro_batches]
        [False, True]
    """

    def __init__(self, micro_batches: Sequence[MicroBatch] = ()) -> None:
        last = [replace(batch, is_last=True) for batch in micro_batches[-1:]]
        super().__init__(micro_batches=[*micro_batches[:-1], *last])

    @property
    def micro_batches(self) -> list[MicroBatch]:
        """The micro-batches, in the order they are run; none where another draw carries the step."""
        return self["micro_batches"]
