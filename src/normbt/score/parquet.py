"""Rows of JSON to a Parquet file, in constant memory: one pass to learn the types, one to write."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

ROW_GROUP = 4_096
_UNFIT = (arrow.ArrowInvalid, arrow.ArrowTypeError, arrow.ArrowNotImplementedError, OverflowError)
"""What Arrow raises for values that are not of one type, or of none that it has."""


def write_parquet(path: Path, lines: Callable[[], Iterable[str]]) -> None:
    """Write rows as Parquet.

    A column that no type of Parquet holds is kept as text, JSON of what is not text already: its type differs from row
    to row and no wider one holds all, a whole number is beyond 64 bits, or an object in it never has a key.

    Args:
        path: the file; it is flushed to the disk.
        lines: gives the rows, one JSON object each; called twice, or three times where types differ.
    """
    schema = _schema(lines)
    with path.open("wb") as stream:
        with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            for rows in _batches(lines()):
                columns = [_array([row.get(field.name) for row in rows], field.type) for field in schema]
                writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
        stream.flush()
        os.fsync(stream.fileno())


def _schema(lines: Callable[[], Iterable[str]]) -> arrow.Schema:
    types: dict[str, arrow.DataType] = {}
    widened: set[str] = set()
    for rows in _batches(lines()):
        names = dict.fromkeys(name for row in rows for name in row)
        for name in names:
            found = _type_of([row.get(name) for row in rows])
            if types.setdefault(name, found) != found:
                types[name] = _wider(types[name], found)
                widened.add(name)
    # A wider type need not hold every value: a double is wider than a 64-bit integer, and holds 53 bits.
    for rows in _batches(lines()) if widened else ():
        for name in sorted(widened):
            if not _fits([row.get(name) for row in rows], types[name]):
                types[name] = arrow.string()
                widened.remove(name)
    return arrow.schema([(name, arrow.string() if _is_bare(kind) else kind) for name, kind in types.items()])


def _type_of(values: list[Any]) -> arrow.DataType:
    try:
        return arrow.array(values).type
    except _UNFIT:
        return arrow.string()


def _fits(values: list[Any], kind: arrow.DataType) -> bool:
    try:
        _array(values, kind)
    except _UNFIT:
        return False
    return True


def _is_bare(kind: arrow.DataType) -> bool:
    """Whether a type holds what Parquet cannot store: only nulls, or, at any depth, objects without any key."""
    if arrow.types.is_null(kind):
        return True
    inside = [kind]  # not a recursion: values may be nested as deeply as Python's own calls
    while inside:
        kind = inside.pop()
        if arrow.types.is_struct(kind) and kind.num_fields == 0:
            return True
        inside += [kind.field(index).type for index in range(kind.num_fields)]
    return False


def _wider(one: arrow.DataType, other: arrow.DataType) -> arrow.DataType:
    try:
        schemas = [arrow.schema([("column", kind)]) for kind in (one, other)]
        return arrow.unify_schemas(schemas, promote_options="permissive").field("column").type
    except _UNFIT:
        return arrow.string()


def _array(values: list[Any], kind: arrow.DataType) -> arrow.Array:
    if kind == arrow.string():
        values = [
            value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for value in values
        ]
    return arrow.array(values, type=kind)


def _batches(lines: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(lines)
    while batch := [json.loads(line) for line in islice(iterator, ROW_GROUP)]:
        yield batch
