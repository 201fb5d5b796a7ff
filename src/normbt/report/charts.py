"""What a chart shows, apart from how it is drawn: one description for the PNG and for the page.

A section of the report makes these values from result files; :mod:`normbt.report.plots` draws them with matplotlib, and
``page/charts.js`` in the browser. Colours are named, not given, so that each drawing can suit its background.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normbt.report.explorer import PairTable

Scale = Literal["linear", "log"]
Tone = Literal["bt", "normbt", "pairs", "data", "run0", "run1", "run2", "run3", "run4"]
RUN_TONES: tuple[Tone, ...] = ("run0", "run1", "run2", "run3", "run4")

DECADES_FOR_LOG = 1.5
"""An axis whose central 98 % of values span more powers of ten than this is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """An axis: what it says, its scale, and whether shares are shown in percent."""

    label: str
    scale: Scale = "linear"
    percent: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """Points of one pair table, ``where`` a column lies in a range, with a straight line if there is a slope."""

    title: str
    table: PairTable
    note: str = ""
    where: tuple[str, float, float] | None = None
    slope: float | None = None

    def rows(self) -> NDArray[np.int_]:
        """Rows of the table that the panel shows: those drawn at random, never those added because they are telling."""
        rows = np.arange(self.table.sampled)
        if self.where is None:
            return rows
        values, (low, high) = self.table.numbers(self.where[0])[: self.table.sampled], self.where[1:]
        return rows[(values >= low) & (values <= high)]


@dataclass(frozen=True)
class Scatter:
    """Points of pairs, in one panel for each run or bin; ``colour`` is a column in ``[0, 1]``, or None."""

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    x_column: str
    y_column: str
    panels: Sequence[Panel]
    colour: str | None = None
    type: str = "scatter"


@dataclass(frozen=True)
class Mark:
    """A value with an interval and, inside it, a narrower one; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    inner_low: float | None = None
    inner_high: float | None = None


@dataclass(frozen=True)
class Series:
    """Marks of one kind, one for each group of a chart; None where a group has none."""

    name: str
    tone: Tone
    marks: Sequence[Mark | None]


@dataclass(frozen=True)
class Bars:
    """Upright bars in groups, in one panel for each run; ``filters`` of a group narrow the explorer on a click."""

    name: str
    title: str
    caption: str
    x_label: str
    y: Axis
    groups: Sequence[str]
    panels: Sequence[tuple[str, Sequence[Series]]]
    reference: float | None = None
    reference_label: str = ""
    filters: Sequence[Sequence[dict[str, Any] | None]] = ()
    type: str = "bars"


@dataclass(frozen=True)
class Spans:
    """Dots with intervals along a horizontal axis, one row for each group."""

    name: str
    title: str
    caption: str
    x: Axis
    groups: Sequence[str]
    series: Sequence[Series]
    filters: Sequence[dict[str, Any] | None] = ()
    reference: float | None = None
    reference_label: str = ""
    type: str = "spans"


@dataclass(frozen=True)
class Line:
    """One line; ``faint`` are the values before smoothing, ``low`` and ``high`` a band."""

    name: str
    tone: Tone
    x: Sequence[float]
    y: Sequence[float | None]
    faint: Sequence[float | None] = ()
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    dashed: bool = False
    points: bool = False


@dataclass(frozen=True)
class Lines:
    """Lines over one axis, in one panel for each quantity."""

    name: str
    title: str
    caption: str
    x_label: str
    panels: Sequence[tuple[str, Axis, Sequence[Line]]]
    type: str = field(default="lines")


Chart = Scatter | Bars | Spans | Lines


def scale_for(values: ArrayLike) -> Scale:
    """Logarithmic where the central 98 % of the positive values span more than 1.5 powers of ten, else linear.

    Zeros and negative values have no place on a logarithmic axis: where more than a hundredth of the values is not
    positive, the axis is linear.

    Example:
        >>> scale_for([0.01, 1.0, 30.0]), scale_for([1.0, 2.0, 3.0]), scale_for([0.0, 0.01, 30.0])
        ('log', 'linear', 'linear')
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    positive = finite[finite > 0]
    if positive.size == 0 or positive.size < 0.99 * finite.size:
        return "linear"
    low, high = np.quantile(positive, [0.01, 0.99])
    return "log" if math.log10(high / low) > DECADES_FOR_LOG else "linear"


def run_tone(index: int, runs: int) -> Tone:
    """Colour of a run by its place among so many; the colours repeat after the fifth, and one alone has its own."""
    return "data" if runs == 1 else RUN_TONES[index % len(RUN_TONES)]


def error_reach(chart: Scatter) -> float:
    """How far from one half the colours reach: the 98th percentile of the errors' distance from it, at least 0.01."""
    if chart.colour is None:
        return 0.5
    away = np.concatenate([np.abs(panel.table.numbers(chart.colour)[panel.rows()] - 0.5) for panel in chart.panels])
    away = away[np.isfinite(away)]
    return float(max(np.quantile(away, 0.98), 0.01)) if away.size else 0.5


def fit_line(
    x: NDArray[np.float64], y: NDArray[np.float64], slope: float | None
) -> tuple[list[float], list[float]] | None:
    """Ends of the log-log line with this slope through the geometric mean of the points."""
    inside = (x > 0) & (y > 0)
    if slope is None or inside.sum() < 2:
        return None
    log_x, log_y = np.log(x[inside]), np.log(y[inside])
    ends = np.quantile(log_x, [0.01, 0.99])
    heights = log_y.mean() + slope * (ends - log_x.mean())
    return np.exp(ends).tolist(), np.exp(heights).tolist()
