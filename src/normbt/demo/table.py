"""The result of the demo for people: one table, and what it can and cannot show."""

from rich.console import Group, RenderableType
from rich.table import Table

from normbt.demo.comparison import ALL, CategoryComparison
from normbt.demo.job import DemoSummary

SIGNIFICANT = 0.05


def render_demo(summary: DemoSummary) -> RenderableType:
    """Table of both methods by category, the finding in words, and its limits.

    Args:
        summary: content of ``demo.json``.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    table = Table(title="Accuracy on held-out pairs, with 95 % intervals", title_justify="left")
    table.add_column("")
    for column in ("BT", "NormBT", "NormBT - BT", "p", "pairs", "distance", "gradient BT", "NormBT"):
        table.add_column(column, justify="right")
    for row in summary["comparison"]:
        if row["category"] == ALL:
            table.add_section()
        table.add_row(*_cells(row), style="bold" if row["category"] == ALL else None)
    return Group(table, *findings(summary))


def findings(summary: DemoSummary) -> list[str]:
    """What was found, and what such a run can and cannot show, one sentence or two a line.

    Args:
        summary: content of ``demo.json``.

    Returns:
        Lines of plain text; the same words whichever method did better.
    """
    *categories, total = summary["comparison"]
    better = [row["category"] for row in categories if _significant(row) and row["difference"] > 0]
    worse = [row["category"] for row in categories if _significant(row) and row["difference"] < 0]
    open_ = [row["category"] for row in categories if not _significant(row)]
    lines = [
        f"Over all {total['pairs']:,} test pairs NormBT ranks {100 * total['normbt']:.1f} % right and BT "
        f"{100 * total['bt']:.1f} %: a difference of {_points(total)} points (p = {_p(total['p_value'])})."
    ]
    for names, verdict in ((better, "NormBT did better"), (worse, "NormBT did worse"), (open_, "No difference shown")):
        if names:
            lines.append(f"{verdict}: {', '.join(names)}.")
    return [
        *lines,
        "p: McNemar's exact test on the same pairs, in the categories after Holm's correction; a difference counts as "
        f"shown below {SIGNIFICANT}. gradient: share of the head's gradient that each category gets in the BT model, "
        "without and with NormBT's weights.",
        "What this shows: both methods run, from the same start, on the same pairs in the same order; and which pairs "
        "get the gradient.",
        f"What it cannot show: which method is better. This is one seed ({summary['seed']}), "
        f"{summary['train_pairs']:,} generated pairs and a small encoder; the intervals cover the choice of the test "
        "pairs, not of the seed or the data. Look-alike reasoning pairs are built into the data.",
    ]


def _significant(row: CategoryComparison) -> bool:
    p_value = row["p_value"] if row["p_holm"] is None else row["p_holm"]
    return p_value < SIGNIFICANT


def _cells(row: CategoryComparison) -> list[str]:
    return [
        row["category"],
        f"{100 * row['bt']:.1f} [{100 * row['bt_low']:.0f}, {100 * row['bt_high']:.0f}]",
        f"{100 * row['normbt']:.1f} [{100 * row['normbt_low']:.0f}, {100 * row['normbt_high']:.0f}]",
        _points(row),
        _p(row["p_value"] if row["p_holm"] is None else row["p_holm"]),
        f"{row['pairs']:,}",
        f"{row['distance']:.2f}",
        f"{100 * row['gradient_share_bt']:.0f} %",
        f"{100 * row['gradient_share_normbt']:.0f} %",
    ]


def _points(row: CategoryComparison) -> str:
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    return f"{100 * row['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
