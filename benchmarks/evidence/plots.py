"""The plots of the sweeps, from their summaries: wide, labelled at the lines, with 95 % t intervals over the seeds."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.evidence.choices import POOLS
from benchmarks.evidence.experiments import TOGETHER
from benchmarks.evidence.summary import Cell, Sweep, cells_of, read_sweep, read_sweeps
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from normbt.stats import paired_t

COLOURS = {
    "bt": "#5f636b",
    "normbt": "#0072b2",
    "relative": "#d55e00",
    "smoothing": "#009e73",
    "batch": "#cc79a7",
    "raw": "#e69f00",
    "ema-0": "#56b4e9",
}
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

LABELS = {
    "bt": "BT",
    "normbt": "NormBT",
    "relative": "relative",
    "cosine": "cosine",
    "raw": "raw",
    "batch": "batch",
    "ema-0": "beta 0",
    "margin-inside": "margin inside",
    "margin-outside": "margin outside",
    "smoothing": "smoothing 0.1",
    "layer-norm": "LayerNorm",
    "clip": "clip 0.1",
    "power-0.5": "power 0.5",
    "power-1.5": "power 1.5",
    "anneal-in": "annealed in",
    "anneal-out": "annealed out",
    "bound-2": "bound 2",
    "bound-5": "bound 5",
    "gradient": "gradient norm",
    "per-length": "per length",
}

TRAINED = {"bt": "bt", "normbt": "normbt", "normbt-relative": "relative"}
"""Methods of the experiments that plots show, and the arm whose colour and label each has."""

SETS = {"all": "all test pairs", "near": "nearest third", "far": "farthest third"}

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5f636b",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e2",
    "grid.linewidth": 0.7,
}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the seeds and its 95 % t interval, in per cent; one seed has no interval."""
    if len(values) == 1:
        return (100 * values[0],) * 3
    found = paired_t(values)
    low, high = (found.difference if end is None else end for end in (found.low, found.high))
    return 100 * found.difference, 100 * low, 100 * high


def panels(count: int, *, height: float = 3.1, width: float = 9.6, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A wide figure of panels in a row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, sharey=share, squeeze=False)[0]
    return figure, list(axes)


def line(axes: Axes, places: Sequence[float], rows: Sequence[tuple[float, float, float]], name: str) -> None:
    """Means with a band of their intervals."""
    mean, low, high = np.array(rows).T
    colour = COLOURS.get(name, "#5f636b")
    axes.plot(places, mean, color=colour, marker="o", markersize=3, linewidth=1.6)
    axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Names at the ends of lines, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    least = (high - low) * 0.075
    ordered = sorted(ends.items(), key=lambda item: item[1][1])
    taken: list[float] = []
    for _, (_, value) in ordered:
        taken.append(max(value, taken[-1] + least) if taken else value)
    # Pushed upwards only, the group would drift: it is centred on its lines again.
    drift = sum(at - value for at, (_, (_, value)) in zip(taken, ordered, strict=True)) / max(1, len(taken))
    for at, (name, (place, _)) in zip(taken, ordered, strict=True):
        axes.annotate(
            LABELS.get(name, name),
            (place, at - drift),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS.get(name, "#24262b"),
            fontsize=8.5,
            annotation_clip=False,
        )


def lines_by_set(
    sweep: Sweep, arms: Sequence[str], key: str, place: Callable[[Any], float], label: str, *, log: bool = False
) -> Figure:
    """One panel for each set of pairs, one line for each arm, against what the sweep varies."""
    figure, axes = panels(len(SETS))
    for panel, (kind, title) in zip(axes, SETS.items(), strict=True):
        ends = {}
        for arm in arms:
            cells = sorted(cells_of(sweep, arm), key=lambda cell: place(cell["condition"][key]))
            places = [place(cell["condition"][key]) for cell in cells]
            rows = [interval(cell["outcomes"][kind]) for cell in cells]
            line(panel, places, rows, arm)
            ends[arm] = (places[-1], rows[-1][0])
        if log:
            panel.set_xscale("log")
        panel.set_title(title)
        panel.set_xlabel(label)
        label_ends(panel, ends)
        _plain_ticks(
            panel, sorted({end for cell in cells_of(sweep, arms[0]) for end in [place(cell["condition"][key])]})
        )
    axes[0].set_ylabel("ranked right, %")
    return figure


def _plain_ticks(axes: Axes, places: Sequence[float]) -> None:
    if len(places) <= 7:
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()


def draw_steps(sweep: Sweep) -> Figure:
    """Accuracy against steps."""
    return lines_by_set(sweep, ["bt", "normbt", "relative"], "step", float, "optimizer steps", log=True)


