"""An evaluation's summary as a table for people."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from normbt.results import EvaluationSummary, Score

NAMES_SHOWN = 6


def render_summary(summary: EvaluationSummary) -> RenderableType:
    """Table of the scores of one evaluation, followed by what a reader must know to trust them.

    Args:
        summary: content of ``summary.json``.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    table = Table(title=escape(f"{summary['suite']}: {summary['model']}"), title_justify="left")
    table.add_column("")
    level = f"{summary['confidence']:.0%} interval"
    for column in ("score", level, "longer answer", "pairs", "ties", "NaN", "truncated"):
        table.add_column(column, justify="right")
    for name, score in (summary["sections"] or summary["categories"]).items():
        table.add_row(*_row(name, score))
    table.add_section()
    table.add_row(*_row(summary["headline"], summary["score"]), style="bold")
    if summary["sections"]:
        table.add_row(*_row("accuracy over all pairs", summary["accuracy"]))
    for name, score in summary["sources"].items() if len(summary["sources"]) > 1 else ():
        table.add_row(*_row(f"source {name}", score))
    return Group(table, *_notes(summary))


def _row(name: str, score: Score) -> list[str]:
    counts = (score["pairs"], score["ties"], score["non_finite"], score["truncated"])
    return [
        escape(name),
        f"{score['value']:.1%}",
        f"{score['low']:.1%} to {score['high']:.1%}",
        f"{score['length_only']:.1%}",
        *(f"{count:,}" for count in counts),
    ]


def _notes(summary: EvaluationSummary) -> list[str]:
    inference = summary["inference"]
    notes = [
        f"Ties and NaN count as {summary['tie_policy']}. Intervals: bootstrap of {summary['accuracy']['clusters']:,} "
        f"clusters of pairs ({summary['resamples']:,} resamples). 'longer answer' is the score of a rule that reads "
        "only lengths.",
        f"{inference['dtype']} on {inference['device']}, attention {inference['attention']}, at most "
        f"{inference['max_length']} tokens, chat template: {inference['template']}.",
    ]
    coverage = summary["coverage"]
    if coverage and coverage["missing_subsets"]:
        notes.append(
            f"[yellow]Subsets without pairs, left out of the sections:[/] {_names(coverage['missing_subsets'])}."
        )
    if coverage and coverage["incomplete_subsets"]:
        found = [f"{name} {has} of {wanted}" for name, (has, wanted) in coverage["incomplete_subsets"].items()]
        notes.append(f"[yellow]Not the official number of pairs:[/] {_names(found)}.")
    if inference["untrained_head"]:
        notes.append("[red]The scoring head is random: these scores are those of an untrained baseline.[/]")
    return notes


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return escape(", ".join(names[:NAMES_SHOWN]) + more)
