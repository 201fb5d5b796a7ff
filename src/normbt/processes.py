"""The processes that share a job: what `accelerate launch` started, or this one alone."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

_PATIENCE = timedelta(days=30)
"""How long a process waits for the slowest one; a process that dies is noticed by the launcher, not by waiting."""


class Processes(NamedTuple):
    """This process among those that share the work.

    Attributes:
        index: place of this process, from 0.
        count: number of processes.
        device: where this process should run; None for the first GPU, or the CPU.
        wait: returns when every process has called it.
    """

    index: int
    count: int
    device: str | None
    wait: Callable[[], None]

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.index == 0


def running_processes() -> Processes:
    """Join the processes of the launcher that started this one; alone without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(0, 1, None, lambda: None)
    from accelerate import PartialState

    state = PartialState(timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes, str(state.device), state.wait_for_everyone)
