"""Candidates with their scores, by prompt: numbers only, so that millions of candidates fit in memory."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normbt.errors import ConfigError, DataError
from normbt.pairs import DataReport, open_source
from normbt.pairs.check import belongs, no_row_of_split
from normbt.pairs.files import Unreadable
from normbt.pairs.report import REASONS_KEPT
from normbt.pairs.texts import ANSWER_COLUMNS
from normbt.results import LONGEST, ORACLE, RANDOM

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """Scores of candidates, candidates of one prompt next to each other.

    Attributes:
        prompts: the prompts' ids, in the order of the file.
        starts: where each prompt's candidates begin, and the number of all; shape ``(prompts + 1,)``.
        scores: what each rule of choice looks at, by name, each of shape ``(candidates,)``.
        gold: the gold score of each candidate; None without one.
        characters: length of each answer; None where the file has no text.
        report: where the candidates came from and what was read.
        without_score: candidates left out because a score of theirs is missing or not a finite number.
    """

    prompts: tuple[str, ...]
    starts: NDArray[np.int64]
    scores: dict[str, Numbers]
    gold: Numbers | None
    characters: Numbers | None
    report: DataReport
    without_score: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of candidates of each prompt."""
        return np.diff(self.starts)

    def of_prompt(self, index: int) -> slice:
        """Where the candidates of a prompt are."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))


@dataclass
class _Reading:
    """What has been read so far."""

    names: list[str]
    values: list[list[float]] = field(default_factory=list)
    prompt_of: list[int] = field(default_factory=list)
    characters: list[float] = field(default_factory=list)
    prompts: dict[str, int] = field(default_factory=dict)
    read: int = 0
    other_split: int = 0
    malformed: int = 0
    without_score: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)


def read_pool(source: str | Path, *, proxies: Sequence[str], gold: str | None, split: str | None = None) -> Pool:
    """Read candidates: rows with a prompt's id (or the prompt), scores, and the answer.

    Args:
        source: file, folder or Hub id.
        proxies: columns by which answers are chosen.
        gold: column of what an answer is worth; None if it is not known.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.

    Returns:
        The pool. A candidate without a finite number in every one of the columns is left out and counted, so that all
        rules choose from the same candidates.

    Raises:
        ConfigError: a proxy has the name of a built-in rule.
        DataError: the file cannot be read, lacks a column, or has no candidate left.
    """
    if reserved := sorted({ORACLE, RANDOM, LONGEST} & set(proxies)):
        raise ConfigError(f"The name {reserved[0]} stands for a built-in rule: name the proxy's column otherwise.")
    if len(set(proxies)) < len(proxies):
        raise ConfigError(f"A proxy is named twice: {', '.join(proxies)}.")
    opened = open_source(source, name=None, split=split, streaming=False)
    names = [*proxies, *([gold] if gold is not None else [])]
    reading = _Reading(names)
    for row in opened.rows():
        if not belongs(row, opened.split):
            reading.other_split += 1
            continue
        reading.read += 1
        if isinstance(row.value, Unreadable):
            _malformed(reading, row.number, row.value.reason)
            continue
        missing = [name for name in names if name not in row.value]
        if missing and reading.read == 1:
            raise DataError(
                f"{opened.label}: no column {' and no column '.join(missing)}. Columns found: {', '.join(row.value)}."
            )
        prompt = _prompt_of(row.value)
        if prompt is None:
            _malformed(reading, row.number, 'no "prompt_id" and no "prompt"')
            continue
        numbers = [_number(row.value.get(name)) for name in names]
        place = reading.prompts.setdefault(prompt, len(reading.prompts))
        if any(number is None for number in numbers):
            reading.without_score += 1
            continue
        reading.values.append([number for number in numbers if number is not None])
        reading.prompt_of.append(place)
        reading.characters.append(_characters(row.value))
    return _pool(reading, list(proxies), gold, opened.label, opened.digest)


def _pool(reading: _Reading, proxies: list[str], gold: str | None, label: str, digest: str | None) -> Pool:
    if reading.other_split and not reading.read:
        raise no_row_of_split(label, reading.other_split)
    if not reading.values:
        named = "".join(f"\n  row {number}: {reason}" for number, reason in reading.reasons)
        raise DataError(
            f"{label}: no candidate is left of {reading.read:,} rows ({reading.malformed:,} malformed, "
            f"{reading.without_score:,} without a finite {' and '.join(reading.names)}).{named}"
        )
    prompt_of = np.array(reading.prompt_of)
    order = np.argsort(prompt_of, kind="stable")
    present, counts = np.unique(prompt_of, return_counts=True)
    ids = list(reading.prompts)
    values = np.array(reading.values, dtype=np.float64)[order]
    characters = np.array(reading.characters)[order]
    scores = {name: values[:, column] for column, name in enumerate(proxies)}
    known = not np.isnan(characters).any()
    if known:
        scores[LONGEST] = characters
    report = DataReport(
        label,
        digest,
        "candidates",
        read=reading.read,
        kept=len(values),
        malformed=reading.malformed,
        other_split=reading.other_split,
        reasons=tuple(reading.reasons),
    )
    return Pool(
        prompts=tuple(ids[index] for index in present),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        scores=scores,
        gold=values[:, -1] if gold is not None else None,
        characters=characters if known else None,
        report=report,
        without_score=reading.without_score,
    )


def _malformed(reading: _Reading, number: int, reason: str) -> None:
    reading.malformed += 1
    if len(reading.reasons) < REASONS_KEPT:
        reading.reasons.append((number, reason))


def _prompt_of(values: dict[str, Any]) -> str | None:
    """What candidates of one prompt have in common: its id, or the prompt itself."""
    for name in ("prompt_id", "prompt"):
        if values.get(name) is not None:
            return f"{values[name]}"
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, str):  # CSV has no types
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None


def _characters(values: dict[str, Any]) -> float:
    """Length of the answer; NaN where the row has none."""
    answer = next((values[name] for name in ANSWER_COLUMNS if values.get(name) is not None), None)
    if isinstance(answer, str):
        return len(answer)
    return math.nan if answer is None else sum(_contents(answer))


def _contents(messages: Any) -> Iterator[int]:
    return (len(message.get("content") or "") for message in messages)
