"""Where the host waits for the device, seen without one: by the operators that would make it wait."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    # The size of their result is a number that the host has to read.
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
)


class HostWaits(TorchDispatchMode):
    """Counts how often a number is read from the device, or a fresh one copied to it: the host waits for both.

    The second is ``torch.tensor(number)`` and the like; ``torch.full((), number)`` is written by the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in READS
        if function in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
            self.count += any(index is not None and index.dtype == torch.bool for index in args[1])
        self.count += function is torch.ops.aten.lift_fresh.default and args[0].dim() == 0
        return function(*args, **(kwargs or {}))
