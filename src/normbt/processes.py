"""The processes that share a job: what `accelerate launch` or `torchrun` started, or this one alone."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar, cast

from normbt.errors import ConfigError, NormbtError

T = TypeVar("T")

_PATIENCE = timedelta(days=30)
"""How long a process waits for the slowest one; a process that dies is noticed by the launcher, not by waiting."""


class _Failure(NamedTuple):
    """What a process hands in where its work raised."""

    kind: type[NormbtError]
    message: str


class Processes(NamedTuple):
    """This process among those that share the work.

    Attributes:
        index: place of this process, from 0.
        count: number of processes.
        device: where this process should run; None for the first GPU, or the CPU.
        wait: returns when every process has called it.
        gather: what every process calls it with, in their order, in every process.
    """

    index: int
    count: int
    device: str | None
    wait: Callable[[], None]
    gather: Callable[[Any], list[Any]]

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.index == 0

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do the part of this process, and get the parts of all.

        Args:
            work: makes the part; every process calls this method with its own.

        Returns:
            What each process made, in their order.

        Raises:
            NormbtError: the work of another process raised something. No process waits for a part that never comes; the
                one that failed raises what its work raised.

        Example:
            >>> ALONE.together(lambda: 3)
            [3]
        """
        if self.count == 1:
            return [work()]
        failure: Exception | None = None
        outcome: Any = None
        try:
            outcome = work()
        except Exception as error:
            # Told in words, since not every exception can be sent.
            kind = type(error) if isinstance(error, NormbtError) else NormbtError
            failure, outcome = error, _Failure(kind, str(error) or type(error).__name__)
        outcomes = self.gather(outcome)
        if failure is not None:
            raise failure
        for index, found in enumerate(outcomes):
            if isinstance(found, _Failure):
                raise found.kind(f"Process {index} stopped: {found.message}")
        return outcomes

    def main_only(self, work: Callable[[], T]) -> T:
        """What the main process makes of something that is done once, in every process.

        Raises:
            NormbtError: as in :meth:`together`.
        """
        parts: list[T | None] = self.together(lambda: work() if self.is_main else None)
        return cast(T, parts[0])


ALONE = Processes(0, 1, None, lambda: None, lambda part: [part])
"""A process that shares its work with no other."""


def running_processes() -> Processes:
    """Join the processes of the launcher that started this one; alone without a launcher.

    Raises:
        ConfigError: the launcher started several, and Accelerate cannot connect them here.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        return ALONE
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object, parse_flag_from_env

    # Without the flag Accelerate takes processes on a machine that has only CPUs for unrelated ones.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=_PATIENCE)
    if state.num_processes != started:
        raise ConfigError(
            f"The launcher started {started} processes, and Accelerate connects {state.num_processes} of them on this "
            "machine. Start one process, or set ACCELERATE_USE_CPU=true to run all on the CPU."
        )
    return Processes(
        index=state.process_index,
        count=state.num_processes,
        device=str(state.device),
        wait=state.wait_for_everyone,
        gather=lambda part: gather_object([part]),
    )
