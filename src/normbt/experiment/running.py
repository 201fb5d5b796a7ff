"""Running one after another: alone in a folder, each training in the processes it asks for, its memory given back."""

import fcntl
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from normbt.arguments import TrainArguments
from normbt.errors import StateError
from normbt.launch import launch, needs_launcher
from normbt.train import run_training


def train_model(arguments: TrainArguments, name: str, progress: Callable[[int, int], None] | None) -> None:
    """Train as `normbt train` does with these settings, in processes of their own where several are wanted."""
    if needs_launcher(arguments):
        if status := launch(arguments):
            raise StateError(f"{name}: `normbt train` ended with status {status}. Its own message stands above.")
    else:
        run_training(arguments, progress=progress)
    free_memory()


def free_memory() -> None:
    """Give back what the last model held, before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(f"{folder}: another process runs this experiment. Wait for it, or stop it.") from error
        yield
