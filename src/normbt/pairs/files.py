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
from normbt.pairs.report import readable

if TYPE_CHECKING:
    from datasets import Features

TEXT_FORMATS = (".json", ".jsonl", ".ndjson", ".csv")
FORMATS = (*TEXT_FORMATS, ".parquet")
FORMAT_NAMES = ", ".join(FORMATS) + " (all but Parquet also as .gz)"
_CHUNK = 1 << 20
MAX_ROW = 64 << 20
"""Bytes of the longest row that is read: far beyond any context, and a bound on what a hostile file makes us hold."""
MAX_OBJECT = 1 << 30
"""Bytes of the largest JSON file that is one object of columns, which is read at once."""


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
    """Every row of a file, in order and in bounded memory, compressed or not.

    A row has at most :data:`MAX_ROW` bytes. A JSON object of columns is read at once and has at most
    :data:`MAX_OBJECT`. A key that stands twice in an object is refused: which value is meant, nobody can know.

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


class _Refused(ValueError):
    """JSON that Python would read, but not as it was meant."""


def _without_repeated_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) < len(items):
        names = [name for name, _ in items]
        repeated = next(name for name in value if names.count(name) > 1)
        raise _Refused(f"the key {json.dumps(repeated)} stands twice in one object")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)


def _why_not(problem: ValueError | RecursionError) -> str:
    """What is wrong with JSON that could not be decoded, in words; where, if it is known, is for the caller to add."""
    if isinstance(problem, RecursionError):
        return "JSON nested too deeply"
    if isinstance(problem, json.JSONDecodeError | _Refused):
        return getattr(problem, "msg", str(problem))
    return "a number with thousands of digits"  # the only other thing that Python's decoder refuses


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file; None for one that is longer than a row may be."""
    while line := stream.readline(MAX_ROW + 1):
        if len(line) > MAX_ROW:
            while not line.endswith(b"\n") and (line := stream.readline(_CHUNK)):
                pass
            yield None
        else:
            yield line


def _json_lines(stream: BinaryIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(stream), start=1):
        if line is None:
            yield Row(number, Unreadable(f"a line of more than {MAX_ROW >> 20} MiB"))
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line.decode("utf-8"))
        except UnicodeDecodeError as problem:
            yield Row(number, Unreadable(f"not valid UTF-8 ({problem.reason} at byte {problem.start})"))
        except json.JSONDecodeError as problem:
            yield Row(number, Unreadable(f"broken JSON at column {problem.colno} ({problem.msg})"))
        except (ValueError, RecursionError) as problem:
            yield Row(number, Unreadable(_why_not(problem)))
        else:
            yield Row(number, _as_row(value))


def _as_row(value: Any) -> dict[str, Any] | Unreadable:
    return value if isinstance(value, dict) else Unreadable(f"a row must be an object, found {type(value).__name__}")


