"""Rows of one file: JSON, JSONL, CSV (gzipped or not) and Parquet, one at a time and with their numbers."""

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from normbt.errors import DataError

if TYPE_CHECKING:
    from datasets import Features

TEXT_FORMATS = (".json", ".jsonl", ".ndjson", ".csv")
FORMATS = (*TEXT_FORMATS, ".parquet")
FORMAT_NAMES = ", ".join(FORMATS) + " (all but Parquet also as .gz)"
_CHUNK = 1 << 20


class Unreadable(NamedTuple):
    """Stands for a row that could not be decoded."""

    reason: str


class Row(NamedTuple):
    """One row as found; `number` counts lines in JSONL and CSV, positions elsewhere, both from 1."""

    number: int
    value: dict[str, Any] | Unreadable
    file: str = ""


def file_format(path: Path) -> str | None:
    """The format a file name stands for, such as ".jsonl", or None when it is not one that is read here."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower()
        return suffix if suffix in TEXT_FORMATS else None
    return suffix if suffix in FORMATS else None


def stem(path: Path) -> str:
    """The name of a file without folder and format."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def file_columns(path: Path) -> list[str] | None:
    """The columns a file declares before its first row; None for JSON, where every row may have its own."""
    kind = file_format(path)
    if kind == ".parquet":
        return list(_open_parquet(path).schema_arrow.names)
    if kind == ".csv":
        with _open(path) as stream, _readable(path):
            return list(next(csv.reader(_text_lines(stream, path), strict=True), []))
    return None


def parquet_features(path: Path) -> "Features | None":
    """The column types of a Parquet file as `datasets` understands them; None for another format."""
    if file_format(path) != ".parquet":
        return None
    from datasets import Features

    return Features.from_arrow_schema(_open_parquet(path).schema_arrow)


def read_file(path: Path) -> Iterator[Row]:
    """Every row of a file, in order and in constant memory (a JSON object of columns is read at once).

    Raises:
        DataError: the file is empty, of another format, or damaged so that the rows after the damage are lost. A line
            that cannot be decoded on its own is handed out as `Unreadable` instead.
    """
    kind = file_format(path)
    if kind is None:
        raise DataError(f"{path}: not a format that is read here. Use one of {FORMAT_NAMES}.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    reader = {".json": _json_rows, ".csv": _csv_rows}.get(kind, _json_lines)
    with _open(path) as stream, _readable(path) as progress:
        seen = False
        for row in reader(stream, path):
            progress.row = row.number
            seen = True
            yield row
        if not seen:
            raise DataError(f"{path}: the file holds no row.")


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value] - GzipFile reads like a BinaryIO


