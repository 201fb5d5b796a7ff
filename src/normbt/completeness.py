"""Whether a checkpoint is whole: a list of its files, written last, by which a half-written one is recognised."""

import hashlib
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from normbt.errors import DataError, StateError
from normbt.results import read_json, write_json

logger = logging.getLogger(__name__)

COMPLETE_FILE = "normbt_complete.json"
"""Written when everything else of a checkpoint is on the disk: each file with its size and a digest, and the time."""

_SAMPLE = 1 << 20
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class FileRecord(NamedTuple):
    """Size in bytes, and SHA-256 of the first and the last mebibyte: what a killed or filled-up write gets wrong."""

    bytes: int
    sha256_of_ends: str


def seal(folder: str | Path) -> None:
    """Declare a checkpoint complete: flush its files to the disk, and list them.

    Args:
        folder: the checkpoint, in which nobody writes any more.

    Raises:
        ConfigError: the list cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "model.safetensors").write_bytes(b"weights")
        >>> what_is_missing(folder)
        'it has no normbt_complete.json, which is written last'
        >>> seal(folder)
        >>> what_is_missing(folder) is None
        True
    """
    folder = Path(folder)
    records = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != COMPLETE_FILE:
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
            records[path.relative_to(folder).as_posix()] = _record(path)._asdict()
    # In the file itself, since most ways to copy a folder give the copies times of their own.
    write_json(folder / COMPLETE_FILE, {"completed_ns": time.time_ns(), "files": records})


def what_is_missing(folder: str | Path) -> str | None:
    """Why a checkpoint is not complete, in words; None when it is.

    Args:
        folder: the checkpoint.
    """
    folder = Path(folder)
    if not (folder / COMPLETE_FILE).is_file():
        return f"it has no {COMPLETE_FILE}, which is written last"
    try:
        files = {name: FileRecord(**record) for name, record in read_json(folder / COMPLETE_FILE)["files"].items()}
    except (DataError, KeyError, TypeError, AttributeError):
        return f"its {COMPLETE_FILE} is damaged"
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != wanted.bytes:
            return f"{name} has {size:,} bytes of {wanted.bytes:,}"
        if _record(path) != wanted:
            return f"{name} is not what was written"
    return None


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, complete or not, by step."""
    output_dir = Path(output_dir)
    found = output_dir.iterdir() if output_dir.is_dir() else iter(())
    steps = {path: match for path in found if (match := _CHECKPOINT.fullmatch(path.name)) and path.is_dir()}
    return sorted(steps, key=lambda path: int(steps[path][1]))


def choose_checkpoint(wanted: str | Path | None, output_dir: str | Path) -> tuple[Path, list[str]]:
    """The checkpoint to resume from: the one that was named, or else the last complete one in the run's folder.

    Args:
        wanted: a checkpoint; None for the one that was completed last.
        output_dir: folder of the run.

    Returns:
        The checkpoint, and a sentence about each one that was passed over: those that may be newer.

    Raises:
        StateError: the named checkpoint is missing or incomplete (the last complete one is named), or there is none.
    """
    if wanted is not None:
        if not Path(wanted).is_dir():
            raise StateError(f"{wanted}: no such checkpoint. {_advice(Path(wanted).parent)}")
        if (problem := what_is_missing(wanted)) is not None:
            raise StateError(f"{wanted} is incomplete: {problem}. {_advice(Path(wanted).parent)}")
        return Path(wanted), []
    passed_over = []
    for folder in reversed(_by_age(output_dir)):
        problem = what_is_missing(folder)
        if problem is None:
            return folder, passed_over
        passed_over.append(f"{folder} is incomplete ({problem}) and is passed over.")
    raise StateError(
        " ".join([*passed_over, f"There is no complete checkpoint in {output_dir}: nothing to resume from."])
        + " Start without --resume_from_checkpoint."
    )


def last_complete(output_dir: str | Path) -> Path | None:
    """The checkpoint that was completed last; None where none is complete."""
    return next((folder for folder in reversed(_by_age(output_dir)) if what_is_missing(folder) is None), None)


def warn_of_another_run(output_dir: str | Path) -> None:
    """Warn, at the start of a run that resumes nothing, that its folder holds complete checkpoints of another."""
    if (good := last_complete(output_dir)) is not None:
        logger.warning(
            "%s is of an earlier run, and this one starts anew in the same folder. Until it has completed a checkpoint "
            "of its own, --resume_from_checkpoint true goes on with the earlier run. Use another output_dir, or remove "
            "the earlier checkpoints, to keep them apart.",
            good,
        )


def rotate(newest: str | Path, limit: int | None, *, keep: Sequence[str | Path | None] = ()) -> list[Path]:
    """Delete the oldest complete checkpoints of a run beyond a limit.

    Incomplete ones are neither counted nor touched: counted, they would push out the last good one.

    Args:
        newest: the checkpoint that was just completed; it stays.
        limit: complete checkpoints to keep, the newest included; None or 0 keeps all.
        keep: checkpoints that stay whatever their age, such as the best one.

    Returns:
        What was deleted.
    """
    newest = Path(newest)
    if not limit or limit < 0:
        return []
    kept = {newest, *(Path(folder) for folder in keep if folder is not None)}
    complete = [folder for folder in _by_age(newest.parent) if (folder / COMPLETE_FILE).is_file()]
    excess = len(complete) - max(limit, len(kept & set(complete)))
    deleted = [folder for folder in complete if folder not in kept][: max(excess, 0)]
    for folder in deleted:
        (folder / COMPLETE_FILE).unlink(missing_ok=True)  # first: half deleted, it must not look complete
        shutil.rmtree(folder, ignore_errors=True)
    return deleted


def _by_age(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, complete or not, those that were completed first before the others.

    Not by step, which only decides between equal ages: a run that starts anew in the folder, or resumes an early
    checkpoint, writes lower steps than it finds. One without a list comes last: it may be the newest.
    """
    return sorted(checkpoints_in(output_dir), key=_completed)


def _completed(folder: Path) -> float:
    """When a checkpoint was completed, in nanoseconds."""
    path = folder / COMPLETE_FILE
    if not path.is_file():
        return math.inf
    try:
        recorded = read_json(path).get("completed_ns")
    except DataError:
        recorded = None
    # A damaged list, or one that was written before the time was part of it, is as old as its file.
    return recorded if isinstance(recorded, int) else path.stat().st_mtime_ns


def _advice(output_dir: Path) -> str:
    good = last_complete(output_dir)
    if good is None:
        return f"There is no complete checkpoint in {output_dir}."
    return f"The last complete one is {good}: resume from that."


def _record(path: Path) -> FileRecord:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        stream.seek(max(size - _SAMPLE, 0))
        digest.update(stream.read(_SAMPLE))
    return FileRecord(size, digest.hexdigest())