def draw_epochs(sweep: Sweep) -> Figure:
    """Accuracy against epochs."""
    return lines_by_set(sweep, ["bt", "normbt"], "epochs", float, "epochs", log=True)


def draw_balance(sweep: Sweep) -> Figure:
    """Accuracy against the share of near training pairs."""
    return lines_by_set(sweep, ["bt", "normbt"], "near_share", lambda x: 100 * x, "near pairs in training, %")


def draw_batches(sweep: Sweep) -> Figure:
    """Accuracy against batch size."""
    return lines_by_set(sweep, ["bt", "normbt", "batch"], "batch", float, "pairs in a batch", log=True)


def draw_noise(sweep: Sweep) -> Figure:
    """Accuracy on all pairs against the rate of flips, one panel for each place."""
    places = {"near": "flips among near pairs", "far": "flips among far pairs", "evenly": "flips among all pairs"}
    figure, axes = panels(3, share=True)
    arms = list(dict.fromkeys(cell["arm"] for cell in sweep["cells"]))
    for panel, (where, title) in zip(axes, places.items(), strict=True):
        ends = {}
        for arm in arms:
            cells = [*cells_of(sweep, arm, placed="nowhere"), *cells_of(sweep, arm, placed=where)]
            rates = [100 * cell["condition"]["rate"] for cell in cells]
            rows = [interval(cell["outcomes"]["all"]) for cell in cells]
            line(panel, rates, rows, arm)
            ends[arm] = (rates[-1], rows[-1][0])
        panel.set_title(title)
        panel.set_xlabel("labels flipped there, %")
        panel.set_xticks([0, 10, 20, 30])
        label_ends(panel, ends)
    axes[0].set_ylabel("ranked right of all, clean labels, %")
    return figure


def dots(axes: Axes, names: Sequence[str], rows: Sequence[tuple[float, float, float]], colours: Sequence[str]) -> None:
    """One row for each name, a dot with its interval."""
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        axes.plot(row[1:], [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
        axes.plot(row[0], place, "o", color=colour, markersize=4.5)
    axes.set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def draw_optimizers(sweep: Sweep) -> Figure:
    """Every arm under every optimizer, tuned and at one rate."""
    figure, axes = panels(3, share=True, height=3.6)
    axes[1].sharex(axes[0])
    axes[2].sharex(axes[0])
    names = {"adamw": "AdamW", "momentum": "SGD, momentum 0.9", "sgd": "SGD"}
    arms = ["bt", "normbt", "ema-0", "batch", "raw"]
    for panel, (optimizer, title) in zip(axes, names.items(), strict=True):
        for shift, (rate, marker) in {-0.16: ("tuned", "o"), 0.16: ("fixed", "D")}.items():
            for place, arm in enumerate(arms):
                cell = cells_of(sweep, arm, optimizer=optimizer, rate=rate)[0]
                mean, low, high = interval(cell["outcomes"]["all"])
                face = COLOURS[arm] if rate == "tuned" else "white"
                panel.plot([low, high], [place + shift] * 2, color=COLOURS[arm], linewidth=1.6)
                panel.plot(mean, place + shift, marker, color=COLOURS[arm], markerfacecolor=face, markersize=4.5)
        panel.set_title(title)
        panel.set_xlabel("ranked right of all, %")
        panel.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(arms)), [LABELS[arm] for arm in arms])
    axes[0].invert_yaxis()
    figure.supxlabel("● at its own tuned rate   ◇ at NormBT's rate", fontsize=8.5, color="#5f636b")
    return figure


def draw_steps_of(sweep: Sweep, names: Sequence[str], label: str, *, condition: Mapping[str, Any], figure: Any) -> None:
    """Means of arms in a given order, one panel for each set."""
    for panel, (kind, title) in zip(figure, SETS.items(), strict=True):
        cells: list[Cell] = [cells_of(sweep, name, **condition)[0] for name in names]
        rows = [interval(cell["outcomes"][kind]) for cell in cells]
        line(panel, range(len(names)), rows, "normbt")
        panel.set_xticks(range(len(names)), names)
        panel.set_title(title)
        panel.set_xlabel(label)


def draw_bounds(sweep: Sweep) -> Figure:
    """The largest weight from 1 to none, with BT as a line."""
    figure, axes = panels(3)
    draw_steps_of(sweep, ["1", "2", "5", "10", "100", "none"], "max_weight", condition={}, figure=axes)
    for panel, kind in zip(axes, SETS, strict=True):
        mean, low, high = interval(cells_of(sweep, "bt")[0]["outcomes"][kind])
        panel.axhspan(low, high, color=COLOURS["bt"], alpha=0.18, linewidth=0)
        panel.axhline(mean, color=COLOURS["bt"], linewidth=1.4)
        label_ends(panel, {"bt": (5.3, mean)})
    axes[0].set_ylabel("ranked right, %")
    return figure


