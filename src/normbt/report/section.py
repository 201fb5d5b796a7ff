"""A part of the report, and what every part is made with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from normbt.report.charts import Chart
from normbt.report.explorer import PairTable
from normbt.report.sources import Mark, Source

MISSING = "–"
"""What stands in a table for a number that does not exist."""


@dataclass(frozen=True)
class Tile:
    """A number that is worth seeing first, what it is, and what to read it against."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Headline:
    """What is worth knowing first about one run, or about all (``run`` is empty): some tiles, and sentences."""

    run: str
    tiles: Sequence[Tile] = ()
    findings: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Numbers in rows; the first column is text."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the report: headlines, charts, tables, the pairs it adds, and what was read and dropped.

    ``origins`` are the provenance records by run; ``notes`` say what a reader must know about what is shown.
    """

    name: str
    title: str
    intro: str
    runs: Sequence[str]
    headlines: Sequence[Headline] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    pairs: Sequence[PairTable] = ()
    notes: Sequence[str] = ()
    origins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How many pairs each table may show, and the seed of the sample."""

    max_rows: int
    seed: int


class SectionModule(Protocol):
    """What a file in ``sections/`` provides: the marks of its results, and the part it makes of them."""

    @property
    def MARKS(self) -> Sequence[Mark]:
        """How its results are known."""
        ...

    def build(self, sources: Sequence[Source], limits: Limits) -> Section:
        """Read the sources and say what to show."""
        ...


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.3 %', '–')
    """
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten where it can be helped.

    Example:
        >>> number(0.012345), number(1234.5), number(None), number(0.0)
        ('0.0123', '1,234', '–', '0')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -5 or magnitude > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def interval(low: float | None, high: float | None, shown: Any = number) -> str:
    """The interval of an estimate in brackets; empty where there is none."""
    return "" if low is None or high is None else f"[{shown(low)}, {shown(high)}]"
