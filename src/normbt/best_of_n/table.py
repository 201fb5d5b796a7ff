"""The curves as tables: for a terminal and in Markdown, from the same cells."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from normbt.results import ORACLE, RANDOM, BestOfNSummary, CurvePoint, Estimate


def render_best_of_n(summary: BestOfNSummary, points: Sequence[CurvePoint]) -> RenderableType:
    """Tables of the curves, the rules at the largest n and their differences, and what to know before trusting them.

    Args:
        summary: content of ``best_of_n.json``.
        points: content of ``curves.jsonl``.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    parts: list[RenderableType] = []
    for title, header, rows in _tables(summary, points):
        table = Table(title=escape(title), title_justify="left")
        for place, column in enumerate(header):
            table.add_column(escape(column), justify="left" if place == 0 else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        parts.append(table)
    return Group(*parts, *map(escape, _notes(summary)))


def render_markdown(summary: BestOfNSummary, points: Sequence[CurvePoint]) -> str:
    """The same tables and notes in Markdown."""
    blocks = ["# Best of n"]
    for title, header, rows in _tables(summary, points):
        lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
        blocks += [f"## {title}", "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)]
    blocks.append("\n".join(f"- {note}" for note in _notes(summary)))
    return "\n\n".join(blocks) + "\n"


def _tables(summary: BestOfNSummary, points: Sequence[CurvePoint]) -> list[tuple[str, list[str], list[list[str]]]]:
    at = {(point["rule"], point["n"]): point for point in points}
    rules = [*summary["proxies"], *([ORACLE] if summary["gold"] else [])]
    worth = "gold" if summary["gold"] else "score"
    sizes = summary["sizes"]
    curve = [
        [f"{n:,}", f"{at[rules[0], n]['kl_bound']:.3f}", *(_interval(at[rule, n][worth]) for rule in rules)]
        for n in sizes
    ]
    what = f"Mean {summary['gold']} score" if summary["gold"] else "Mean of the rule's own score"
    tables = [(f"{what} of the best of n, chosen by", ["n", "KL at most", *rules], curve)]
    largest = sizes[-1]
    if summary["gold"]:
        rows = []
        for rule in [*rules, RANDOM]:
            point = at[rule, 1 if rule == RANDOM else largest]
            agreement = summary["agreement"].get(rule)
            cells = [point["gold"], point["regret"], point["gain"], agreement, point["characters"]]
            share = summary["ties"].get(rule)
            rows.append([rule, *map(_interval, cells), "" if share is None else f"{share:.1%}"])
        header = ["rule", "gold", "regret", "share of the oracle's gain", "top-1 agreement", "characters", "tied"]
        tables.append((f"At n = {largest:,}", header, rows))
    differences = [one for one in summary["differences"] if one["n"] == largest]
    if differences:
        rows = [
            [
                f"{one['first']} - {one['second']}",
                _interval(one["gold"]),
                f"{one['first_better']:.1%}",
                f"{one['second_better']:.1%}",
            ]
            for one in differences
        ]
        header = ["", "gold", "prompts where the first is better", "where the second is"]
        tables.append((f"Paired differences at n = {largest:,}", header, rows))
    return tables


def _notes(summary: BestOfNSummary) -> list[str]:
    counts = summary["counts"]
    notes = [
        f"{counts['prompts_used']:,} prompts with {_range(counts['fewest'], counts['most'])} candidates each; the mean "
        "over all subsets of n, ties drawn fairly.",
        f"Intervals: {summary['confidence']:.0%}, bootstrap of prompts ({summary['resamples']:,} resamples), the same "
        "prompts for all rules. 'KL at most' is an upper bound.",
    ]
    if counts["prompts_with_few"]:
        notes.append(
            f"{counts['prompts_with_few']:,} prompts have fewer than {summary['sizes'][-1]:,} candidates: left out."
        )
    if counts["prompts_near_n"]:
        notes.append(
            f"WARNING: {counts['prompts_near_n']:,} prompts have fewer than twice the largest n; few subsets are left "
            "there, and the last points of the curves are noisy. Give more candidates, or lower n."
        )
    if others := sum(data["other_split"] for data in summary["provenance"]["data"]):
        notes.append(f"{others:,} candidates of other splits left out.")
    if counts["without_score"] or counts["malformed"]:
        notes.append(
            f"Candidates left out: {counts['without_score']:,} without a finite score, "
            f"{counts['malformed']:,} malformed."
        )
    return notes


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.4g}"
    # As many decimals as the interval makes sense of: two digits of its width.
    width = estimate["high"] - estimate["low"]
    decimals = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 2
    return " ".join(
        [f"{estimate['value']:.{decimals}f}", f"({estimate['low']:.{decimals}f} to {estimate['high']:.{decimals}f})"]
    )


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