def draw_betas(sweep: Sweep) -> Figure:
    """Beta from 0 to 0.999 under two optimizers."""
    figure, axes = panels(3)
    names = ["0", "0.5", "0.9", "0.99", "0.999"]
    for panel, (kind, title) in zip(axes, SETS.items(), strict=True):
        ends = {}
        for optimizer, colour in (("adamw", "normbt"), ("momentum", "relative")):
            rows = [interval(cells_of(sweep, name, optimizer=optimizer)[0]["outcomes"][kind]) for name in names]
            line(panel, range(len(names)), rows, colour)
            ends[{"adamw": "AdamW", "momentum": "SGD+m"}[optimizer]] = (len(names) - 1, rows[-1][0])
        panel.set_xticks(range(len(names)), names)
        panel.set_title(title)
        panel.set_xlabel("beta")
        label_ends(panel, ends)
    axes[0].set_ylabel("ranked right, %")
    return figure


def draw_differences(sweep: Sweep, scores: Mapping[str, str], *, against: str = "bt", height: float = 3.6) -> Figure:
    """Difference of every arm from a baseline: thick over the seeds alone, thin over seeds and pairs."""
    figure, axes = panels(len(scores), share=True, height=height)
    for panel, (score, title) in zip(axes, scores.items(), strict=True):
        rows = [row for row in sweep["comparisons"] if row["score"] == score and row["against"] == against]
        for place, row in enumerate(rows):
            colour = COLOURS.get(row["arm"], "#24262b")
            panel.plot([100 * end for end in row["both"]], [place] * 2, color=colour, linewidth=1.0)
            panel.plot([100 * end for end in row["seeds"]], [place] * 2, color=colour, linewidth=3.2, alpha=0.6)
            panel.plot(100 * row["difference"], place, "o", color=colour, markersize=4.5)
        panel.axvline(0, color="#5f636b", linewidth=0.9)
        panel.set_title(title)
        panel.set_xlabel(f"points more than {LABELS[against]}")
        panel.set_yticks(range(len(rows)), [LABELS.get(row["arm"], row["arm"]) for row in rows])
        panel.grid(visible=False, axis="y")
    axes[0].invert_yaxis()
    return figure


def draw_grid(sweep: Sweep) -> Figure:
    """All methods against BT on built-in pairs."""
    return draw_differences(sweep, SETS)


def draw_frozen(sweep: Sweep) -> Figure:
    """All arms against BT on real pairs."""
    scores = {
        "held-out/headline": "held-out pairs",
        "rewardbench/headline": "RewardBench, mean of sections",
        "rewardbench/Reasoning": "RewardBench, Reasoning",
    }
    return draw_differences(sweep, scores, height=4.3)


def draw_frozen_deciles(sweep: Sweep) -> Figure:
    """Held-out accuracy by tenth of the distance, as a difference from BT."""
    figure, axes = panels(1, height=3.2)
    base = cells_of(sweep, "bt")[0]["outcomes"]
    ends = {}
    for arm in ("normbt", "relative", "smoothing"):
        own = cells_of(sweep, arm)[0]["outcomes"]
        rows = []
        for tenth in range(1, 11):
            key = f"held-out/decile-{tenth}"
            rows.append(interval(np.subtract(own[key], base[key]).tolist()))
        line(axes[0], range(1, 11), rows, arm)
        ends[arm] = (10, rows[-1][0])
    axes[0].axhline(0, color="#5f636b", linewidth=0.9)
    axes[0].set_xticks(range(1, 11))
    axes[0].set_xlabel("tenth of the distance of the features, nearest first")
    axes[0].set_ylabel("points more than BT")
    label_ends(axes[0], ends)
    return figure


def draw_scratch(sweep: Any) -> Figure:
    """Accuracy by category against step, one panel for each category, for the rate at which BT ends best."""
    categories = {"chat": "chat", "chat_hard": "chat_hard", "safety": "safety", "reasoning": "reasoning"}
    rates = sorted({run["rate"] for run in sweep["runs"]})
    figure = Figure(figsize=(9.6, 2.6 * len(rates)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rates), len(categories), sharex=True, squeeze=False)
    for row, rate in zip(grid, rates, strict=True):
        for panel, (category, title) in zip(row, categories.items(), strict=True):
            ends = {}
            for arm in ("bt", "normbt", "relative"):
                runs = [run for run in sweep["runs"] if run["arm"] == arm and run["rate"] == rate]
                if not runs:
                    continue
                steps = sorted((int(step) for step in runs[0]["points"]), key=int)
                rows = [interval([run["points"][str(step)][category] for run in runs]) for step in steps]
                line(panel, steps, rows, arm)
                ends[arm] = (steps[-1], rows[-1][0])
            panel.set_title(f"{title}, rate {rate:g}")
            label_ends(panel, ends)
        row[0].set_ylabel("ranked right, %")
    for panel in grid[-1]:
        panel.set_xlabel("optimizer steps")
    return figure


