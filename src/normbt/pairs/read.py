"""Read preference pairs from any source, checked, counted and cached."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normbt.errors import DataError
from normbt.pairs.check import RATED_COLUMNS, Malformed, Pair, check_rows, no_row_of_split
from normbt.pairs.files import Row
from normbt.pairs.report import DataReport, LiveReport, Tally, readable
from normbt.pairs.shape import Shape, Survey, columns_of, common_shape
from normbt.pairs.sources import DatasetSource, Source, distinct_stems, open_source

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

    OneSource = str | Path | Dataset | IterableDataset


def read_pairs(
    source: "OneSource | Sequence[OneSource]",
    *,
    name: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    conversational: bool = False,
) -> "tuple[Dataset | IterableDataset, DataReport | LiveReport]":
    """Preference pairs in canonical form, and the report of what became of every row.

    Columns of the result: ``id`` (unique text), ``prompt`` (absent when the answers contain it), ``chosen``,
    ``rejected``, ``margin`` (float, if given) and every further column untouched. All pairs are plain text or all are
    conversations (lists of ``{role, content}``): if any pair is a conversation, plain text becomes one user and one
    assistant message.

    Args:
        source: a JSON, JSONL, CSV or Parquet file (the first three also ``.gz``), a folder of such files or one
            written by ``save_to_disk``, a Hub id, a loaded data set, or a sequence of these, read one after another.
        name: configuration of a Hub data set.
        split: split to read. None takes "train", or the only split, of a folder or Hub data set, and every row of a
            file. In a file whose rows have a ``split`` column it selects the rows; rows without one are "train".
        streaming: read rows when they are asked for. The checks are the same and the counts grow while the stream is
            read; the first pair decides the form of all.
        conversational: make conversations of plain text pairs, to be rendered by a chat template.

    Returns:
        The data set and its report: a `DataReport`, or a `LiveReport` when the data set is a stream.

    Raises:
        DataError: the source does not exist or cannot be read, no pair is left, ids repeat, or a prompt or margin is in
            some rows only.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"prompt": ["2+2?", "Hi"], "chosen": ["4", "Hello"], "rejected": ["5", "Hello "]})
        >>> pairs, report = read_pairs(rows)
        >>> pairs[0]
        {'id': 'row-1', 'prompt': '2+2?', 'chosen': '4', 'rejected': '5'}
        >>> print(report.summary())
        dataset: 2 rows read, 1 pairs kept; 0 malformed, 0 empty, 1 identical, 0 over-long (plain text with a prompt)
    """
    several = isinstance(source, Sequence) and not isinstance(source, str)
    opened = [
        open_source(one, name=name, split=split, streaming=streaming)
        for one in (source if several else [source])  # type: ignore[union-attr] - a sequence by the line above
    ]
    if not opened:
        raise DataError("no data source was given.")
    for one in opened:
        _require_columns(one)
    if streaming or any(_is_stream(one) for one in opened):
        return _stream(opened, conversational)
    return _load(opened, conversational)


def _is_stream(source: Source) -> bool:
    from datasets import IterableDataset

    return isinstance(source, DatasetSource) and isinstance(source.dataset, IterableDataset)


def _require_columns(source: Source) -> None:
    """Refuse a source that says beforehand that it has no pairs; row by row where it does not say."""
    columns = source.columns
    if columns is not None and all(name in columns for name in RATED_COLUMNS):
        return
    if columns is not None and (missing := [name for name in ("chosen", "rejected") if name not in columns]):
        found = readable(", ".join(columns)) or "none"
        raise DataError(f"{source.label}: no column {' and no column '.join(missing)}. Columns found: {found}.")


def _load(sources: list[Source], conversational: bool) -> "tuple[Dataset, DataReport]":
    from datasets import Dataset

    key = _cache_key(sources, conversational)
    folder = _cache_folder() / key
    if not (folder / "reports.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and moved into place, so that an interrupted or a simultaneous run leaves nothing half done.
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix="writing-"))
        try:
            _write(sources, conversational, aside)
            with contextlib.suppress(OSError):  # another process was first
                aside.replace(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    values = json.loads((folder / "reports.json").read_text(encoding="utf-8"))
    reports = [replace(_report_from(saved), source=source.label) for saved, source in zip(values, sources, strict=True)]
    dataset = Dataset.from_file(str(folder / "pairs.arrow"))
    # The fingerprint follows from the content, so that what is computed from it later is found in the cache too.
    dataset._fingerprint = key
    return dataset, DataReport.merge(reports)


def _write(sources: list[Source], conversational: bool, folder: Path) -> None:
    """Check all rows in a first pass, write the pairs in the shape they share in a second."""
    from datasets.arrow_writer import ArrowWriter

    surveys, tallies = [], []
    for source in sources:
        tally = Tally(source.label, source.digest)
        survey = Survey(source.label)
        for pair in _checked(source, tally, "Checking"):
            survey.add(pair)
        _require_pairs(tally.report())
        surveys.append(survey)
        tallies.append(tally)
    shape = common_shape(surveys, conversational=conversational)
    features = columns_of(shape, surveys, _declared_features(sources))
    prefixes = _prefixes(sources, surveys)
    with ArrowWriter(features=features, path=str(folder / "pairs.arrow")) as writer:
        for source, prefix in zip(sources, prefixes, strict=True):
            for pair in _checked(source, Tally(source.label), "Writing"):
                values = shape.values(pair)
                values["id"] = prefix + values["id"]
                writer.write({column: _as_declared(values.get(column), kind) for column, kind in features.items()})
        writer.finalize()
    for tally in tallies:
        tally.form = str(shape)
    saved = [tally.report().to_dict() for tally in tallies]
    (folder / "reports.json").write_text(json.dumps(saved), encoding="utf-8")


def _checked(source: Source, tally: Tally, verb: str) -> Iterator[Pair]:
    from datasets.utils import tqdm

    rows = tqdm(source.rows(), desc=f"{verb} {source.stem}", unit=" rows", delay=2)
    return check_rows(rows, tally, split=source.split)


def _as_declared(value: Any, kind: Any) -> Any:
    """A value as its column stores it: text where the types of a further column differ from row to row."""
    if value is None or isinstance(value, str) or getattr(kind, "dtype", None) != "string":
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _declared_features(sources: list[Source]) -> "Features | None":
    return sources[0].features if len(sources) == 1 else None


def _prefixes(sources: list[Source], surveys: list[Survey]) -> list[str]:
    """What goes before the ids of each source: nothing, or its name when the same id occurs in two sources."""
    total = sum(len(survey.ids) for survey in surveys)
    distinct = len(set().union(*(survey.ids for survey in surveys)))
    generated = sum(survey.generated_ids > 0 for survey in surveys)
    if total == distinct and generated < 2:
        return [""] * len(sources)
    return [f"{stem}/" for stem in distinct_stems(sources)]


def _require_pairs(report: DataReport) -> None:
    if report.kept == 0:
        if report.other_split and not report.read:
            raise no_row_of_split(report.source, report.other_split)
        raise DataError(f"no usable pair. {report.summary()}")


def _report_from(saved: dict[str, Any]) -> DataReport:
    reasons = tuple((reason["row"], reason["reason"]) for reason in saved.pop("reasons"))
    return DataReport(**saved, reasons=reasons)


def _cache_folder() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "normbt"


def _cache_key(sources: list[Source], conversational: bool) -> str:
    """Changes with the content, with what is asked of it, and with the code that reads it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    contents = [[source.digest, source.split] for source in sources]
    digest.update(json.dumps([contents, distinct_stems(sources), conversational]).encode())
    return digest.hexdigest()[:32]


