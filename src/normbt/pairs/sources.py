"""Where rows come from: a file, a local folder, a Hub data set, or a data set that is already loaded."""

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbt.errors import DataError
from normbt.pairs.files import FORMAT_NAMES, Row, file_columns, file_format, parquet_features, read_file, stem

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset

# The words `datasets` reads a split from in file names: https://huggingface.co/docs/datasets/repository_structure
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class FileSource:
    """Rows of one file, or of the files of one split of a folder.

    Attributes:
        label: the source as the user named it.
        stem: short name, used to tell the ids of several sources apart.
        digest: SHA-256 of the bytes of the files.
        files: what is read, in order.
        split: keep the rows whose ``split`` column says so; None keeps all.
    """

    label: str
    stem: str
    digest: str
    files: tuple[Path, ...]
    split: str | None = None

    @property
    def columns(self) -> list[str] | None:
        """The columns every row has, where the format declares them."""
        declared = [file_columns(path) for path in self.files]
        return declared[0] if len(declared) == 1 else None

    @property
    def features(self) -> "Features | None":
        """The types a single Parquet file declares."""
        return parquet_features(self.files[0]) if len(self.files) == 1 else None

    def rows(self) -> Iterator[Row]:
        """Every row, in order."""
        for path in self.files:
            name = path.name if len(self.files) > 1 else ""
            for row in read_file(path):
                yield row._replace(file=name) if name else row


@dataclass(frozen=True)
class DatasetSource:
    """Rows of a loaded data set: from the Hub, from `save_to_disk`, or handed over by the caller."""

    label: str
    stem: str
    digest: str | None
    dataset: "Dataset | IterableDataset"
    split: str | None = None  # a loaded data set is already one split

    @property
    def columns(self) -> list[str] | None:
        """The columns every row has; None for a stream that does not know them yet."""
        return self.dataset.column_names

    @property
    def features(self) -> "Features | None":
        """The types of the columns, where they are known."""
        return self.dataset.features

    def rows(self) -> Iterator[Row]:
        """Every row, in order."""
        for number, value in enumerate(self.dataset, start=1):
            yield Row(number, value)  # type: ignore[arg-type] - rows of a data set are dictionaries


Source = FileSource | DatasetSource


