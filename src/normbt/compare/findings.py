"""What a comparison found, in sentences that claim no more than the numbers do."""

from collections import Counter
from collections.abc import Sequence

from normbt.compare.differences import BETTER, OPEN, PRIMARY, WORSE
from normbt.results import ScoreDifference


def describe(
    differences: Sequence[ScoreDifference], *, seeds: int, alpha: float, confidence: float, power: float
) -> list[str]:
    """One paragraph for each pair of methods, and what the comparison can speak of.

    Args:
        differences: every difference, those of one pair of methods next to each other.
        seeds: runs of each method.
        alpha: level of the tests.
        confidence: coverage of the intervals.
        power: probability at which a detectable difference is found.

    Returns:
        Lines of plain text.
    """
    lines = []
    for method in dict.fromkeys(row["method"] for row in differences):
        rows = [row for row in differences if row["method"] == method]
        versus = f"{method} and {rows[0]['baseline']}"
        lines += [_primary(row, confidence, power) for row in rows if row["family"] == PRIMARY]
        others = [row for row in rows if row["family"] != PRIMARY]
        for verdict in (BETTER, WORSE):
            shown = [f"{row['outcome']} ({points(row['difference'])})" for row in others if row["verdict"] == verdict]
            if shown:
                lines.append(f"{method} is {verdict} than {rows[0]['baseline']} in: {', '.join(shown)}.")
        unshown = [row["outcome"] for row in others if row["verdict"] == OPEN]
        if unshown:
            lines.append(f"No difference between {versus} could be shown in: {', '.join(unshown)}.")
    lines.append(
        f"A difference counts as shown where p, adjusted by Holm's rule within its family ({_families(differences)}), "
        f"is at most {alpha:g}."
    )
    if seeds == 1:
        lines.append(
            "One run each: this compares these models. It says nothing about the methods that made them, since another "
            "seed gives other models; several runs each do (NAME=FOLDER NAME=FOLDER ...)."
        )
    else:
        lines.append(
            f"{seeds} runs each, paired by seed: intervals and p cover the choice of seeds and of the benchmark's "
            "pairs, not that of training data and settings."
        )
    return lines


def points(share: float) -> str:
    """A difference in points with its sign.

    Example:
        >>> points(0.0123), points(-0.00001)
        ('+1.2', '0.0')
    """
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def p_text(p_value: float | None) -> str:
    """A p-value as people write it.

    Example:
        >>> p_text(0.04321), p_text(0.00001), p_text(None)
        ('0.043', '<0.001', 'n/a')
    """
    if p_value is None:
        return "n/a"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _primary(row: ScoreDifference, confidence: float, power: float) -> str:
    interval = f"{confidence:.0%} interval {points(row['low'])} to {points(row['high'])}"
    finding = (
        f"{row['outcome']}: {row['method']} {100 * row['method_score']:.1f} %, {row['baseline']} "
        f"{100 * row['baseline_score']:.1f} %, a difference of {points(row['difference'])} points ({interval}, "
        f"p = {p_text(row['p_holm'])} after Holm)"
    )
    if row["verdict"] != OPEN:
        return f"{finding}: {row['method']} is {row['verdict']}."
    if row["detectable"] is None:
        return f"{finding}: no difference could be shown. No decision differs, so what could be seen is not known."
    return (
        f"{finding}: no difference could be shown. With {row['decisions']:,} decisions in {row['clusters']:,} "
        f"clusters, {100 * row['discordance']:.1f} % of them decided differently, a true difference of "
        f"{100 * row['detectable']:.1f} points would have been found {power:.0%} of the time."
    )


def _families(differences: Sequence[ScoreDifference]) -> str:
    sizes = Counter(row["family"] for row in differences)
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
