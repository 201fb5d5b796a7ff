"""What `normbt score` did, for people."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from normbt.results import ScoringSummary


def render_scoring(summary: ScoringSummary) -> RenderableType:
    """Counts and spread of the rewards of one file.

    Args:
        summary: the file's summary.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    counts, rewards = summary["counts"], summary["rewards"]
    table = Table(title=escape(f"{summary['model']}: {summary['form']}"), title_justify="left")
    for column in ("rows read", "scored", "malformed", "empty", "truncated", "NaN", "mean", "std", "min", "max"):
        table.add_column(column, justify="right")
    numbers = (rewards["mean"], rewards["std"], rewards["minimum"], rewards["maximum"])
    shown = ("read", "scored", "malformed", "empty", "truncated", "non_finite")
    table.add_row(
        *(f"{counts[name]:,}" for name in shown), *("" if number is None else f"{number:.4g}" for number in numbers)
    )
    notes = [f"[yellow]row {reason['row']}:[/] {escape(reason['reason'])}" for reason in summary["reasons"]]
    if counts["malformed"] > len(notes):
        notes.append(f"and {counts['malformed'] - len(notes):,} more malformed rows, left out")
    if counts["other_split"]:
        notes.append(f"{counts['other_split']:,} rows of other splits left out")
    inference, applied = summary["inference"], summary["normalisation"]
    if applied is not None:
        notes.append(
            f"Normalised: (reward - {applied['mean']:.6g}) / {applied['std']:.6g}, from {escape(applied['data'])}."
        )
    notes.append(
        f"{inference['dtype']} on {inference['device']}, attention {inference['attention']}, at most "
        f"{inference['max_length']} tokens, chat template: {inference['template']}."
    )
    if inference["untrained_head"]:
        notes.append("[red]The scoring head is random: these rewards are those of an untrained baseline.[/]")
    return Group(table, *notes)
