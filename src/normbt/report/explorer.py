"""The pairs that the report's explorer shows: which rows and texts of a large file, and their columns.

A file may hold more pairs than a page can carry, and texts weigh the most. Which are shown is decided here, by a rule
that the page states: rows are a seeded sample and the most telling ones; texts are taken in the order of telling, until
the page is full. Files are read line by line, twice, and never held whole.
"""

import gzip
import hashlib
import heapq
import json
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from normbt.results import read_jsonl

SAMPLE_SHARE = 0.75
"""Share of the rows of a too large table that is drawn at random; the rest are the most telling of the others."""

LONGEST_TEXT = 20_000
"""Characters of one prompt or answer that the page holds; the rest is cut, and the page says so there."""

FLUSH_EVERY = 32_768
"""Bytes of text after which the compressed size is taken stock of."""

TEXTS = ("prompt", "chosen", "rejected")

ColumnKind = Literal["number", "flag", "choice"]


@dataclass(frozen=True)
class Column:
    """A column of the table: the field of the file, its heading, what it means, and whether it is shown at first."""

    name: str
    label: str
    kind: ColumnKind
    help: str
    shown: bool = False
    filter: bool = False


@dataclass
class PairTable:
    """The shown pairs of one result file.

    The first ``sampled`` rows are all pairs of the file or a random sample of them; the rest were added because they
    are telling, and belong in no statistic.
    """

    run: str
    path: Path
    ranking: str
    columns: Sequence[Column]
    total: int
    ids: list[str]
    values: dict[str, NDArray[Any]]
    sampled: int
    lines: NDArray[np.int64]
    text_sizes: NDArray[np.int64]
    telling: list[int]

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as numbers, NaN where there is none."""
        return np.asarray(self.values[name], dtype=float)

    def choices(self, name: str) -> list[str | None]:
        """A column as text, None where there is none."""
        return list(self.values[name])

    @property
    def has_texts(self) -> bool:
        """Whether the file holds the texts of its pairs."""
        return bool(self.text_sizes.any())

    @property
    def rows(self) -> int:
        """How many pairs are shown."""
        return len(self.ids)


Ranking = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float64]]
"""How telling each row is: more is sooner, minus infinity and NaN are never."""


def read_table(
    path: Path,
    *,
    run: str,
    columns: Sequence[Column],
    rankings: Sequence[Ranking],
    ranking: str,
    derived: Mapping[str, Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]] | None = None,
    max_rows: int,
    seed: int,
) -> PairTable:
    """Read the columns of a pairs file, and keep a sample of the rows where there are too many.

    Args:
        path: the JSONL file; every line has ``id`` and the fields of the columns.
        run: label of the run.
        columns: the columns to keep.
        rankings: what makes a row telling; they take turns, a random draw as the last.
        ranking: the same in words.
        derived: columns that are not in the file, computed from those that are.
        max_rows: most rows to keep.
        seed: of the sample. The same pairs are drawn from every file that holds them.

    Returns:
        The table, without texts.

    Raises:
        DataError: the file cannot be read, or a line is not a record.
    """
    stored = [column for column in columns if column.name not in (derived or {})]
    numbers = {column.name: array("d") for column in stored if column.kind != "choice"}
    choices: dict[str, list[str | None]] = {column.name: [] for column in stored if column.kind == "choice"}
    names: dict[str, str] = {}
    ids: list[str] = []
    text_sizes = array("q")
    for row in read_jsonl(path):
        ids.append(str(row["id"]))
        text_sizes.append(sum(min(len(str(row.get(name) or "")), LONGEST_TEXT) for name in TEXTS))
        for name, cells in numbers.items():
            value = row.get(name)
            cells.append(float("nan") if value is None else float(value))
        for name, cells in choices.items():
            value = row.get(name)
            cells.append(None if value is None else names.setdefault(str(value), str(value)))
    values: dict[str, NDArray[Any]] = {name: np.frombuffer(cells, dtype=float) for name, cells in numbers.items()}
    values |= {name: np.array(cells, dtype=object) for name, cells in choices.items()}
    for name, compute in (derived or {}).items():
        values[name] = compute(values)

    drawn = _drawing_order(ids, seed)
    telling = _in_turns([*(_ranked(ranking(values)) for ranking in rankings), drawn])
    total = len(ids)
    if total <= max_rows:
        chosen, sampled = np.arange(total), total
    else:
        sampled = round(SAMPLE_SHARE * max_rows)
        sample = np.sort(drawn[:sampled])
        inside = set(sample.tolist())
        extra = [row for row in telling if row not in inside][: max_rows - sampled]
        chosen = np.concatenate([sample, np.sort(np.array(extra, dtype=np.int64))]).astype(np.int64)
    place = {row: index for index, row in enumerate(chosen.tolist())}
    return PairTable(
        run=run,
        path=path,
        ranking=ranking,
        columns=columns,
        total=total,
        ids=[ids[row] for row in chosen],
        values={name: cells[chosen] for name, cells in values.items()},
        sampled=sampled,
        lines=chosen,
        text_sizes=np.frombuffer(text_sizes, dtype=np.int64)[chosen],
        telling=[place[row] for row in telling if row in place],
    )


def _drawing_order(ids: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A random order that depends on each pair's id and the seed alone, so that files of the same pairs agree."""
    key = str(seed).encode()
    digests = [hashlib.blake2b(i.encode("utf-8", "replace"), digest_size=8, key=key).digest() for i in ids]
    return np.argsort(np.array([int.from_bytes(d) for d in digests], dtype=np.uint64), kind="stable")


