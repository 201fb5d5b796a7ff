"""Write and read result files: each appears whole or not at all.

A file is written beside its final name, flushed to the disk and renamed. Numbers that JSON cannot hold (NaN,
infinities) become ``null``, are counted, and are named in a warning.
"""

import contextlib
import datetime
import decimal
import hashlib
import json
import logging
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normbt.errors import ConfigError, DataError, StateError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
"""Version of the file formats below; raised by one whenever the meaning of an existing field changes."""


class Written(NamedTuple):
    """What a writer did: lines written, non-finite numbers turned into ``null``, SHA-256 of the file."""

    rows: int
    nulls: int
    sha256: str


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any], *, sort_keys: bool = False) -> Written:
    """Write one record as an indented JSON file, whole or not at all.

    Args:
        path: the file; missing parent folders are made.
        record: what JSON can hold, NumPy scalars included; NaN and infinities become ``null`` and are counted.
        sort_keys: order the keys by name instead of keeping their order.

    Returns:
        The counts and the digest of what was written.

    Raises:
        ConfigError: the file cannot be written there; what stood there before is untouched.
        TypeError: the record holds something JSON cannot express; the message names the field.
    """
    strict, lost = _strict(record)
    text = json.dumps(strict, indent=4 if sort_keys else 2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    digest = _write_atomically(Path(path), [text + "\n"])
    _warn_about_nulls(path, len(lost), lost[:1])
    return Written(rows=1, nulls=len(lost), sha256=digest)


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> Written:
    """Write one JSON record per line, whole or not at all; ``rows`` may be a generator.

    Args:
        path: the file; missing parent folders are made.
        rows: the records, as in :func:`write_json`.

    Returns:
        The counts and the digest of what was written.

    Raises:
        ConfigError: the file cannot be written there; what stood there before is untouched.
        TypeError: a row holds something JSON cannot express; the message names the field.
    """
    count, nulls, first = 0, 0, []

    def lines() -> Iterator[str]:
        nonlocal count, nulls, first
        for row in rows:
            strict, lost = _strict(row)
            count += 1
            nulls += len(lost)
            first = first or [f"line {count}, {field}" for field in lost[:1]]
            yield json.dumps(strict, ensure_ascii=False, allow_nan=False) + "\n"

    digest = _write_atomically(Path(path), lines())
    _warn_about_nulls(path, nulls, first)
    return Written(rows=count, nulls=nulls, sha256=digest)


def json_value(value: Any) -> Any:
    """A value of somebody's data as a file of results carries it: dates and times in ISO form, decimals as text.

    Args:
        value: what a cell of a JSON or Parquet file holds, lists and mappings of these included.

    Returns:
        The value in the types of JSON.

    Raises:
        TypeError: it holds something else; the message is the name of its type.

    Example:
        >>> json_value({"when": datetime.date(2025, 1, 31), "prices": [decimal.Decimal("0.10")]})
        {'when': '2025-01-31', 'prices': ['0.10']}
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [json_value(one) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: json_value(one) for key, one in value.items()}
    raise TypeError(type(value).__name__)


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> Written:
    """Write lines that are JSON already, each with its line break, whole or not at all.

    Raises:
        ConfigError: the file cannot be written there; what stood there before is untouched.
    """
    count = 0

    def counted() -> Iterator[str]:
        nonlocal count
        for line in lines:
            count += 1
            yield line

    digest = _write_atomically(Path(path), counted())
    return Written(rows=count, nulls=0, sha256=digest)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        ConfigError: the file cannot be written there; what stood there before is untouched.
    """
    _write_atomically(Path(path), [text])


def read_json(path: str | os.PathLike[str], *, kind: str | None = None) -> dict[str, Any]:
    """Read a JSON record written by :func:`write_json` and check that this version understands it.

    Args:
        path: the file.
        kind: the ``kind`` the record must have, such as ``"evaluation"``; ``None`` accepts any.

    Returns:
        The record.

    Raises:
        DataError: the file is missing, is not a JSON object, or is of another kind.
        StateError: the file was written by a newer version of the program.
    """
    path = Path(path)
    try:
        record = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not valid JSON ({error.msg}). Write it again.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: wanted a JSON object, found {type(record).__name__}. Is this a result file?")
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StateError(
            f"{path} uses result format {version}, this normbt reads formats up to {SCHEMA_VERSION}: "
            "it was written by a newer version. Upgrade normbt, or write the file again with this version."
        )
    if kind is not None and (version is None or record.get("kind") != kind):
        raise DataError(f"{path}: wanted a result of kind '{kind}', found kind {record.get('kind')!r}.")
    return record


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read the records of a JSON-lines file one by one.

    Raises:
        DataError: the file is missing, or a line is not a JSON object (the message gives its number).
    """
    path = Path(path)
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number}: not valid JSON ({error.msg}). Write the file again.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number}: wanted a JSON object, found {type(row).__name__}.")
        yield row


def check_digest(path: Path, sha256: str, *, described_by: Path, again: str) -> None:
    """Refuse rows that are not those a summary was made from; reads the file in pieces, whatever its size.

    Args:
        path: the rows.
        sha256: the digest that the summary names.
        described_by: the summary.
        again: what to do again, such as "Evaluate".

    Raises:
        DataError: the rows cannot be read.
        StateError: the digests differ.
    """
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != sha256:
        raise StateError(
            f"{path} is not the file that {described_by} describes (SHA-256 {found[:12]}…, wanted {sha256[:12]}…): a "
            f"run was cut short or a file was edited. {again} again."
        )


def _strict(record: Any, field: str = "") -> tuple[Any, list[str]]:
    """Copy of ``record`` in plain JSON types, and the names of the fields whose number was not finite."""
    if record is None or isinstance(record, str | bool | int):
        return record, []
    if isinstance(record, np.generic):
        return _strict(record.item(), field)
    if isinstance(record, float):
        return (record, []) if math.isfinite(record) else (None, [field])
    lost: list[str] = []
    if isinstance(record, Mapping):
        copy: dict[str, Any] = {}
        for key, value in record.items():
            if not isinstance(key, str):
                raise TypeError(f"field {field or 'record'!r}: key {key!r} is not a string")
            copy[key], more = _strict(value, f"{field}.{key}" if field else key)
            lost += more
        return copy, lost
    if isinstance(record, list | tuple):
        items: list[Any] = []
        for index, value in enumerate(record):
            item, more = _strict(value, f"{field}[{index}]")
            items.append(item)
            lost += more
        return items, lost
    raise TypeError(f"field {field or 'record'!r}: JSON cannot hold a {type(record).__name__}")


def _warn_about_nulls(path: str | os.PathLike[str], nulls: int, first: list[str]) -> None:
    if nulls:
        logger.warning("%s: %d numbers were NaN or infinite and are written as null (first: %s)", path, nulls, first[0])


def _write_atomically(path: Path, lines: Iterable[str]) -> str:
    """Write ``lines`` to ``path`` through a temporary file beside it; return the SHA-256 of the bytes."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for line in lines:
                data = line.encode()
                digest.update(data)
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path}: {error.strerror or error}. Files written earlier are as they were. "
            "Free some space or choose another output folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; never there when the folder cannot be written
            temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def _read_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            yield from stream
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}). Is this a result file?") from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"Cannot read {path}: {error.strerror or error}. Is this the folder of a finished run?")


def read_text(path: Path) -> str:
    """The whole of a result file; a missing or unreadable one is a :class:`~normbt.errors.DataError`."""
    return "".join(_read_lines(path))
