"""A comparison as tables: one set of rows, shown in a terminal, in Markdown and in LaTeX."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from normbt.compare.differences import PRIMARY
from normbt.compare.findings import p_text, points
from normbt.results import Comparison


class Cells(NamedTuple):
    """One table: its title, the heads of its columns, and its rows; a row of None is a rule."""

    title: str
    heads: list[str]
    rows: list[list[str] | None]


def comparison_tables(comparison: Comparison) -> list[Cells]:
    """The tables of a comparison: one for each pair of methods, and one of its seeds where there are several."""
    tables = []
    baseline = comparison["differences"][0]["baseline"]
    level = f"{comparison['confidence']:.0%} interval"
    for method in dict.fromkeys(row["method"] for row in comparison["differences"]):
        single = comparison["level"] == "models"
        heads = ["", baseline, method, "diff.", level, "p", "Holm"]
        heads += ["only : only", "McNemar"] if single else ["discordant"]
        heads += ["detectable", "decisions"]
        own = [row for row in comparison["differences"] if row["method"] == method]
        rows: list[list[str] | None] = []
        family = PRIMARY
        # The primary outcomes first, a rule between the families.
        for row in sorted(own, key=lambda row: row["family"] != PRIMARY):
            if rows and row["family"] != family:
                rows.append(None)
            family = row["family"]
            cells = [
                row["outcome"],
                f"{100 * row['baseline_score']:.1f}",
                f"{100 * row['method_score']:.1f}",
                points(row["difference"]),
                f"[{points(row['low'])}, {points(row['high'])}]",
                p_text(row["p_value"]),
                p_text(row["p_holm"]),
            ]
            if single:
                cells += [f"{row['only_baseline']:,} : {row['only_method']:,}", p_text(row["mcnemar_p"])]
            else:
                cells.append(f"{100 * row['discordance']:.1f} %")
            cells += ["n/a" if row["detectable"] is None else f"{100 * row['detectable']:.1f}", f"{row['decisions']:,}"]
            rows.append(cells)
        tables.append(Cells(f"{comparison['suite']}: {method} against {baseline}, in points", heads, rows))
        if not single:
            tables.append(_seeds(comparison, method, baseline, level))
    return tables


def _seeds(comparison: Comparison, method: str, baseline: str, level: str) -> Cells:
    """Every seed, and the paired t-test over them."""
    heads = ["", "seed", baseline, method, "diff.", "only : only", "p"]
    rows: list[list[str] | None] = []
    of_method = [row for row in comparison["seed_differences"] if row["method"] == method]
    tests = {test["outcome"]: test for test in comparison["seed_tests"] if test["method"] == method}
    for outcome in dict.fromkeys(row["outcome"] for row in of_method):
        if rows:
            rows.append(None)
        for place, row in enumerate(row for row in of_method if row["outcome"] == outcome):
            rows.append(
                [
                    outcome if place == 0 else "",
                    f"run {place + 1}" if row["seed"] is None else str(row["seed"]),
                    f"{100 * row['baseline_score']:.1f}",
                    f"{100 * row['method_score']:.1f}",
                    points(row["difference"]),
                    f"{row['only_baseline']:,} : {row['only_method']:,}",
                    p_text(row["mcnemar_p"]),
                ]
            )
        test = tests[outcome]
        interval = "n/a" if test["low"] is None or test["high"] is None else _interval(test["low"], test["high"])
        difference = points(test["difference"])
        rows.append(["", f"t over {test['seeds']}", "", "", difference, interval, p_text(test["p_value"])])
    return Cells(f"By seed: McNemar's exact p; paired t over the seeds with its {level}", heads, rows)


def _interval(low: float, high: float) -> str:
    return f"[{points(low)}, {points(high)}]"


def render_comparison(comparison: Comparison) -> RenderableType:
    """Tables and findings for a terminal.

    Args:
        comparison: content of ``comparison.json``.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    parts: list[RenderableType] = []
    for cells in comparison_tables(comparison):
        table = Table(title=escape(cells.title), title_justify="left")
        for place, head in enumerate(cells.heads):
            table.add_column(escape(head), justify="left" if place == 0 else "right", no_wrap=place == 0)
        for row in cells.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*map(escape, row))
        parts.append(table)
    return Group(*parts, *(escape(line) for line in _lines(comparison)))


def markdown(comparison: Comparison) -> str:
    """The same as Markdown."""
    blocks = []
    for cells in comparison_tables(comparison):
        rule = ["---", *["---:"] * (len(cells.heads) - 1)]
        rows = [cells.heads, rule, *(row for row in cells.rows if row is not None)]
        lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
        blocks.append(f"**{cells.title}**\n\n" + "\n".join(lines))
    return "\n\n".join([*blocks, *_lines(comparison)]) + "\n"


def latex(comparison: Comparison) -> str:
    """The same for a paper: tables with the rules of the package ``booktabs``, findings as comments."""
    blocks = ["% needs \\usepackage{booktabs}"]
    for cells in comparison_tables(comparison):
        body = [r"\midrule" if row is None else " & ".join(map(_latex, row)) + r" \\" for row in cells.rows]
        blocks.append(
            "\n".join(
                [
                    f"% {cells.title}",
                    rf"\begin{{tabular}}{{l{'r' * (len(cells.heads) - 1)}}}",
                    r"\toprule",
                    " & ".join(map(_latex, cells.heads)) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join([*blocks, "\n".join(f"% {line}" for line in _lines(comparison))]) + "\n"


def _lines(comparison: Comparison) -> Sequence[str]:
    return [*comparison["findings"], *comparison["notes"]]


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def _latex(text: str) -> str:
    """Text that LaTeX prints as it stands; a minus sign is one."""
    if text[:1] == "-" and len(text) > 1:
        text = "\u2212" + text[1:]
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return escaped.replace("\u2212", "$-$").replace("[-", "[$-$").replace(", -", ", $-$")
