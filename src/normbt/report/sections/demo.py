"""BT against NormBT on built-in pairs: the comparison that ``normbt demo`` writes."""

from collections.abc import Mapping, Sequence
from typing import Any

from normbt.report.charts import Axis, Mark, Series, Spans
from normbt.report.section import MISSING, Headline, Limits, Section, Table, percent
from normbt.report.sources import Mark as FileMark
from normbt.report.sources import Source
from normbt.results import read_json

MARKS = (FileMark("demo.json", "demo"),)


def build(sources: Sequence[Source], limits: Limits) -> Section:
    """Make the section of one or more demos."""
    summaries = [read_json(source.file, kind="demo") for source in sources]
    runs = [source.label for source in sources]
    return Section(
        name="demo",
        title="BT and NormBT on built-in pairs",
        intro=(
            "Two trainings from the same start on the same generated pairs in the same order; only the weighting "
            "differs. One seed, few pairs and a small encoder: this shows which pairs get the gradient, and cannot "
            "show which method is better."
        ),
        runs=runs,
        headlines=[
            Headline(run if len(runs) > 1 else "", findings=[_finding(summary)])
            for run, summary in zip(runs, summaries, strict=True)
        ],
        charts=[
            chart
            for run, summary in zip(runs, summaries, strict=True)
            for chart in _charts(run, summary, len(runs) > 1)
        ],
        tables=[_table(run, summary) for run, summary in zip(runs, summaries, strict=True)],
        notes=[
            f"{run}: seed {summary['seed']}, {summary['train_pairs']:,} pairs to train on and "
            f"{summary['test_pairs']:,} to test on, generated."
            for run, summary in zip(runs, summaries, strict=True)
        ],
        origins={run: summary["provenance"] for run, summary in zip(runs, summaries, strict=True)},
    )


def _finding(summary: Mapping[str, Any]) -> str:
    total = summary["comparison"][-1]
    return (
        f"Over all {total['pairs']:,} test pairs NormBT ranks {percent(total['normbt'])} right and BT "
        f"{percent(total['bt'])}: a difference of {_points(total)} points (p = {_p(total)})."
    )


def _charts(run: str, summary: Mapping[str, Any], several: bool) -> list[Spans]:
    rows = summary["comparison"]
    groups = [row["category"] for row in rows]
    suffix = f"-{run.replace('/', '-')}" if several else ""
    of = f": {run}" if several else ""
    return [
        Spans(
            f"demo-accuracy{suffix}",
            f"Accuracy on held-out pairs{of}",
            "Dot: share of pairs ranked right; line: 95 % Wilson interval.",
            Axis("pairs ranked right", percent=True, low=0, high=1),
            groups,
            [
                Series("BT", "bt", [_accuracy(row, "bt") for row in rows]),
                Series("NormBT", "normbt", [_accuracy(row, "normbt") for row in rows]),
            ],
            reference=0.5,
            reference_label="chance",
        ),
        Spans(
            f"demo-difference{suffix}",
            f"NormBT less BT{of}",
            "Difference in accuracy on the same pairs, with its paired 95 % bootstrap interval. An interval across "
            "zero shows no difference.",
            Axis("difference in accuracy", percent=True),
            groups,
            [
                Series(
                    "NormBT less BT",
                    "normbt",
                    [Mark(row["difference"], row["difference_low"], row["difference_high"]) for row in rows],
                )
            ],
            reference=0.0,
            reference_label="no difference",
        ),
    ]


def _accuracy(row: Mapping[str, Any], method: str) -> Mark:
    return Mark(row[method], row[f"{method}_low"], row[f"{method}_high"])


def _table(run: str, summary: Mapping[str, Any]) -> Table:
    return Table(
        f"Comparison by category: {run}",
        ["", "pairs", "BT", "NormBT", "NormBT less BT, points", "p", "only BT right", "only NormBT right"],
        [
            [
                row["category"],
                f"{row['pairs']:,}",
                percent(row["bt"]),
                percent(row["normbt"]),
                _points(row),
                _p(row),
                f"{row['only_bt']:,}",
                f"{row['only_normbt']:,}",
            ]
            for row in summary["comparison"]
        ],
    )


def _points(row: Mapping[str, Any]) -> str:
    value, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _p(row: Mapping[str, Any]) -> str:
    """McNemar's p, after Holm's correction in the categories."""
    value = row["p_value"] if row["p_holm"] is None else row["p_holm"]
    return MISSING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