def draw_choices(record: Mapping[str, Any]) -> Figure:
    """Worth of what the models of three methods choose, against the number they choose from."""
    figure, axes = panels(len(POOLS))
    for panel, (pool, title) in zip(axes, POOLS.items(), strict=True):
        points, ends = record["pools"][pool]["points"], {}
        scale = 0.01 if pool == "built-in" else 1.0  # `interval` gives per cent
        sizes = sorted({point["n"] for point in points})
        for method, name in TRAINED.items():
            worth = [
                [
                    scale * one["gold"]["value"]
                    for one in points
                    if one["rule"].partition("/")[0] == method and one["n"] == n
                ]
                for n in sizes
            ]
            line(panel, sizes, [interval(values) for values in worth], name)
            ends[name] = (sizes[-1], interval(worth[-1])[0])
        longest = [100 * scale * one["gold"]["value"] for one in points if one["rule"] == "longest"]
        panel.plot(sizes, longest, color="#24262b", linestyle=":", linewidth=1.2)
        ends["longest"] = (sizes[-1], longest[-1])
        panel.set_title(title)
        panel.set_xlabel("n")
        panel.set_xticks(sizes)
        label_ends(panel, ends)
    axes[0].set_ylabel("worth of the chosen answer")
    return figure


def draw_experiment_deciles(record: Mapping[str, Any]) -> Figure:
    """Accuracy of three methods' models in each tenth of the distance."""
    groups = {"rewardbench": "RewardBench", TOGETHER: TOGETHER}
    figure, axes = panels(len(groups))
    for panel, (group, title) in zip(axes, groups.items(), strict=True):
        ends = {}
        for method, name in TRAINED.items():
            runs = np.array(list(record["by_distance"][group][method].values()))
            rows = [interval(column.tolist()) for column in runs.T]
            line(panel, range(1, len(rows) + 1), rows, name)
            ends[name] = (len(rows), rows[-1][0])
        panel.axhline(50, color="#24262b", linewidth=0.8, linestyle=":")
        panel.set_title(title)
        panel.set_xlabel("tenth of the distance that BT's model sees, nearest first")
        label_ends(panel, ends)
    axes[0].set_ylabel("ranked right, %")
    return figure


PLOTS: dict[str, tuple[str, str | None, Callable[[Any], Figure]]] = {
    "mechanism-steps": ("mechanism.json", "steps", draw_steps),
    "mechanism-epochs": ("mechanism.json", "epochs", draw_epochs),
    "mechanism-noise": ("mechanism.json", "noise", draw_noise),
    "mechanism-optimizer": ("mechanism.json", "optimizer", draw_optimizers),
    "mechanism-bound": ("mechanism.json", "bound", draw_bounds),
    "mechanism-beta": ("mechanism.json", "beta", draw_betas),
    "mechanism-batch-size": ("mechanism.json", "batch-size", draw_batches),
    "mechanism-balance": ("mechanism.json", "balance", draw_balance),
    "mechanism-grid": ("mechanism.json", "grid", draw_grid),
    "mechanism-scratch": ("scratch.json", "scratch", draw_scratch),
    "frozen-arms": ("frozen.json", "frozen", draw_frozen),
    "frozen-deciles": ("frozen.json", "frozen", draw_frozen_deciles),
    "minilm-deciles": ("evidence-minilm-one-rate.json", None, draw_experiment_deciles),
    "best-of-n": ("best-of-n.json", None, draw_choices),
}
"""Name of each picture, the summary and the sweep in it (None: all of it), and what draws it."""


def drawable(results: Path) -> list[str]:
    """Names of the plots whose sweep is in the summaries."""
    there = {file: read_sweeps(results / file) for file, sweep, _ in PLOTS.values() if sweep}
    return [name for name, (file, sweep, _) in PLOTS.items() if sweep is None or sweep in there[file]]


def draw(results: Path, images: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Draw the plots; the same summary gives the same file."""
    images.mkdir(parents=True, exist_ok=True)
    written = []
    for name in drawable(results) if names is None else names:
        file, sweep, make = PLOTS[name]
        with rc_context(STYLE):
            path = images / f"{name}.png"
            record = read_sweep(results / file, sweep) if sweep else json.loads((results / file).read_text("utf-8"))
            make(record).savefig(path, dpi=130, metadata={"Software": None})
        written.append(path)
    return written
