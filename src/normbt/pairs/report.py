"""What became of every row of a source: the counts that are printed and saved with a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

REASONS_KEPT = 5


def readable(text: str, limit: int = 300) -> str:
    r"""Text from a data file as part of a message: at most ``limit`` characters, and nothing a terminal would obey.

    Example:
        >>> readable("role \x1b[2J", limit=9)
        'role \\x1b…'
    """
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: limit + 1])
    return escaped if len(text) <= limit and len(escaped) <= limit else escaped[:limit] + "…"


@dataclass(frozen=True)
class DataReport:
    """How many rows were read and what became of each: ``read = kept + malformed + tied + empty +
    identical + overlong``.

    Attributes:
        source: where the rows came from, as the user named it.
        digest: SHA-256 of the content, in hexadecimal; None for a stream whose content is not known beforehand.
        form: shape of the kept pairs, such as "plain text with a prompt".
        read: rows read, those of another split aside.
        kept: pairs that are left.
        malformed: rows that are not a preference pair.
        tied: rows with two rated answers whose ratings are equal.
        empty: pairs with an answer that is empty or only white space.
        identical: pairs whose two answers are equal as text, or equal as token ids.
        overlong: pairs that do not fit the longest allowed sequence.
        truncated: kept pairs whose prompt was cut at the beginning.
        eos_appended: sequences of kept pairs that a chat template did not close with EOS, and that got it.
        empty_prompts: kept pairs with an empty prompt.
        other_split: rows left out because their ``split`` column names another split; not part of `read`.
        reasons: row number and reason of the first five malformed rows. A row is a line in JSONL and CSV files,
            counted from 1, and a position elsewhere.
    """

    source: str
    digest: str | None = None
    form: str = ""
    read: int = 0
    kept: int = 0
    malformed: int = 0
    tied: int = 0
    empty: int = 0
    identical: int = 0
    overlong: int = 0
    truncated: int = 0
    eos_appended: int = 0
    empty_prompts: int = 0
    other_split: int = 0
    reasons: tuple[tuple[int, str], ...] = ()

    @property
    def dropped(self) -> int:
        """Rows that were read and are not left."""
        return self.read - self.kept

    def summary(self) -> str:
        """The report for people: one line, and one more for each malformed row that is named.

        Example:
            >>> print(DataReport("pairs.jsonl", read=5, kept=3, malformed=1, empty=1,
            ...                  reasons=((4, 'no "rejected"'),)).summary())
            pairs.jsonl: 5 rows read, 3 pairs kept; 1 malformed, 1 empty, 0 identical, 0 over-long
              row 4: no "rejected"
        """
        line = (
            f"{self.source}: {self.read:,} rows read, {self.kept:,} pairs kept; {self.malformed:,} malformed, "
            f"{self.empty:,} empty, {self.identical:,} identical, {self.overlong:,} over-long"
        )
        notes = [
            f"{count:,} {what}"
            for count, what in (
                (self.tied, "rated equal and dropped"),
                (self.truncated, "with a cut prompt"),
                (self.eos_appended, "sequences closed with EOS where the chat template does not"),
                (self.empty_prompts, "with an empty prompt"),
                (self.other_split, "rows of other splits left out"),
            )
            if count
        ]
        if self.form:
            notes.insert(0, self.form)
        if notes:
            line += f" ({'; '.join(notes)})"
        lines = [line, *(f"  row {number}: {reason}" for number, reason in self.reasons)]
        if self.malformed > len(self.reasons):
            lines.append(f"  and {self.malformed - len(self.reasons):,} more malformed rows")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        values = asdict(self)
        values["reasons"] = [{"row": number, "reason": reason} for number, reason in self.reasons]
        return values

    def then(self, later: "DataReport") -> "DataReport":
        """This report followed by that of a later step over the kept pairs, such as encoding.

        Example:
            >>> DataReport("a", read=10, kept=9, empty=1).then(DataReport("a", read=9, kept=7, overlong=2)).kept
            7
        """
        added = {name: getattr(self, name) + getattr(later, name) for name in _COUNTS if name not in ("read", "kept")}
        return replace(self, kept=later.kept, reasons=(*self.reasons, *later.reasons)[:REASONS_KEPT], **added)

    @classmethod
    def merge(cls, reports: Sequence["DataReport"]) -> "DataReport":
        """One report over several sources: counts add up, each reason names its source."""
        if len(reports) == 1:
            return reports[0]
        digests = [report.digest for report in reports]
        joined = None if None in digests else hashlib.sha256(" ".join(map(str, digests)).encode()).hexdigest()
        counts = {name: sum(getattr(report, name) for report in reports) for name in _COUNTS}
        reasons = [(number, f"{report.source}: {reason}") for report in reports for number, reason in report.reasons]
        return cls(
            source=" + ".join(report.source for report in reports),
            digest=joined,
            form=reports[0].form if reports else "",
            reasons=tuple(reasons[:REASONS_KEPT]),
            **counts,
        )


_COUNTS = tuple(column.name for column in fields(DataReport) if column.type in (int, "int"))


@dataclass
class Tally:
    """The counts of one source while it is being read; `report` freezes them."""

    source: str
    digest: str | None = None
    form: str = ""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    reasons: list[tuple[int, str]] = field(default_factory=list)

    def add(self, outcome: str, count: int = 1) -> None:
        """Count rows under one of the names of the report."""
        self.counts[outcome] += count

    def add_malformed(self, number: int, reason: str) -> None:
        """Count a malformed row and keep its reason if it is among the first five."""
        self.counts["malformed"] += 1
        if len(self.reasons) < REASONS_KEPT:
            self.reasons.append((number, readable(reason)))

    def report(self) -> DataReport:
        """The counts so far."""
        return DataReport(self.source, self.digest, self.form, reasons=tuple(self.reasons), **self.counts)


class LiveReport:
    """The report of a stream: reads like a `DataReport`, and its counts grow while the stream is read.

    It counts every row that passes through in the process that reads: a second pass over the stream counts again, and
    a data loader with worker processes leaves the counts in its workers.
    """

    def __init__(self, tallies: Sequence[Tally]) -> None:
        self._tallies = list(tallies)

    @property
    def now(self) -> DataReport:
        """The counts so far, as a value that no longer changes."""
        return DataReport.merge([tally.report() for tally in self._tallies])

    def restart(self) -> None:
        """Forget the rows counted so far: those that were read only to learn the columns of the stream."""
        for tally in self._tallies:
            tally.counts.update(dict.fromkeys(_COUNTS, 0))
            tally.reasons.clear()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is being copied or unpickled the tallies are not there yet
            raise AttributeError(name)
        return getattr(self.now, name)

    def __repr__(self) -> str:
        return f"LiveReport({self.now!r})"