def open_source(
    source: "str | Path | Dataset | IterableDataset", *, name: str | None, split: str | None, streaming: bool
) -> Source:
    """Find what a source stands for, and the split that is wanted of it.

    Args:
        source: path of a file or folder, Hub id, or a loaded data set.
        name: configuration of a Hub data set.
        split: split to read; None takes "train", or the only one, and every row of a single file.
        streaming: read a Hub data set while it is used instead of downloading it.

    Raises:
        DataError: there is no such source, or it has no such split.
    """
    if not isinstance(source, str | Path):
        return _from_object(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(str(source), path, split)
    if path.exists():
        if file_format(path) is None:
            raise DataError(f"{source}: not a format that is read here. Use one of {FORMAT_NAMES}.")
        return FileSource(str(source), stem(path), _digest([path]), (path,), split)
    if file_format(path) is not None or not _HUB_ID.fullmatch(str(source)):
        raise DataError(f"{source}: no such file.{_nearest(path)}")
    return _from_hub(str(source), name, split, streaming)


def distinct_stems(sources: Sequence[Source]) -> list[str]:
    """A short name for each source, made longer or numbered where two would be the same."""
    stems = [source.stem for source in sources]
    return [f"{name}-{index}" if stems.count(name) > 1 else name for index, name in enumerate(stems, start=1)]


def choose_split(label: str, available: Sequence[str], wanted: str | None) -> str:
    """The split to read: the one asked for, else "train", else the only one.

    Example:
        >>> choose_split("my/data", ["filtered"], None)
        'filtered'
    """
    if wanted is not None:
        base = wanted.split("[")[0]
        if base not in available:
            raise DataError(f'{label}: no split "{base}". It has: {", ".join(available)}.')
        return wanted
    if "train" in available:
        return "train"
    if len(available) == 1:
        return available[0]
    raise DataError(f"{label}: name the split to read. It has: {', '.join(available)}.")


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of the bytes of one file, or of the digests of several."""
    digests = []
    for path in files:
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _nearest(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else None
    close = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()]) if folder else []
    return f" Did you mean {close[0]}?" if close else ""


def _from_object(dataset: Any) -> DatasetSource:
    from datasets import Dataset, IterableDataset

    if isinstance(dataset, Dataset):
        return DatasetSource("dataset", "dataset", _dataset_digest(dataset), dataset)
    if isinstance(dataset, IterableDataset):
        return DatasetSource("stream", "stream", None, dataset)
    raise DataError(f"a source is a path, a Hub id or a datasets.Dataset, found {type(dataset).__name__}.")


def _dataset_digest(dataset: "Dataset") -> str:
    """SHA-256 of the rows of a loaded data set as Arrow data, whatever files or memory they lie in."""
    import pyarrow as arrow

    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, table.schema) as writer:  # type: ignore[union-attr] - the format is arrow
            writer.write_table(table.combine_chunks())  # type: ignore[union-attr] - as above
        digest.update(sink.getvalue())
    return digest.hexdigest()


def _from_folder(label: str, folder: Path, split: str | None) -> Source:
    from datasets import load_from_disk

    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        try:
            saved: Dataset | DatasetDict = load_from_disk(str(folder))
        except Exception as problem:  # a damaged folder fails in many ways: missing file, bad JSON, bad Arrow
            raise DataError(f"{label}: this saved data set cannot be loaded ({problem}).") from problem
        if isinstance(saved, dict):
            chosen = choose_split(label, [str(one) for one in saved], split)
            if chosen not in saved:
                raise DataError(f'{label}: a part of a split ("{chosen}") can be read from the Hub only.')
            saved = saved[chosen]
        return replace(_from_object(saved), label=label, stem=folder.name)
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and file_format(path) is not None:
            files.setdefault(_split_in_name(path.relative_to(folder)), []).append(path)
    if not files:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{label}: no data file in this folder (found {found}). It reads {FORMAT_NAMES}.")
    if set(files) == {""}:
        # No file name tells a split: one data set, whose rows may.
        return FileSource(label, folder.name, _digest(files[""]), tuple(files[""]), split)
    if "" in files:
        stray = ", ".join(path.name for path in files[""][:3])
        raise DataError(
            f"{label}: some file names tell a split ({', '.join(name for name in files if name)}) and others do not "
            f"({stray}). Rename or move those."
        )
    chosen = choose_split(label, list(files), split)
    if chosen not in files:
        raise DataError(f'{label}: a part of a split ("{chosen}") can be read from the Hub only.')
    return FileSource(label, folder.name, _digest(files[chosen]), tuple(files[chosen]))


def _split_in_name(path: Path) -> str:
    """The split a path tells, by the words `datasets` uses; "" when it tells none."""
    words = re.split(r"[-._ 0-9/\\]+", path.as_posix().lower())
    return next((split for split, names in SPLIT_WORDS.items() if set(names) & set(words)), "")


def _from_hub(label: str, name: str | None, split: str | None, streaming: bool) -> DatasetSource:
    import datasets

    try:
        available = [str(one) for one in datasets.get_dataset_split_names(label, name)]
        chosen = choose_split(label, available, split)
        dataset = datasets.load_dataset(label, name, split=chosen, streaming=streaming)
    except DataError:
        raise
    except ConnectionError as problem:
        raise DataError(
            f"{label}: not a local path, and the Hub could not be reached ({problem}). Check the name and the network, "
            "or give a local file."
        ) from problem
    except (OSError, ValueError, RuntimeError) as problem:
        # No such data set, a gated one, an unknown configuration, or files it cannot read: `datasets` says which.
        raise DataError(f"{label}: the Hub data set could not be loaded. {problem}") from problem
    opened = _from_object(dataset)
    return replace(opened, label=f"{label} ({chosen})", stem=label.split("/")[-1])