class _readable:
    """Turns what a damaged file raises while it is read into one `DataError` that says how far reading came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row = 0

    def __enter__(self) -> "_readable":
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: object) -> None:
        after = f"after row {self.row}" if self.row else "before the first row"
        if isinstance(problem, EOFError):
            raise DataError(
                f"{self.path}: the gzip file is truncated, it ends {after}. Fetch or write it again."
            ) from problem
        if isinstance(problem, gzip.BadGzipFile | zlib.error):
            raise DataError(f"{self.path}: not a valid gzip file, {after} ({problem}).") from problem
        if isinstance(problem, UnicodeDecodeError):
            raise DataError(f"{self.path}: not valid UTF-8, {after} ({problem.reason}).") from problem
        if isinstance(problem, csv.Error):
            raise DataError(f"{self.path}: broken CSV {after} ({problem}).") from problem


def _json_lines(stream: BinaryIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
            value = json.loads(text)
        except UnicodeDecodeError as problem:
            yield Row(number, Unreadable(f"not valid UTF-8 ({problem.reason} at byte {problem.start})"))
        except json.JSONDecodeError as problem:
            yield Row(number, Unreadable(f"broken JSON at column {problem.colno} ({problem.msg})"))
        except RecursionError:
            yield Row(number, Unreadable("JSON nested too deeply"))
        else:
            yield Row(number, _as_row(value))


def _as_row(value: Any) -> dict[str, Any] | Unreadable:
    return value if isinstance(value, dict) else Unreadable(f"a row must be an object, found {type(value).__name__}")


def _json_rows(stream: BinaryIO, path: Path) -> Iterator[Row]:
    """An array of rows, an object of columns, one row, or (as some call it .json) one row per line."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    first_line = text.readline()
    while first_line and not first_line.strip():
        first_line = text.readline()
    if first_line.lstrip().startswith("["):
        try:
            for number, value in enumerate(_array_items(first_line.lstrip()[1:], text, path), start=1):
                yield Row(number, _as_row(value))
        finally:
            text.detach()  # the caller closes the stream
        return
    try:
        value = json.loads(first_line)
        more = any(line.strip() for line in text)
    except json.JSONDecodeError:
        more = False
        value = None
    text.detach()
    stream.seek(0)
    if more:
        yield from _json_lines(stream, path)
        return
    if value is None:
        value = _load_whole(stream, path)
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an array of rows or an object of columns, found {type(value).__name__}.")
    columns = list(value)
    if not columns or not all(isinstance(cells, list) for cells in value.values()) or _is_messages(value):
        yield Row(1, value)
        return
    lengths = {name: len(cells) for name, cells in value.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{path}: the columns differ in length: {lengths}.")
    for number, cells in enumerate(zip(*value.values(), strict=True), start=1):
        yield Row(number, dict(zip(columns, cells, strict=True)))


def _is_messages(value: dict[str, Any]) -> bool:
    """Whether an object of lists is one row of conversations, not columns."""
    cells = value.get("chosen")
    return bool(cells) and isinstance(cells, list) and isinstance(cells[0], dict) and "role" in cells[0]


def _load_whole(stream: BinaryIO, path: Path) -> Any:
    try:
        return json.loads(stream.read().decode("utf-8-sig"))
    except json.JSONDecodeError as problem:
        raise _broken_json(path, problem.lineno, problem) from problem


def _broken_json(path: Path, line: int, problem: json.JSONDecodeError) -> DataError:
    hint = " If the file holds one row per line, name it .jsonl." if file_format(path) == ".json" else ""
    return DataError(f"{path}: broken JSON on line {line}, column {problem.colno} ({problem.msg}).{hint}")


def _array_items(buffer: str, text: io.TextIOWrapper, path: Path) -> Iterator[Any]:
    """Items of a JSON array whose opening bracket was just read, without holding the whole array."""
    decoder = json.JSONDecoder()
    line, chunk, wants_item = 1, _CHUNK, True
    while True:
        rest = buffer.lstrip()
        line += buffer[: len(buffer) - len(rest)].count("\n")
        buffer = rest
        if not buffer:
            buffer = text.read(_CHUNK)
            if not buffer:
                raise DataError(f"{path}: broken JSON on line {line}: the file ends inside the array.")
        elif buffer[0] == "]":
            return
        elif not wants_item:
            if buffer[0] != ",":
                raise DataError(f"{path}: broken JSON on line {line}: expected a comma between rows.")
            buffer, wants_item = buffer[1:], True
        else:
            try:
                item, end = decoder.raw_decode(buffer)
            except json.JSONDecodeError as problem:
                more = text.read(chunk)
                if not more:
                    raise _broken_json(path, line + problem.lineno - 1, problem) from problem
                chunk *= 2  # the item may be long: keep the number of attempts logarithmic
                buffer += more
                continue
            line += buffer.count("\n", 0, end)
            buffer, chunk, wants_item = buffer[end:], _CHUNK, False
            yield item


def _text_lines(stream: BinaryIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(stream):
        yield line.decode("utf-8-sig" if number == 0 else "utf-8")


def _csv_rows(stream: BinaryIO, path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # answers are longer than the default of 128 KiB
    reader = csv.DictReader(_text_lines(stream, path), restkey="", restval=None, strict=True)
    for cells in reader:
        number = reader.line_num
        if "" in cells and isinstance(cells[""], list):
            yield Row(number, Unreadable(f"{len(cells[''])} cells more than the header has"))
        elif None in cells.values():
            missing = sum(cell is None for cell in cells.values())
            yield Row(number, Unreadable(f"{missing} cells fewer than the header has"))
        else:
            yield Row(number, _with_number(cells))


def _with_number(cells: dict[str, Any]) -> dict[str, Any]:
    """CSV has no types: the one numeric column of a pair is read as a number where it is one."""
    if "margin" in cells:
        with contextlib.suppress(ValueError):  # left as text: the check of the row reports it
            cells["margin"] = float(cells["margin"])
    return cells


def _open_parquet(path: Path) -> Any:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as problem:
        raise DataError(f"{path}: not a readable Parquet file ({problem}).") from problem


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as arrow

    file = _open_parquet(path)
    if file.metadata.num_rows == 0:
        raise DataError(f"{path}: the file holds no row.")
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1000):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)
    except (arrow.ArrowException, OSError) as problem:
        raise DataError(f"{path}: damaged Parquet file after row {number} ({problem}).") from problem
