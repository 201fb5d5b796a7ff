"""Which pair comes next where pairs of alike length are to come together."""

from collections.abc import Iterator, Sequence

import pyarrow.compute as arrow
import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class PairsByLength(LengthGroupedSampler):
    """Transformers' order for ``group_by_length``, which follows from a seed and the epoch alone.

    Transformers draws it from torch's random state, which differs between processes, and after a resume in a later
    epoch; here every process needs the same order, and a resumed run that of the unbroken one.

    Args:
        lengths: tokens of each pair.
        pairs_per_step: pairs that are to be of alike length: those of an optimizer step.
        seed: of the order.

    Example:
        >>> sampler = PairsByLength([9, 1, 8, 2, 9, 1], pairs_per_step=3, seed=0)
        >>> [sampler.lengths[place] for place in sampler]
        [9, 2, 1, 8, 9, 1]
    """

    def __init__(self, lengths: Sequence[int], *, pairs_per_step: int, seed: int) -> None:
        super().__init__(pairs_per_step, lengths=list(lengths))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch by Transformers and Accelerate."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def pair_lengths(dataset: Dataset) -> list[int]:
    """Tokens of both sequences of each encoded pair.

    Args:
        dataset: encoded pairs, with ``chosen_ids`` and ``rejected_ids``.

    Returns:
        One number for each pair, in the order of the data.

    Example:
        >>> pair_lengths(Dataset.from_dict({"chosen_ids": [[1, 2], [1]], "rejected_ids": [[1], [1, 2, 3]]}))
        [3, 4]
    """
    sides = ["chosen_ids", "rejected_ids"]
    lengths = []
    for table in dataset.select_columns(sides).with_format("arrow").iter(batch_size=1000):
        chosen, rejected = (arrow.list_value_length(table[side]) for side in sides)  # type: ignore[index] - a table
        lengths += arrow.add(chosen, rejected).to_pylist()  # type: ignore[attr-defined] - made when pyarrow is loaded
    return lengths
