"""Find the result files in folders, and give every run a short label."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from normbt.errors import DataError
from normbt.results import read_json

MAX_DEPTH = 4
"""How many folders deep results are looked for: a grid of runs holds them three folders deep."""

CHECKPOINT_PREFIX = "checkpoint-"

COMMANDS = "diagnose, evaluate, compare, train, experiment or demo"
"""Whose output folders a report is made of, for messages."""


class Mark(NamedTuple):
    """How a kind of result is known: by a file's name and, in a record that has one, its ``kind``."""

    file: str
    kind: str | None = None


class Source(NamedTuple):
    """One result: its files' folder, the file that marked it, and the label that tells it from its neighbours."""

    file: Path
    label: str

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.file.parent


class Found(NamedTuple):
    """What folders hold: the sources of each mark, and the result files nobody shows, with their kind."""

    sources: dict[Mark, list[Source]]
    unknown: list[tuple[Path, str]]


def find_sources(folders: Sequence[str | os.PathLike[str]], marks: Sequence[Mark]) -> Found:
    """Look through folders and their sub-folders for result files.

    Args:
        folders: what the user named, in that order.
        marks: the kinds of result to look for.

    Returns:
        The results by kind, each in the order of the folders and then of their paths.

    Raises:
        DataError: a folder is missing, is not a folder, or holds no result of any kind.
        StateError: a file was written by a newer version.
    """
    files: dict[Mark, list[Path]] = {}
    unknown: list[tuple[Path, str]] = []
    seen: set[Path] = set()
    names = {mark.file for mark in marks}
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise DataError(f"{folder} {what}. Name the output folder of {COMMANDS}.")
        results = 0
        for path in _candidates(folder, names):
            mark = _mark_of(path, marks)
            if mark is not None:
                results += 1
                if path.resolve() not in seen:  # a folder named twice is shown once
                    files.setdefault(mark, []).append(path)
                    seen.add(path.resolve())
            elif path.resolve() not in seen:
                kind = _kind_of(path) if path.name in names else _kind_of_other(path)
                if kind is not None:
                    unknown.append((path, kind))
                    seen.add(path.resolve())
        if results == 0:
            raise DataError(f"{folder}: {_nothing_found(folder, unknown, marks)}")
    return Found({mark: _labelled(paths) for mark, paths in files.items()}, unknown)


def _nothing_found(folder: Path, unknown: Sequence[tuple[Path, str]], marks: Sequence[Mark]) -> str:
    wanted = ", ".join(sorted({f"{mark.file} ({mark.kind})" if mark.kind else mark.file for mark in marks}))
    others = [f"{path.name} of kind '{kind}'" for path, kind in unknown if folder.resolve() in path.resolve().parents]
    found = f"found only {', '.join(others)}" if others else "found none of them"
    return (
        f"no result to report. Wanted one of {wanted}, there or up to {MAX_DEPTH} folders below; {found}. "
        f"Name the output folder of a finished {COMMANDS}."
    )


def _candidates(folder: Path, names: set[str], depth: int = 0) -> Iterator[Path]:
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    yield from (path for path in entries if (path.name in names or path.suffix == ".json") and path.is_file())
    if depth == MAX_DEPTH:
        return
    below = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    # The log of a run is in its newest checkpoint, and beside them once the run has ended.
    checkpoints = [path for path in below if path.name.startswith(CHECKPOINT_PREFIX)]
    if any(path.name == "trainer_state.json" for path in entries):
        newest = []
    else:
        newest = sorted(checkpoints, key=lambda path: (len(path.name), path.name))[-1:]
    for path in below:
        if path not in checkpoints or path in newest:
            yield from _candidates(path, names, depth + 1)


def _mark_of(path: Path, marks: Sequence[Mark]) -> Mark | None:
    for mark in marks:
        if path.name == mark.file and (mark.kind is None or _kind_of(path) == mark.kind):
            return mark
    return None


def _kind_of(path: Path) -> str | None:
    """The kind a record says it is; None for files that say nothing, which are somebody else's."""
    if path.suffix != ".json":
        return None
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        head = {"kind": "?"}  # a result's name on something else: read_json says what is wrong with it
    if isinstance(head, dict) and "kind" not in head:
        return None
    return str(read_json(path).get("kind"))


def _kind_of_other(path: Path) -> str | None:
    """The kind of a result under a name that no section reads; None for somebody else's file, damaged ones included."""
    try:
        content = path.read_bytes()
        if b'"schema_version"' not in content:  # a tokenizer has many megabytes to parse
            return None
        record = json.loads(content)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("schema_version"), int):
        return None
    return record["kind"] if isinstance(record.get("kind"), str) else None


def _labelled(paths: Sequence[Path]) -> list[Source]:
    """Each file with the part of its folder's path that tells it from the others; the folder's name if it is alone."""
    folders = [path.resolve().parent for path in paths]
    runs = [folder.parent if folder.name.startswith(CHECKPOINT_PREFIX) else folder for folder in folders]
    if len(runs) == 1:
        return [Source(paths[0], runs[0].name)]
    names = [run.parts for run in runs]
    shortest, first, last = min(map(len, names)), 0, 0
    while first < shortest and len({parts[first] for parts in names}) == 1:
        first += 1
    while last < shortest - first and len({parts[-1 - last] for parts in names}) == 1:
        last += 1
    labels = ["/".join(parts[first : len(parts) - last]) or "." for parts in names]
    return [Source(path, label) for path, label in zip(paths, labels, strict=True)]
