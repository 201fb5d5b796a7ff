"""Numbers on which all processes of a run have to agree: each finds its own, and the least or the most is taken.

Not for the hot path: the host reads the result, so it waits for everything that the device was given before.
"""

from collections.abc import Sequence

import torch


def least_of_all(numbers: Sequence[int], device: torch.device) -> list[int]:
    """The least of each number over the processes of ``torch.distributed``; the numbers, where there is one process.

    A condition that all have to meet is the least of its truth values.

    Args:
        numbers: of this process; equally many in every process, each of which must call.
        device: where the process group sums: the GPU under NCCL.

    Returns:
        As many numbers.

    Example:
        >>> least_of_all([3, True], torch.device("cpu"))
        [3, 1]
    """
    own = [int(number) for number in numbers]
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return own
    of_all = torch.tensor(own, device=device)
    distributed.all_reduce(of_all, op=distributed.ReduceOp.MIN)  # pyright: ignore[reportUnknownMemberType] - untyped
    return of_all.tolist()


def most_of_all(number: int, device: torch.device) -> int:
    """The largest of a number over the processes, as in :func:`least_of_all`.

    Args:
        number: of this process.
        device: as there.

    Returns:
        The number.

    Example:
        >>> most_of_all(3, torch.device("cpu"))
        3
    """
    return -least_of_all([-number], device)[0]