def _json_rows(stream: BinaryIO, path: Path) -> Iterator[Row]:
    """An array of rows, an object of columns, one row, or (as some call it .json) one row per line."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    line, head = 1, text.read(_CHUNK)
    while head and not head.strip():
        line, head = line + head.count("\n"), text.read(_CHUNK)
    begin = len(head) - len(head.lstrip())
    try:
        if head[begin : begin + 1] == "[":
            items = _array_items(head[begin + 1 :], text, path, line + head.count("\n", 0, begin))
            for number, value in enumerate(items, start=1):
                yield Row(number, _as_row(value))
            return
    finally:
        text.detach()  # the caller closes the stream
    stream.seek(0)
    lines = (line for line in _lines(stream) if line is None or line.removeprefix(b"\xef\xbb\xbf").strip())
    first = next(lines, b"")
    try:
        value = None if first is None else _DECODER.decode(first.decode("utf-8-sig"))
        more = value is not None and next(lines, b"") != b""
    except (ValueError, RecursionError):
        value, more = None, False
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
        raise DataError(f"{path}: the columns differ in length: {readable(str(lengths))}.")
    for number, cells in enumerate(zip(*value.values(), strict=True), start=1):
        yield Row(number, dict(zip(columns, cells, strict=True)))


def _is_messages(value: dict[str, Any]) -> bool:
    """Whether an object of lists is one row of conversations, not columns."""
    cells = value.get("chosen")
    return bool(cells) and isinstance(cells, list) and isinstance(cells[0], dict) and "role" in cells[0]


def _load_whole(stream: BinaryIO, path: Path) -> Any:
    content = stream.read(MAX_OBJECT + 1)
    if len(content) > MAX_OBJECT:
        raise DataError(
            f"{path}: one JSON object of more than {MAX_OBJECT >> 30} GiB. Write one row per line (.jsonl)."
        )
    text = content.decode("utf-8-sig")
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as problem:
        raise _broken_json(path, getattr(problem, "lineno", 1), problem) from problem


def _broken_json(path: Path, line: int, problem: ValueError | RecursionError) -> DataError:
    column = f", column {problem.colno}" if isinstance(problem, json.JSONDecodeError) else ""
    hint = " If the file holds one row per line, name it .jsonl." if file_format(path) == ".json" else ""
    return DataError(f"{path}: broken JSON on line {line}{column} ({_why_not(problem)}).{hint}")


def _array_items(buffer: str, text: io.TextIOWrapper, path: Path, line: int) -> Iterator[Any]:
    """Items of a JSON array whose opening bracket was just read, without holding the whole array."""
    chunk, wants_item = _CHUNK, True
    while True:
        rest = buffer.lstrip()
        line += buffer[: len(buffer) - len(rest)].count("\n")
        buffer = rest
        if not buffer:
            buffer = text.read(_CHUNK)
            if not buffer:
                raise DataError(f"{path}: broken JSON on line {line}: the file ends inside the array.")
        elif buffer[0] == "]":
            _require_end(buffer[1:], text, path, line)
            return
        elif not wants_item:
            if buffer[0] != ",":
                raise DataError(f"{path}: broken JSON on line {line}: expected a comma between rows.")
            buffer, wants_item = buffer[1:], True
        else:
            try:
                item, end = _DECODER.raw_decode(buffer)
            except json.JSONDecodeError as problem:
                more = text.read(chunk) if len(buffer) <= MAX_ROW else ""
                if not more:
                    raise _broken_json(path, line + problem.lineno - 1, problem) from problem
                chunk *= 2  # the item may be long: keep the number of attempts logarithmic
                buffer += more
                continue
            except (ValueError, RecursionError) as problem:
                raise _broken_json(path, line, problem) from problem
            line += buffer.count("\n", 0, end)
            buffer, chunk, wants_item = buffer[end:], _CHUNK, False
            yield item


def _require_end(rest: str, text: io.TextIOWrapper, path: Path, line: int) -> None:
    """Refuse anything but white space after the array of rows: what stands there may be rows, and would be lost."""
    while rest or (rest := text.read(_CHUNK)):
        found = rest.lstrip()
        line += rest.count("\n", 0, len(rest) - len(found))
        if found:
            excerpt = readable(found + text.read(40), 40)
            raise DataError(
                f'{path}: expected nothing after the array of rows, found "{excerpt}" on line {line}. Join several '
                "arrays into one, or write one row per line and name the file .jsonl."
            )
        rest = ""


def _text_lines(stream: BinaryIO, path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(stream)):
        if line is None:
            raise DataError(f"{path}: line {number + 1} has more than {MAX_ROW >> 20} MiB.")
        yield line.decode("utf-8-sig" if number == 0 else "utf-8")


def _csv_rows(stream: BinaryIO, path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW)  # answers are longer than the default of 128 KiB
    reader = csv.DictReader(_text_lines(stream, path), restkey="", restval=None, strict=True)
    names = list(reader.fieldnames or ())
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: the header names a column twice: {readable(', '.join(repeated))}. Rename one.")
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