def _ranked(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    usable = np.flatnonzero(~np.isnan(scores) & (scores > -np.inf))
    return usable[np.argsort(-scores[usable], kind="stable")]


def _in_turns(orders: Sequence[NDArray[np.int64]]) -> list[int]:
    """The first of each order, the second of each, and so on, each row once."""
    turns = heapq.merge(*([(turn, which, int(row)) for turn, row in enumerate(o)] for which, o in enumerate(orders)))
    return list(dict.fromkeys(row for _, _, row in turns))


@dataclass(frozen=True)
class PackedTexts:
    """The texts of pairs, compressed: for each table, the record of each of its rows (-1 where it has none)."""

    compressed: bytes
    records: list[NDArray[np.int64]]
    kept: int
    wanted: int
    cut: int


def pack_texts(tables: Sequence[PairTable], *, max_bytes: int) -> PackedTexts:
    """Compress the texts of the tables' pairs, the most telling first, until they fill ``max_bytes``.

    A pair that several runs share is held once. A text over 20,000 characters is cut and ends in a note.

    Args:
        tables: the tables, whose files hold texts.
        max_bytes: most bytes of the compressed stream.

    Returns:
        A gzip stream of one JSON record per line, ``[prompt, chosen, rejected]``, and which rows have which record.
    """
    orders = [np.array(table.telling, dtype=np.int64) for table in tables]
    turns = _in_turns_of_tables(orders)
    # Compressed text is rarely below a tenth of its size: what cannot fit is not read into memory.
    texts = _collect(tables, turns, most_bytes=10 * max_bytes)
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    parts: list[bytes] = []
    size, pending, count, cut = 0, 0, 0, 0
    record_of: dict[bytes, int] = {}
    records = [np.full(table.rows, -1, dtype=np.int64) for table in tables]
    for which, row in turns:
        found = texts.get((which, row))
        if found is None:
            continue
        digest, line, shortened = found
        if digest not in record_of:
            part = packer.compress(line)
            pending += len(line)
            if pending > FLUSH_EVERY:  # what the packer holds back is not counted until it is flushed
                part, pending = part + packer.flush(zlib.Z_SYNC_FLUSH), 0
            size += len(part)
            parts.append(part)
            if size + pending > max_bytes:
                break
            record_of[digest] = count
            count += 1
            cut += shortened
        records[which][row] = record_of[digest]
    parts.append(packer.flush())
    return PackedTexts(
        compressed=b"".join(parts),
        records=records,
        kept=sum(int((rows >= 0).sum()) for rows in records),
        wanted=sum(table.rows for table in tables),
        cut=cut,
    )


def _in_turns_of_tables(orders: Sequence[NDArray[np.int64]]) -> list[tuple[int, int]]:
    longest = max((len(order) for order in orders), default=0)
    return [(w, int(order[turn])) for turn in range(longest) for w, order in enumerate(orders) if turn < len(order)]


def _collect(
    tables: Sequence[PairTable], turns: Sequence[tuple[int, int]], *, most_bytes: int
) -> dict[tuple[int, int], tuple[bytes, bytes, int]]:
    """Digest, line and number of cut texts of rows, in turn, as many as fit ``most_bytes`` before compression."""
    wanted: list[dict[int, int]] = [{} for _ in tables]
    left = most_bytes
    for which, row in turns:
        left -= int(tables[which].text_sizes[row])
        if left < 0:
            break
        wanted[which][int(tables[which].lines[row])] = row
    found = {}
    for which, table in enumerate(tables):
        for number, record in enumerate(read_jsonl(table.path) if wanted[which] else ()):
            row = wanted[which].get(number)
            if row is not None and record.get("chosen") is not None:
                shown = [_shortened(record.get(name)) for name in TEXTS]
                line = json.dumps([text for text, _ in shown], ensure_ascii=False, separators=(",", ":")) + "\n"
                data = line.encode("utf-8", "replace")
                found[which, row] = (hashlib.sha256(data).digest(), data, sum(shorter for _, shorter in shown))
    return found


def _shortened(text: Any) -> tuple[str | None, bool]:
    if text is None:
        return None, False
    whole = str(text)
    if len(whole) <= LONGEST_TEXT:
        return whole, False
    return f"{whole[:LONGEST_TEXT]}\n[… {len(whole) - LONGEST_TEXT:,} more characters are not in this report]", True


def pack_columns(table: PairTable) -> bytes:
    """The table's ids and columns as compressed JSON; numbers have five significant digits.

    Choices are indices into a list of names; flags and numbers that do not exist are null.
    """
    columns: dict[str, Any] = {}
    for column in table.columns:
        cells = table.values[column.name]
        if column.kind == "choice":
            names = list(dict.fromkeys(cell for cell in cells if cell is not None))
            index = {name: number for number, name in enumerate(names)}
            columns[column.name] = {"names": names, "of": [None if c is None else index[c] for c in cells]}
        elif column.kind == "flag":
            columns[column.name] = [None if np.isnan(cell) else int(cell) for cell in table.numbers(column.name)]
        else:
            columns[column.name] = [_short(cell) for cell in table.numbers(column.name).tolist()]
    record = {"ids": table.ids, "lines": table.lines.tolist(), "columns": columns}
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode("utf-8", "replace"), compresslevel=9, mtime=0)


def _short(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
