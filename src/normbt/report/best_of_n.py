"""The picture of a best-of-n study: what is gained against n, and what the proxy promises against what is true."""

from pathlib import Path
from typing import Any

from normbt.results import LONGEST, ORACLE, RANDOM, BestOfNSummary, CurvePoint, read_best_of_n

# Okabe and Ito's colours, told apart with any colour vision; lines differ in their marks too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKS = ("o", "s", "^", "D", "v", "P")


def plot_best_of_n(folder: str | Path, *, path: str | Path | None = None) -> Path:
    """Draw the curves of a finished study.

    Args:
        folder: its output folder, which holds ``best_of_n.json`` and ``curves.jsonl``.
        path: the PNG file; None for ``best_of_n.png`` in that folder.

    Returns:
        Where the picture is.

    Raises:
        DataError: the files are not there.
    """
    # Imported here: drawing is optional, and its import takes a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary, points = read_best_of_n(folder)
    target = Path(path) if path is not None else Path(folder) / "best_of_n.png"
    both = summary["gold"] is not None and any(rule != LONGEST for rule in summary["proxies"])
    figure = Figure(figsize=(11 if both else 6.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    _draw_worth(axes[0], summary, points)
    if both:
        _draw_promise(axes[1], summary, points)
    bounds = {point["n"]: point["kl_bound"] for point in points}
    for one in axes:
        one.set_xscale("log", base=2)
        one.set_xticks(summary["sizes"], [f"{n:,}\n{bounds[n]:.2f}" for n in summary["sizes"]])
        one.set_xticks([], minor=True)
        one.set_xlabel("n candidates to choose from, below it the upper bound of the KL divergence")
        one.spines[["top", "right"]].set_visible(False)
        one.legend(frameon=False, fontsize=9)
    counts = summary["counts"]
    fewest, most = counts["fewest"], counts["most"]
    candidates = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    figure.suptitle(
        f"Best of n: {counts['prompts_used']:,} prompts, {candidates} candidates each; "
        f"bands are {summary['confidence']:.0%} intervals over prompts",
        fontsize=11,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    return target


def _draw_worth(axes: Any, summary: BestOfNSummary, points: list[CurvePoint]) -> None:
    worth = "gold" if summary["gold"] else "score"
    for rule in summary["proxies"]:
        _line(axes, summary, points, rule, worth)
    if summary["gold"]:
        _line(axes, summary, points, ORACLE, worth)
        level = next(point["gold"]["value"] for point in points if point["rule"] == RANDOM)
        axes.axhline(level, color="#777777", linestyle=":", linewidth=1.2, label="random choice")
    axes.set_ylabel(f"mean {summary['gold']} score" if summary["gold"] else "mean of the rule's own score")
    axes.set_title("What the choice is worth")


def _draw_promise(axes: Any, summary: BestOfNSummary, points: list[CurvePoint]) -> None:
    """Gold and the proxy's own score, each from its mean and in its deviations over all candidates."""
    for rule in summary["proxies"]:
        if rule != LONGEST:
            _line(axes, summary, points, rule, "score", standardise=rule, linestyle="--", suffix=": its own score")
            _line(axes, summary, points, rule, "gold", standardise="gold", suffix=": gold")
    axes.set_ylabel("standard deviations above the mean candidate")
    axes.set_title("What the proxy promises, and what is true")


def _line(
    axes: Any,
    summary: BestOfNSummary,
    points: list[CurvePoint],
    rule: str,
    quantity: str,
    *,
    standardise: str | None = None,
    linestyle: str = "-",
    suffix: str = "",
) -> None:
    curve = [point for point in points if point["rule"] == rule]
    middle, unit = 0.0, 1.0
    if standardise is not None:
        spread = summary["spread"][standardise]
        middle, unit = spread["mean"] or 0.0, spread["std"] or 1.0

    def values(end: str) -> list[float]:
        return [(point[quantity][end] - middle) / unit for point in curve]

    look: dict[str, Any] = _look(summary, rule)
    n = [point["n"] for point in curve]
    names = {ORACLE: "oracle (chosen by gold)", LONGEST: "longest answer"}
    label = names.get(rule, rule) + suffix
    if "linestyle" not in look:
        look["linestyle"] = linestyle
    axes.plot(n, values("value"), label=label, linewidth=1.6, markersize=5, **look)
    axes.fill_between(n, values("low"), values("high"), color=look["color"], alpha=0.13, linewidth=0)


def _look(summary: BestOfNSummary, rule: str) -> dict[str, Any]:
    if rule == ORACLE:
        return {"color": "black", "linestyle": (0, (5, 2)), "marker": ""}
    if rule == LONGEST:
        return {"color": "#777777", "linestyle": "-.", "marker": ""}
    place = summary["proxies"].index(rule)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKS[place % len(MARKS)]}
