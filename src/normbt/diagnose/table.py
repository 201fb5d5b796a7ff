"""A diagnosis as tables for people."""

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from normbt.results import DiagnosisSummary, Estimate


def render_diagnosis(summary: DiagnosisSummary) -> RenderableType:
    """Tables of one diagnosis, followed by what a reader must know to trust them.

    Args:
        summary: content of ``summary.json``.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    tables: list[RenderableType] = [_associations(summary)]
    if summary["error_bins"]:
        tables.append(_slopes(summary))
    tables.append(_deciles(summary))
    if summary["per_category"]:
        tables.append(_categories(summary))
    return Group(*tables, *_notes(summary))


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _associations(summary: DiagnosisSummary) -> Table:
    level = f"{summary['confidence']:.0%} interval"
    table = _table(
        f"{summary['model']}: how the gradient norm goes with the distance",
        "gradient norm and",
        "Pearson",
        level,
        "Spearman",
        level,
    )
    for kind, label in (("distance", "distance"), ("distance_relative", "relative"), ("distance_cosine", "cosine")):
        found = summary["correlations"][kind]
        table.add_row(label, *_estimate(found["pearson"]), *_estimate(found["spearman"]))
    backbone = summary["correlations_backbone"]["distance"]
    table.add_row("distance, backbone's norm", *_estimate(backbone["pearson"]), *_estimate(backbone["spearman"]))
    return table


def _slopes(summary: DiagnosisSummary) -> Table:
    level = f"{summary['confidence']:.0%} interval"
    table = _table("At equal error: norm = c · distance^p", "prediction error", "p", level, "pairs")
    for found in summary["error_bins"]:
        errors = f"{found['error_low']:.3f} to {found['error_high']:.3f}"
        table.add_row(errors, *_estimate(found["slope"]), f"{found['pairs']:,}")
    return table


def _deciles(summary: DiagnosisSummary) -> Table:
    table = _table("Share of the update, by distance", "distance", "BT", "NormBT", "pairs")
    for found in summary["share_by_decile"]:
        if found["pairs"]:
            distances = f"{_number(found['distance_low'])} to {_number(found['distance_high'])}"
            table.add_row(distances, _share(found["share_bt"]), _share(found["share_normbt"]), f"{found['pairs']:,}")
    table.add_section()
    effective = [_number(summary["effective_pairs_bt"]), _number(summary["effective_pairs_normbt"])]
    table.add_row("effective pairs", *effective, f"{summary['sampled_pairs'] - summary['non_finite']:,}")
    return table


def _categories(summary: DiagnosisSummary) -> Table:
    columns = ("distance", "gradient norm", "error", "BT", "NormBT", "misranked", "pairs")
    table = _table("By category: medians, mean error, share of the update", "category", *columns)
    for name, found in summary["per_category"].items():
        table.add_row(
            escape(name),
            _number(found["median_distance"]),
            _number(found["median_gradient_norm"]),
            _number(found["mean_error"]),
            _share(found["share_bt"]),
            _share(found["share_normbt"]),
            f"{found['misranked']:,}",
            f"{found['pairs']:,}",
        )
    return table


def _notes(summary: DiagnosisSummary) -> list[str]:
    quiet, fit, product = summary["quiet_mistakes"], summary["proportional_fit"], summary["product_form"]
    method, inference = summary["method"], summary["inference"]
    sampled = "all" if summary["seed"] is None else f"a sample (seed {summary['seed']}) of"
    notes = [
        f"Pairs: {summary['sampled_pairs']:,}, {sampled} {summary['total_pairs']:,}. Misranked: "
        f"{summary['misranked']:,} (ties, {summary['ties']:,}, count as misranked). Truncated: "
        f"{summary['truncated']:,}.",
        f"Quiet mistakes, misranked pairs updated less than the median of the correct ones: {quiet['quiet_bt']:,} of "
        f"{quiet['misranked']:,} under BT, {quiet['quiet_normbt']:,} under NormBT.",
        f"One constant: gradient norm = {_number(fit['k'])} · distance explains {_share(fit['r_squared'])} of its "
        f"variance. Head's norm against distance: largest deviation {_number(product['max_relative_deviation'])}.",
        f"NormBT: mu {_number(summary['mu'])}, the mean distance of these pairs; {summary['clipped']:,} weights at the "
        f"bound of {summary['max_weight']}.",
        f"Gradient norms over {method['parameters']:,} parameters, method {method['used']}: "
        f"{escape(method['reason'])}.",
        f"{inference['dtype']} on {inference['device']}, attention {inference['attention']}, at most "
        f"{inference['max_length']} tokens, chat template: {inference['template']}.",
    ]
    if summary["non_finite"]:
        notes.append(f"[red]Pairs with NaN or infinities, left out of every statistic:[/] {summary['non_finite']:,}.")
    if summary["without_category"] and summary["per_category"]:
        notes.append(f"[yellow]Pairs without a category:[/] {summary['without_category']:,}.")
    if inference["untrained_head"]:
        notes.append("[red]The scoring head is random: this is the start of a training run, not a trained model.[/]")
    return notes


def _estimate(found: Estimate) -> tuple[str, str]:
    if found["value"] is None:
        return "-", "-"
    interval = "-" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
    return f"{found['value']:.3f}", interval


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