def _stream(sources: list[Source], conversational: bool) -> "tuple[IterableDataset, LiveReport]":
    from datasets import IterableDataset

    tallies = [Tally(source.label, source.digest) for source in sources]
    reader = _StreamReader(sources, tallies, conversational)
    only = sources[0]
    if len(sources) == 1 and isinstance(only, DatasetSource) and isinstance(only.dataset, IterableDataset):
        # `map` keeps the shards of the stream, which several processes then share.
        columns = only.dataset.column_names or list(next(iter(only.dataset)))
        dataset = only.dataset.map(reader.check_batch, with_indices=True, batched=True, remove_columns=columns)
    else:
        dataset = IterableDataset.from_generator(reader.pairs)
    return dataset, LiveReport(tallies)


@dataclass
class _StreamReader:
    """Checks rows as they come; the first pair decides the shape of all."""

    sources: list[Source]
    tallies: list[Tally]
    conversational: bool
    shape: Shape | None = field(default=None)

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Every pair of every source."""
        stems = distinct_stems(self.sources)
        kept = 0
        for source, tally, stem in zip(self.sources, self.tallies, stems, strict=True):
            prefix = f"{stem}/" if len(self.sources) > 1 else ""
            for values in self._checked(source.rows(), tally, source.split):
                kept += 1
                yield {**values, "id": prefix + values["id"]}
        if not kept:
            _require_pairs(DataReport.merge([tally.report() for tally in self.tallies]))

    def check_batch(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        """The pairs among a batch of rows, as columns."""
        rows = [
            Row(index + 1, dict(zip(batch, cells, strict=True)))
            for index, cells in zip(indices, zip(*batch.values(), strict=True), strict=True)
        ]
        kept = list(self._checked(rows, self.tallies[0], None))
        columns = dict.fromkeys(column for values in kept for column in values)
        return {column: [values.get(column) for values in kept] for column in columns}

    def _checked(self, rows: Any, tally: Tally, split: str | None) -> Iterator[dict[str, Any]]:
        for pair in check_rows(rows, tally, split=split):
            if self.shape is None:
                if self.conversational and not pair.conversational and not pair.explicit:
                    raise DataError(f"{tally.source}: plain text without a prompt cannot become conversations.")
                self.shape = Shape(
                    self.conversational or pair.conversational, pair.explicit, margin="margin" in pair.values
                )
            tally.form = str(self.shape)
            self._require_same_columns(pair, tally)
            try:
                yield self.shape.values(pair)
            except Malformed as problem:
                tally.add("kept", -1)
                tally.add_malformed(pair.number, str(problem))

    def _require_same_columns(self, pair: Pair, tally: Tally) -> None:
        assert self.shape is not None
        for name, expected in (("prompt", self.shape.explicit), ("margin", self.shape.margin)):
            if (name in pair.values) != expected:
                begins, differs = ("with", "has none") if expected else ("without", "has one")
                raise DataError(
                    f'{tally.source} row {pair.number}: the stream began {begins} a "{name}" and this pair {differs}. '
                    "Give it to all pairs or to none."
                )
