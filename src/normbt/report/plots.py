"""Charts as PNG files, for papers and READMEs: the same values that the page draws."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normbt.report.charts import Axis, Bars, Chart, Lines, Scatter, Spans, error_reach, fit_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

TONES = {
    "bt": "#7d8590",
    "normbt": "#1f6fb4",
    "pairs": "#24262b",
    "data": "#25788a",
    "run0": "#7d8590",
    "run1": "#1f6fb4",
    "run2": "#c2570c",
    "run3": "#1a7f5a",
    "run4": "#8250a8",
}
"""Colours on white; orange, blue and grey can be told apart by the colour-blind."""

ERROR_COLOURS = ("#4b3a94", "#b5b3bd", "#d95f02")
"""Ranked right, undecided, misranked."""

INK, QUIET, GRID = "#24262b", "#5f636b", "#e6e6e2"
PANEL_WIDTH, DPI = 3.6, 200


def draw(chart: Chart, folder: Path) -> Path:
    """Draw one chart to ``folder/NAME.png``.

    Args:
        chart: the chart.
        folder: where the file goes; made if missing.

    Returns:
        Where the picture is.
    """
    # Imported here: its import takes a second, and `normbt --help` does without.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
        # A label may hold "$" and must not become a formula.
        "text.parse_math": False,
    }
    drawers: dict[str, Any] = {"scatter": _scatter, "bars": _bars, "spans": _spans, "lines": _lines}
    with rc_context(style):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        drawers[chart.type](figure, chart)
        figure.suptitle(chart.title, fontsize=11, x=0.01, ha="left", color=INK, fontweight="bold")
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', chart.name)}.png"
        figure.savefig(target, dpi=DPI, metadata={"Software": None})
    return target


def _panels(figure: "Figure", count: int, *, height: float, most: int = 3, shared: bool = True) -> "list[Axes]":
    columns = min(count, most)
    rows = -(-count // columns)
    figure.set_size_inches(max(min(PANEL_WIDTH * columns, 11.5), 5.6), height * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return axes[:count]


def _scatter(figure: "Figure", chart: Scatter) -> None:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    small = len(chart.panels) > 2
    panels = _panels(figure, len(chart.panels), height=2.7 if small else 3.9, most=5 if small else 2)
    ramp = LinearSegmentedColormap.from_list("error", ERROR_COLOURS)
    reach = error_reach(chart)
    points = None
    for axes, panel in zip(panels, chart.panels, strict=True):
        rows = panel.rows()
        x, y = (panel.table.numbers(name)[rows] for name in (chart.x_column, chart.y_column))
        colour = None if chart.colour is None else panel.table.numbers(chart.colour)[rows]
        size, alpha = (9, 0.7) if len(rows) < 1500 else (4, 0.45)
        style: dict[str, Any] = {"color": TONES["data"]} if colour is None else {"c": colour, "cmap": ramp}
        if colour is not None:
            style["norm"] = Normalize(0.5 - reach, 0.5 + reach)
        points = axes.scatter(x, y, s=size, alpha=alpha, linewidths=0, rasterized=True, **style)
        if (line := fit_line(x, y, panel.slope)) is not None:
            axes.plot(*line, color=INK, linewidth=1.4)
        axes.set_title("\n".join(filter(None, (panel.title, panel.note))), loc="left", color=INK)
        axes.grid(True)
    for axis, column, set_scale in (
        (chart.x, chart.x_column, panels[0].set_xscale),
        (chart.y, chart.y_column, panels[0].set_yscale),
    ):
        # matplotlib cannot scale by powers of ten where there is nothing to scale; the panels share their axes.
        if any((panel.table.numbers(column)[panel.rows()] > 0).any() for panel in chart.panels):
            set_scale(axis.scale)
    for axes in panels:
        _finish_axis(axes, chart.x, "x")
        _finish_axis(axes, chart.y, "y")
    _label_edges(panels, chart.x.label, chart.y.label)
    if chart.colour is not None and points is not None:
        bar = figure.colorbar(points, ax=panels, label="prediction error", pad=0.02, aspect=30)
        if bar.solids is not None:
            bar.solids.set_alpha(1)
        bar.outline.set_visible(False)


def _bars(figure: "Figure", chart: Bars) -> None:
    panels = _panels(figure, len(chart.panels), height=3.2, most=2)
    at = np.arange(len(chart.groups))
    for axes, (title, series) in zip(panels, chart.panels, strict=True):
        width = 0.8 / len(series)
        for place, one in enumerate(series):
            heights = [np.nan if mark is None or mark.value is None else mark.value for mark in one.marks]
            offset = (place - (len(series) - 1) / 2) * width
            axes.bar(at + offset, heights, width * 0.92, color=TONES[one.tone], label=one.name)
        if chart.reference is not None:
            axes.axhline(chart.reference, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), label=chart.reference_label)
        axes.set_xticks(at, list(chart.groups))
        axes.grid(True, axis="y")
        axes.set_title(title, loc="left")
        _finish_axis(axes, chart.y, "y")
    _label_edges(panels, chart.x_label, chart.y.label)
    panels[0].legend(loc="upper left" if len(panels) == 1 else "best")


def _spans(figure: "Figure", chart: Spans) -> None:
    figure.set_size_inches(7.2, 1.4 + len(chart.groups) * max(0.3, 0.17 * len(chart.series) + 0.12))
    axes = figure.subplots()
    at = np.arange(len(chart.groups))
    step = min(0.7 / len(chart.series), 0.24)
    for place, one in enumerate(chart.series):
        colour = TONES[one.tone]
        for group, mark in enumerate(one.marks):
            if mark is None or mark.value is None:
                continue
            y = group + (place - (len(chart.series) - 1) / 2) * step
            if mark.low is not None and mark.high is not None:
                axes.plot([mark.low, mark.high], [y, y], color=colour, linewidth=1.2, solid_capstyle="round")
            if mark.inner_low is not None and mark.inner_high is not None:
                axes.plot(
                    [mark.inner_low, mark.inner_high],
                    [y, y],
                    color=colour,
                    linewidth=4,
                    solid_capstyle="round",
                    alpha=0.6,
                )
            hollow = one.tone == "pairs"
            axes.plot(mark.value, y, "o", markersize=5.5, color="white" if hollow else colour, markeredgecolor=colour)
        axes.plot([], [], "o", color="white" if one.tone == "pairs" else colour, markeredgecolor=colour, label=one.name)
    if chart.reference is not None:
        axes.axvline(chart.reference, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), label=chart.reference_label)
    axes.set_yticks(at, list(chart.groups))
    axes.set_ylim(len(chart.groups) - 0.4, -0.6)
    axes.set_xscale(chart.x.scale)
    axes.set_xlabel(chart.x.label)
    axes.grid(True, axis="x")
    _finish_axis(axes, chart.x, "x")
    figure.legend(loc="outside lower left", ncols=min(4, len(chart.series) + 1))


def _lines(figure: "Figure", chart: Lines) -> None:
    panels = _panels(figure, len(chart.panels), height=2.3, shared=False)
    labels: dict[str, Any] = {}
    for axes, (title, axis, lines) in zip(panels, chart.panels, strict=True):
        for line in lines:
            colour = TONES[line.tone]
            if line.points:
                (drawn,) = axes.plot(line.x, _gaps(line.y), "o", color=colour, markersize=5)
            else:
                if line.faint:
                    axes.plot(line.x, _gaps(line.faint), color=colour, linewidth=0.5, alpha=0.3)
                if line.low and line.high:
                    axes.fill_between(line.x, _gaps(line.low), _gaps(line.high), color=colour, alpha=0.15, linewidth=0)
                style = (0, (4, 2)) if line.dashed else "-"
                (drawn,) = axes.plot(line.x, _gaps(line.y), color=colour, linewidth=1.5, linestyle=style)
                if not line.dashed:
                    labels.setdefault(line.name, drawn)
        axes.set_title(title, loc="left")
        axes.set_ylabel(axis.label, fontsize=8)
        axes.set_xlabel(chart.x_label, fontsize=8)
        axes.grid(True)
        _finish_axis(axes, axis, "y")
    if len(labels) > 1:
        figure.legend(list(labels.values()), list(labels), loc="outside lower left", ncols=min(5, len(labels)))


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _finish_axis(axes: "Axes", axis: Axis, which: str) -> None:
    """Ticks in plain numbers or percent, and the ends that the axis asks for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawn: XAxis | YAxis = getattr(axes, f"{which}axis")
    if drawn.get_scale() == "log":
        low, high = sorted(drawn.get_view_interval())
        drawn.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1e4 * low else (1.0,)))
        drawn.set_minor_formatter(NullFormatter())
    if axis.percent:
        drawn.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    elif drawn.get_scale() == "log":
        drawn.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axis.low is not None or axis.high is not None:
        getattr(axes, f"set_{which}lim")(axis.low, axis.high)


def _label_edges(panels: "Sequence[Axes]", x_label: str, y_label: str) -> None:
    """One label for each outer edge: panels share their axes."""
    for axes in panels:
        place = axes.get_subplotspec()
        assert place is not None
        if place.is_first_col():
            axes.set_ylabel(y_label)
        axes.set_xlabel(x_label)
        axes.tick_params(labelbottom=True)
