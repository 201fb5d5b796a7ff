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


def write_parquet(path: Path, lines: Callable[[], Iterable[str]]) -> None:
    """Write rows as Parquet.

    A column whose type differs from row to row, in a way that no wider type holds, is kept as text: JSON of what is not
    text already.

    Args:
        path: the file; it is flushed to the disk.
        lines: gives the rows, one JSON object each; called twice.
    """
    schema = _schema(lines())
    with path.open("wb") as stream:
        with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            for rows in _batches(lines()):
                columns = [_array([row.get(field.name) for row in rows], field.type) for field in schema]
                writer.write_table(arrow.Table.from_arrays(columns, schema=schema))
        stream.flush()
        os.fsync(stream.fileno())


def _schema(lines: Iterable[str]) -> arrow.Schema:
    types: dict[str, arrow.DataType] = {}
    for rows in _batches(lines):
        names = dict.fromkeys(name for row in rows for name in row)
        for name in names:
            found = _type_of([row.get(name) for row in rows])
            types[name] = _wider(types[name], found) if name in types else found
    return arrow.schema([(name, arrow.string() if _is_bare(kind) else kind) for name, kind in types.items()])


def _type_of(values: list[Any]) -> arrow.DataType:
    try:
        return arrow.array(values).type
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
        return arrow.string()


def _is_bare(kind: arrow.DataType) -> bool:
    """Whether a type holds nothing that Parquet could store: only nulls, or objects without any key."""
    return arrow.types.is_null(kind) or (arrow.types.is_struct(kind) and kind.num_fields == 0)


def _wider(one: arrow.DataType, other: arrow.DataType) -> arrow.DataType:
    try:
        schemas = [arrow.schema([("column", kind)]) for kind in (one, other)]
        return arrow.unify_schemas(schemas, promote_options="permissive").field("column").type
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
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
