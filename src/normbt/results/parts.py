"""A long job in parts: each appears whole or not at all, so that a killed job goes on where it was cut.

A part is a JSONL file of its own: a header line, then its rows. Parts are numbered by their place in the input, so they
may be made in any order and by several processes; joined in the order of their numbers they are what one process would
have written in one go.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from normbt.errors import DataError, StateError
from normbt.results.files import _read_lines, read_json, write_json, write_jsonl

RUN_FILE = "run.json"
_SHOWN = 24
"""Characters of a setting's value that an error shows."""


class Parts:
    """The parts of one output file, in a folder beside it.

    Args:
        output: the file that the parts will be joined to.
        run: every input and setting that decides what the parts hold, by name.
    """

    def __init__(self, output: Path, run: Mapping[str, Any]) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self.output = output
        self.run: dict[str, Any] = json.loads(json.dumps(dict(run)))  # as it will be read back

    def begin(self, *, overwrite: bool = False) -> bool:
        """Make the folder, or go on in the one that a cut run of the same settings left.

        Args:
            overwrite: throw away what an earlier run left, of the same settings too.

        Returns:
            Whether a run goes on.

        Raises:
            StateError: the parts there belong to another input or other settings; the message names them.
        """
        if (self.folder / RUN_FILE).is_file():
            found = read_json(self.folder / RUN_FILE)
            if not overwrite:
                require_same_run(found, self.run, self.folder)
                return True
            self.remove()
        write_json(self.folder / RUN_FILE, self.run)
        return False

    def has(self, number: int) -> bool:
        """Whether a part is there; one that is, is complete."""
        return self._path(number).is_file()

    def write(self, number: int, header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        """Write one part, flushed to the disk before it gets its name."""

        def lines() -> Iterator[Mapping[str, Any]]:
            yield header
            yield from rows

        write_jsonl(self._path(number), lines())

    def headers(self, count: int) -> Iterator[dict[str, Any]]:
        """The headers of parts 0 to ``count - 1``.

        Raises:
            StateError: a part is not there.
        """
        for number in range(count):
            yield json.loads(next(self._lines(number)))

    def lines(self, count: int) -> Iterator[str]:
        """The rows of parts 0 to ``count - 1`` as lines of JSON, in order.

        Raises:
            StateError: a part is not there.
        """
        for number in range(count):
            lines = self._lines(number)
            next(lines)
            yield from lines

    def remove(self) -> None:
        """Delete the folder with all parts; the record of the run goes last, so that no half of it looks like one."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name != RUN_FILE:
                    path.unlink()
            shutil.rmtree(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.jsonl"

    def _lines(self, number: int) -> Iterator[str]:
        try:
            yield from _read_lines(self._path(number))
        except DataError as error:
            raise StateError(
                f"Part {number} of {self.output} is missing in {self.folder}. Processes on several machines need an "
                "output folder that all of them see; otherwise start again with --overwrite."
            ) from error


def require_same_run(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on with what another run left.

    Args:
        found: the record of the earlier run.
        wanted: the record of this run.
        where: what holds the record.

    Raises:
        StateError: they differ; every difference is named with both values.
    """
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        changes = [f"{name} was {_shown(found.get(name))}, now {_shown(wanted.get(name))}" for name in names]
        raise StateError(
            f"{where} belongs to another run: {'; '.join(changes)}. Use the same data and settings to go on, another "
            "output file, or --overwrite to start anew."
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
