"""An evaluation's summary as a table for people."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from normbt.results import PAIRS_FILE, Determinism, EvaluationSummary, Score

NAMES_SHOWN = 6

TIE_POLICIES = {
    "wrong": "Ties and NaN count as wrong.",
    "fractional": "Answers that share the highest reward share the credit; NaN counts as wrong.",
    "second": "A tie is a decision for the second answer, as in the benchmark; NaN counts as wrong.",
}


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
    counted = "pairs" if summary["records_file"] == PAIRS_FILE else "decisions"
    for column in ("score", level, "longer answer", counted, "ties", "NaN", "truncated"):
        table.add_column(column, justify="right")
    for name, score in (summary["sections"] or summary["categories"] or summary["subsets"]).items():
        table.add_row(*_row(name, score))
    table.add_section()
    table.add_row(*_row(summary["headline"], summary["score"]), style="bold")
    if summary["sections"]:
        table.add_row(*_row("accuracy over all " + counted, summary["accuracy"]))
    for name, score in summary["sources"].items() if len(summary["sources"]) > 1 else ():
        table.add_row(*_row(f"source {name}", score))
    if summary["details"]:
        table.add_section()
    for name, score in summary["details"].items():
        table.add_row(*_row(name, score))
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
        f"{TIE_POLICIES[summary['tie_policy']]} Intervals: bootstrap of {summary['accuracy']['clusters']:,} "
        f"clusters ({summary['resamples']:,} resamples). 'longer answer' is the score of a rule that reads only "
        "lengths.",
        f"{inference['dtype']} on {inference['device']}, attention {inference['attention']}, at most "
        f"{inference['max_length']} tokens, chat template: {inference['template']}.",
    ]
    if summary["determinism"]:
        notes.append(_determinism(summary["determinism"]))
    coverage = summary["coverage"]
    if coverage and coverage["missing_subsets"]:
        missing = _names(coverage["missing_subsets"])
        notes.append(f"[yellow]Subsets without data, left out of the scores:[/] {missing}.")
    if coverage and coverage["incomplete_subsets"]:
        found = [f"{name} {has} of {wanted}" for name, (has, wanted) in coverage["incomplete_subsets"].items()]
        notes.append(f"[yellow]Not the official number:[/] {_names(found)}.")
    if inference["untrained_head"]:
        notes.append("[red]The scoring head is random: these scores are those of an untrained baseline.[/]")
    return notes


def _determinism(found: Determinism) -> str:
    changed = f", {found['non_finite_changed']} became or ceased to be a number" if found["non_finite_changed"] else ""
    return (
        f"Scored again one at a time ({found['answers']:,} answers of {found['records']:,} records): rewards differ by "
        f"at most {found['largest_difference']:.2g}, and {found['order_flips']:,} of {found['comparisons']:,} "
        f"comparisons change their order{changed}."
    )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return escape(", ".join(names[:NAMES_SHOWN]) + more)
