"""Rows of a benchmark's official file to items: the part of reading that the suites of several answers share."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from normbt.errors import DataError
from normbt.pairs import DataReport, Tally, open_source
from normbt.pairs.check import Malformed, belongs, no_row_of_split, require_storable
from normbt.suites.base import Item

T = TypeVar("T")


class NotAnItem(Exception):
    """A row is not an item of the suite; the message says why."""


def read_rows(
    source: str | Path, split: str | None, *, form: str, columns: tuple[str, ...], parse: Callable[..., Item]
) -> tuple[list[Item], DataReport]:
    """Items of a file, a folder or a Hub data set; a row that is none is counted as malformed, with the reason.

    Args:
        source: file (JSON, JSONL, CSV, Parquet, the first three also ``.gz``), folder, or Hub id.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.
        form: what the rows are, for the report.
        columns: fields that every row must have.
        parse: ``parse(row, file)`` makes an item of a row, given the name of the file without its format, or raises
            :class:`NotAnItem`.

    Returns:
        The items and the report.

    Raises:
        DataError: the data cannot be read, no row is an item, or ids repeat.
    """
    opened = open_source(source, name=None, split=split, streaming=False)
    tally = Tally(opened.label, opened.digest, form)
    items: list[Item] = []
    for row in opened.rows():
        if not belongs(row, opened.split):
            tally.add("other_split")
            continue
        tally.add("read")
        try:
            if not isinstance(row.value, Mapping):
                raise NotAnItem(row.value.reason)
            if missing := [name for name in columns if row.value.get(name) is None]:
                found = ", ".join(map(str, row.value))
                raise NotAnItem(f"no {' and no '.join(missing)} (columns: {found})")
            item = parse(row.value, row.file or opened.stem)
            for name in ("id", "source", "category", "subset"):
                _storable(name, getattr(item, name))
        except NotAnItem as problem:
            tally.add_malformed(row.number, f"{row.file}: {problem}" if row.file else str(problem))
            continue
        items.append(item)
        tally.add("kept")
    report = tally.report()
    if report.other_split and not report.read:
        raise no_row_of_split(opened.label, report.other_split)
    if not items:
        raise DataError(f"no usable row. {report.summary()}")
    repeated = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if repeated:
        raise DataError(
            f"{opened.label}: {len(repeated):,} ids occur more than once (the first: {', '.join(repeated[:3])}). Is "
            "the same benchmark in several files of the folder? Name one file."
        )
    return items, report


def texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The answers in a field: a list of texts, at least one.

    Raises:
        NotAnItem: it is something else.

    Example:
        >>> texts({"chosen": ["a", "b"]}, "chosen")
        ('a', 'b')
    """
    value = row[name]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(one, str) for one in value):
        raise NotAnItem(f'"{name}" must be a list of texts, found {value!r:.60}')
    return _storable(name, tuple(value))


def text(row: Mapping[str, Any], name: str) -> str:
    """The text in a field.

    Raises:
        NotAnItem: it is something else.
    """
    if not isinstance(row[name], str):
        raise NotAnItem(f'"{name}" must be text, found {type(row[name]).__name__}')
    return _storable(name, row[name])


def _storable(name: str, value: T) -> T:
    try:
        require_storable(name, value)
    except Malformed as problem:
        raise NotAnItem(str(problem)) from problem
    return value
