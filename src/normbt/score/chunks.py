"""A source in chunks of rows, and what becomes of one chunk: the rows with their rewards, and its counts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from normbt.errors import ConfigError, DataError
from normbt.inference import RewardModel
from normbt.moments import moments_of
from normbt.pairs.check import Malformed, belongs, no_row_of_split
from normbt.pairs.files import Row
from normbt.pairs.report import REASONS_KEPT, readable
from normbt.pairs.sources import Source
from normbt.pairs.texts import Kind, ScorableRow, scorable_row
from normbt.results import Normalisation, ScoringCounts, json_value
from normbt.scoring import Progress, score

OnMalformed = Literal["skip", "stop"]
Checked = tuple[Row, ScorableRow]


class Form(NamedTuple):
    """What all rows of a source are; its first good row decides.

    Attributes:
        kind: pairs or answers.
        conversational: lists of messages; plain text becomes one then.
        explicit: prompt and answer are told apart.
    """

    kind: Kind
    conversational: bool
    explicit: bool

    @property
    def sides(self) -> int:
        """How many sequences of a row are scored."""
        return 2 if self.kind == "pairs" else 1

    def __str__(self) -> str:
        shape = "conversations" if self.conversational else "plain text"
        return f"{self.kind} of {shape}{' with a prompt' if self.explicit else ''}"

    def require(self, row: ScorableRow, *, as_chat: bool) -> None:
        """Refuse a row of another form.

        Raises:
            Malformed: it cannot be read as the rows before it were.
        """
        if row.kind != self.kind:
            raise Malformed(f"a row of {row.kind}, where the data began with {self.kind}")
        if row.conversational and not self.conversational:
            raise Malformed("a conversation, where the data began with plain text")
        if as_chat and not row.conversational and not row.explicit:
            raise Malformed('plain text without a "prompt" cannot become a conversation, as the other rows do')


@dataclass(frozen=True)
class ChunkScorer:
    """Scores chunks of rows, all in the same way.

    Attributes:
        model: the model.
        form: what the rows are.
        column: name of the reward's column; other columns begin with it.
        batch_tokens: most tokens of a batch.
        on_malformed: leave malformed rows out, or stop at the first.
        source: the data as named by the user, for messages.
        split: keep the rows whose ``split`` column says so; None keeps all.
        normalisation: applied to every reward; None for rewards as the model gives them.
    """

    model: RewardModel
    form: Form
    column: str
    batch_tokens: int
    on_malformed: OnMalformed
    source: str
    split: str | None
    normalisation: Normalisation | None

    def run(self, rows: Sequence[Row], progress: Progress | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The header and the rows of the part that a chunk becomes.

        Raises:
            ConfigError: a column of the rewards is in the data already.
            DataError: a row is malformed and `on_malformed` is ``"stop"``, or it holds what JSON cannot.
        """
        counts = ScoringCounts(read=0, scored=0, malformed=0, empty=0, truncated=0, non_finite=0, other_split=0)
        reasons: list[dict[str, Any]] = []
        good: list[Checked] = []
        for row in rows:
            if not belongs(row, self.split):
                counts["other_split"] += 1
                continue
            counts["read"] += 1
            try:
                checked = scorable_row(row)
                self.form.require(checked, as_chat=self.model.template != "none")
            except Malformed as problem:
                self._malformed(row, str(problem), counts, reasons)
            else:
                good.append((row, checked))
        good, ids, truncated = self._encoded(good, counts, reasons)
        scores = score(self.model.model, ids, batch_tokens=self.batch_tokens, progress=progress)
        rewards = scores.rewards.astype(np.float64)
        if self.normalisation is not None:
            rewards = (rewards - self.normalisation["mean"]) / self.normalisation["std"]
        sides = self.form.sides
        records = []
        for place, (_, row) in enumerate(good):
            here = slice(sides * place, sides * (place + 1))
            records.append(self._record(row, rewards[here].tolist(), ids[here], truncated[here]))
        counts["scored"] = len(good)
        counts["empty"] = sum(row.empty for _, row in good)
        counts["truncated"] = sum(record[f"{self.column}_truncated"] for record in records)
        counts["non_finite"] = int((~np.isfinite(rewards)).sum())
        header = {"counts": counts, "reasons": reasons, "rewards": moments_of(rewards), "batching": scores.batching}
        return header, records

    def _encoded(
        self, rows: list[Checked], counts: ScoringCounts, reasons: list[dict[str, Any]]
    ) -> tuple[list[Checked], list[list[int]], list[bool]]:
        """The rows that have tokens, their token ids and whether each was cut, one entry for each text."""
        try:
            ids, truncated = self.model.encode([text for _, row in rows for text in row.texts])
            if [] not in ids:
                return rows, ids, truncated
        except DataError:  # one row at a time below finds which, and why
            pass
        good: list[Checked] = []
        ids, truncated = [], []
        for row, checked in rows:
            try:
                encoded, cut = self.model.encode(checked.texts)
            except DataError as error:
                self._malformed(row, str(error).partition(": ")[2], counts, reasons)
                continue
            if [] in encoded:
                self._malformed(row, "it has no token", counts, reasons)
                continue
            good.append((row, checked))
            ids += encoded
            truncated += cut
        return good, ids, truncated

    def _malformed(self, row: Row, problem: str, counts: ScoringCounts, reasons: list[dict[str, Any]]) -> None:
        problem = readable(f"{row.file}: {problem}" if row.file else problem)
        if self.on_malformed == "stop":
            raise DataError(
                f"{self.source} row {row.number}: {problem}. Mend the row, or leave such rows out and have them "
                "counted with --on_malformed skip."
            )
        counts["malformed"] += 1
        if len(reasons) < REASONS_KEPT:
            reasons.append({"row": row.number, "reason": problem})

    def _record(
        self, row: ScorableRow, rewards: Sequence[float], ids: Sequence[Sequence[int]], truncated: Sequence[bool]
    ) -> dict[str, Any]:
        values = [float(reward) if np.isfinite(reward) else None for reward in rewards]  # counted as non_finite
        if self.form.sides == 2:
            added: dict[str, Any] = {
                f"{self.column}_chosen": values[0],
                f"{self.column}_rejected": values[1],
                f"{self.column}_tokens_chosen": len(ids[0]),
                f"{self.column}_tokens_rejected": len(ids[1]),
            }
        else:
            added = {self.column: values[0], f"{self.column}_tokens": len(ids[0])}
        added[f"{self.column}_truncated"] = any(truncated)
        if taken := [name for name in added if name in row.values]:
            raise ConfigError(
                f"{self.source} has a column {taken[0]} already, which would be overwritten. "
                "Name the new one with --column, or rename that one."
            )
        carried = {name: self._json_value(name, value) for name, value in row.values.items()}
        return ({} if "id" in carried else {"id": row.identity}) | carried | added

    def _json_value(self, name: str, value: Any) -> Any:
        try:
            return json_value(value)
        except TypeError as problem:
            raise DataError(
                f"{self.source}: the column {name} holds {problem}, which a file of rewards cannot carry. "
                "Drop the column from the data."
            ) from problem


def chunks_of(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """The rows by ``size``; the last chunk may be shorter."""
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def find_form(source: Source) -> Form:
    """The form of the first good row of a source.

    Raises:
        DataError: it has none; the message says what is wrong with the first rows.
    """
    reasons: list[str] = []
    read = others = 0
    for row in source.rows():
        if not belongs(row, source.split):
            others += 1
            continue
        read += 1
        try:
            first = scorable_row(row)
        except Malformed as problem:
            if len(reasons) < REASONS_KEPT:
                reasons.append(f"  row {row.number}: {readable(str(problem))}")
        else:
            return Form(first.kind, first.conversational, first.explicit)
    if others and not read:
        raise no_row_of_split(source.label, others)
    left_out = f" ({others:,} rows of other splits)" if others else ""
    raise DataError("\n".join([f"{source.label}: none of its {read:,} rows can be scored{left_out}.", *reasons]))


def add_counts(counts: Iterable[Mapping[str, int]]) -> ScoringCounts:
    """Sums of the counts of several chunks."""
    total = ScoringCounts(read=0, scored=0, malformed=0, empty=0, truncated=0, non_finite=0, other_split=0)
    for one in counts:
        for name in total:
            total[name] += one[name]
    return total
