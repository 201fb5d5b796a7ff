"""What the machine does to a run, in one message: a full disk, a folder that cannot be written, no memory left."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from normbt.errors import ConfigError

_DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}
)
# What torch says when its own writer could not write, whatever the reason: it passes no errno on.
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container.cc", "iostream error")
_TORCH_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory")


def disk_fault(error: BaseException) -> str | None:
    """Why a file could not be written, in words; None for an error of another kind.

    Example:
        >>> disk_fault(OSError(errno.ENOSPC, "No space left on device"))
        'No space left on device'
        >>> disk_fault(ValueError("a bug")) is None
        True
    """
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{os.strerror(error.errno or 0)}{f' ({error.filename})' if error.filename else ''}"
    if isinstance(error, SafetensorError) and "os error" in str(error):
        return str(error)
    if isinstance(error, RuntimeError) and any(mark in str(error) for mark in _TORCH_WRITER):
        return "torch could not write a file; its disk is full, or a limit on file sizes was reached"
    return None


def memory_fault(error: BaseException) -> str | None:
    """What memory there was not enough of, in words; None for an error of another kind.

    Example:
        >>> memory_fault(MemoryError())
        'the memory of the machine is used up'
    """
    if isinstance(error, torch.OutOfMemoryError):
        return str(error).splitlines()[0]
    if isinstance(error, MemoryError):
        return "the memory of the machine is used up"
    if isinstance(error, RuntimeError) and any(mark in str(error) for mark in _TORCH_MEMORY):
        return str(error).splitlines()[0]
    return None


@contextlib.contextmanager
def writing(folder: str | Path, *, afterwards: Callable[[], str]) -> Iterator[None]:
    """Turn a failure to write into one message.

    Args:
        folder: what is being written.
        afterwards: called after a failure; cleans up, and says where that leaves the user.

    Raises:
        ConfigError: something could not be written; other errors pass.
    """
    try:
        yield
    except Exception as error:
        cause = disk_fault(error)
        if cause is None:
            raise
        free = _free_space(Path(folder))
        raise ConfigError(f"Cannot write {folder}: {cause}{free}. {afterwards()}") from error


def require_writable(folder: str | Path) -> None:
    """Make a folder and write a file into it, so that a run that could not save stops before it starts.

    Args:
        folder: where results will go; stays, empty if it is new.

    Raises:
        ConfigError: it cannot be made or written.

    Example:
        >>> require_writable("/dev/null/results")
        Traceback (most recent call last):
        normbt.errors.ConfigError: Cannot write to /dev/null/results: Not a directory. Choose another output_dir.
    """
    probe = Path(folder) / f".normbt-{secrets.token_hex(4)}"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"normbt")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"Cannot write to {folder}: {error.strerror}. Choose another output_dir.") from error


def _free_space(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return f" ({shutil.disk_usage(folder).free / 1e9:.1f} GB free on its disk)"
    except OSError:
        return ""
