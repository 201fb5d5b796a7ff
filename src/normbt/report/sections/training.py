"""How training went: the log of `normbt train`, of the demo, or of any run of a Transformers trainer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from normbt.report.charts import Axis, Line, Lines, Tone, run_tone
from normbt.report.section import Limits, Section, Table, number, percent
from normbt.report.sources import Mark as FileMark
from normbt.report.sources import Source
from normbt.results import read_json

MARKS = (FileMark("trainer_state.json"),)

LOGS_PER_WINDOW = 40
"""Curves of more than twice so many logs are smoothed with a window of a fortieth of them."""

PANELS: tuple[tuple[str, tuple[str, ...], str, bool], ...] = (
    ("Loss, not weighted", ("loss_unweighted",), "nats", False),
    ("Loss, weighted", ("loss_weighted",), "nats", False),
    ("Loss", ("loss",), "what is minimised", False),
    ("Accuracy", ("accuracy",), "share of pairs", True),
    ("Accuracy, closest third", ("accuracy_near",), "share of pairs", True),
    ("Accuracy, middle third", ("accuracy_mid",), "share of pairs", True),
    ("Accuracy, farthest third", ("accuracy_far",), "share of pairs", True),
    ("Distance, and mu dashed", ("distance", "mu"), "‖h_c − h_r‖", False),
    ("Weight: median, 10 % to 90 %", ("weight_q50",), "NormBT weight", False),
    ("Effective batch size", ("effective_batch_size",), "pairs", False),
    ("Weights at their bound", ("clipped_share",), "share of pairs", True),
    ("Reward margin", ("margin",), "reward", False),
    ("Gradient norm", ("grad_norm",), "of the whole step", False),
)
"""Title, metrics (the second is dashed), unit, and whether it is a share, for each panel that a log has numbers for."""

BANDS = {"weight_q50": ("weight_q10", "weight_q90")}

Log = Sequence[Mapping[str, Any]]


def build(sources: Sequence[Source], limits: Limits) -> Section:
    """Make the section of one or more training runs."""
    logs: list[Log] = [read_json(source.file).get("log_history", []) for source in sources]
    runs = [source.label for source in sources]
    panels = []
    weighted = any("loss_weighted" in row for log in logs for row in log)
    for title, metrics, unit, share in PANELS:
        if weighted and metrics == ("loss",):
            continue  # the same, but for auxiliary terms
        lines = [
            line
            for place, (run, log) in enumerate(zip(runs, logs, strict=True))
            for order, metric in enumerate(metrics)
            for line in _lines(run, run_tone(place, len(runs)), log, metric, dashed=order > 0)
        ]
        if lines:
            panels.append((title, Axis(unit, percent=share), lines))
    windows = sorted({_window(sum("loss" in row for row in log)) for log in logs})
    smoothed = windows[-1] > 1
    return Section(
        name="training",
        title="How training went",
        intro="Metrics over all pairs between two logs. Compare methods by the loss that is not weighted.",
        runs=runs,
        charts=[
            Lines(
                "training",
                "Training curves",
                (
                    f"Lines are means of up to {windows[-1]} neighbouring logs, the faint ones the logs themselves; "
                    if smoothed
                    else "Every log is drawn; "
                )
                + "large dots are evaluations.",
                "optimizer step",
                panels,
            )
        ],
        tables=[_ends(runs, logs)],
        notes=[
            f"{run}: {len(log):,} logs up to step {max((int(row.get('step', 0)) for row in log), default=0):,}, from "
            f"{source.file.name}."
            for run, log, source in zip(runs, logs, sources, strict=True)
        ],
    )


def _lines(run: str, tone: Tone, log: Log, metric: str, *, dashed: bool) -> Iterable[Line]:
    steps, values = _values(log, metric)
    if steps:
        window = _window(len(steps))
        low, high = (
            ([_smooth(_values(log, name)[1], window) for name in BANDS[metric]]) if metric in BANDS else ([], [])
        )
        yield Line(
            f"{run}: {metric}" if dashed else run,
            tone,
            steps,
            _smooth(values, window),
            faint=values if window > 1 and not low else [],
            low=low,
            high=high,
            dashed=dashed,
        )
    evaluated = [name for name in dict.fromkeys(key for row in log for key in row) if _is_evaluation(name, metric)]
    for name in evaluated:
        steps, values = _values(log, name)
        yield Line(f"{run}: {name}", tone, steps, values, points=True)


def _is_evaluation(name: str, metric: str) -> bool:
    """``eval_accuracy``, or ``eval_NAME_accuracy`` of one of several sets, but not ``eval_accuracy_near``."""
    return (
        name.startswith("eval_")
        and (name == f"eval_{metric}" or name.endswith(f"_{metric}"))
        and not any(
            name.endswith(f"_{longer}")
            for _, longer_metrics, *_ in PANELS
            for longer in longer_metrics
            if longer != metric and longer.endswith(f"_{metric}")
        )
    )


def _values(log: Log, metric: str) -> tuple[list[float], list[float | None]]:
    """Steps and numbers of a metric; a number that is not finite is None and breaks the line."""
    rows = [(float(row["step"]), row[metric]) for row in log if metric in row and "step" in row]
    return [step for step, _ in rows], [
        float(value) if isinstance(value, int | float) and math.isfinite(value) else None for _, value in rows
    ]


def _window(logs: int) -> int:
    return max(1, logs // LOGS_PER_WINDOW) if logs > 2 * LOGS_PER_WINDOW else 1


def _smooth(values: Sequence[float | None], window: int) -> list[float | None]:
    """Mean of the logs around each one, over those there are."""
    if window == 1:
        return list(values)
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    valid = ~np.isnan(numbers)
    kernel = np.ones(window)
    # "full" and a cut, since "same" gives the kernel's length where the curve is the shorter one.
    start = (window - 1) // 2
    sums = np.convolve(np.where(valid, numbers, 0.0), kernel)[start : start + len(numbers)]
    counts = np.convolve(valid.astype(float), kernel)[start : start + len(numbers)]
    return [float(s / c) if c > 0 else None for s, c in zip(sums, counts, strict=True)]


def _ends(runs: Sequence[str], logs: Sequence[Log]) -> Table:
    """The last log of each metric, run beside run."""
    metrics = [(title, metric, share) for title, metrics, _, share in PANELS for metric in metrics]
    rows = []
    for title, metric, share in metrics:
        last = [next((value for value in reversed(_values(log, metric)[1]) if value is not None), None) for log in logs]
        if any(value is not None for value in last):
            label = "mu" if metric == "mu" else title.split(",")[0] if metric == "distance" else title
            rows.append([label, *(percent(value) if share else number(value) for value in last)])
    return Table("Last log", ["", *runs], rows)
