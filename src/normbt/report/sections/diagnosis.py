"""Who gets the gradient: the results of ``normbt diagnose``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normbt.report.charts import Axis, Bars, Chart, Mark, Panel, Scatter, Series, Spans, run_tone, scale_for
from normbt.report.explorer import Column, PairTable, read_table
from normbt.report.section import MISSING, Headline, Limits, Section, Table, Tile, interval, number, percent
from normbt.report.sources import Mark as FileMark
from normbt.report.sources import Source
from normbt.results import PAIRS_FILE, SUMMARY_FILE, DiagnosisSummary, Estimate, read_diagnosis

MARKS = (FileMark(SUMMARY_FILE, "diagnosis"),)

MOST_CATEGORIES = 30
"""Categories drawn; the smallest of more are left out of the charts, which say so, and stay in the table."""

COLUMNS = (
    Column("category", "Category", "choice", "the data's category", shown=True, filter=True),
    Column("subset", "Subset", "choice", "the data's subset", filter=True),
    Column("source", "Source", "choice", "the data's source"),
    Column("misranked", "Misranked", "flag", "the preferred answer is not strictly ahead", shown=True),
    Column("quiet", "Quiet mistake", "flag", "misranked, and its BT update is below the median of the correct ones"),
    Column("tie", "Tie", "flag", "both rewards are equal; ties are among the misranked"),
    Column("error", "Error", "number", "prediction error 1 − σ(d), 0 right to 1 wrong", shown=True, filter=True),
    Column("distance", "Distance", "number", "‖h_c − h_r‖, the difference the head sees", shown=True, filter=True),
    Column("gradient_norm", "Gradient norm", "number", "‖∇(r_c − r_r)‖ over all parameters", shown=True, filter=True),
    Column("weight", "NormBT weight", "number", "mu / (distance + eps), bounded", shown=True),
    Column("update_bt", "BT update", "number", "error × gradient norm", shown=True),
    Column("update_normbt", "NormBT update", "number", "weight × error × gradient norm", shown=True),
    Column("reward_chosen", "Reward, chosen", "number", "reward of the preferred answer"),
    Column("reward_rejected", "Reward, rejected", "number", "reward of the other answer"),
    Column("margin_reward", "Reward margin", "number", "d, the first reward less the second"),
    Column("gradient_norm_head", "Gradient norm, head", "number", "the head's part; equals the distance"),
    Column("gradient_norm_backbone", "Gradient norm, backbone", "number", "the part of all other parameters"),
    Column("distance_relative", "Relative distance", "number", "distance divided by the mean norm of both"),
    Column("distance_cosine", "Cosine distance", "number", "1 − cosine of the angle, from 0 to 2"),
    Column("similarity", "Word similarity", "number", "1 for equal answers, 0 for no word in common"),
    Column("n_tokens_chosen", "Tokens, chosen", "number", "tokens the model read"),
    Column("n_tokens_rejected", "Tokens, rejected", "number", "tokens the model read"),
    Column("truncated", "Truncated", "flag", "a sequence was cut to the longest length"),
)

Cells = Mapping[str, NDArray[Any]]

RANKINGS = (
    lambda cells: np.where(cells["quiet"] > 0, cells["error"], -np.inf),
    lambda cells: cells["update_bt"],
    lambda cells: -cells["distance"],
    lambda cells: cells["error"],
)
"""What makes a pair worth a place: quiet mistakes, then large updates, small distances, large errors, in turns."""

RANKING_WORDS = "quiet mistakes, largest BT updates, smallest distances and largest errors in turns, with a random draw"


def build(sources: Sequence[Source], limits: Limits) -> Section:
    """Make the section of one or more diagnoses."""
    summaries = [read_diagnosis(source.folder)[0] for source in sources]
    tables = [_table(source, summary, limits) for source, summary in zip(sources, summaries, strict=True)]
    runs = [source.label for source in sources]
    return Section(
        name="diagnosis",
        title="Who gets the gradient",
        intro=(
            "A pair's update under plain Bradley-Terry (BT) is its prediction error times the norm of its gradient. "
            "NormBT divides by the distance between the two representations, so that the update follows the error."
        ),
        runs=runs,
        headlines=[
            Headline(run if len(runs) > 1 else "", _tiles(summary), _findings(summary))
            for run, summary in zip(runs, summaries, strict=True)
        ],
        charts=_charts(runs, summaries, tables),
        tables=[_category_table(run, summary) for run, summary in zip(runs, summaries, strict=True)],
        pairs=tables,
        notes=[note for run, summary in zip(runs, summaries, strict=True) for note in _notes(run, summary)],
        origins={run: dict(summary["provenance"]) for run, summary in zip(runs, summaries, strict=True)},
    )


def _table(source: Source, summary: DiagnosisSummary, limits: Limits) -> PairTable:
    median = summary["quiet_mistakes"]["median_update_bt"]

    def quiet(cells: Cells) -> NDArray[np.float64]:
        below = np.zeros(len(cells["update_bt"]), bool) if median is None else cells["update_bt"] < median
        return ((cells["misranked"] > 0) & below).astype(float)

    return read_table(
        source.folder / PAIRS_FILE,
        run=source.label,
        columns=COLUMNS,
        derived={"quiet": quiet},
        rankings=RANKINGS,
        ranking=RANKING_WORDS,
        max_rows=limits.max_rows,
        seed=limits.seed,
    )


def _tiles(summary: DiagnosisSummary) -> list[Tile]:
    tiles = []
    shares = [decile for decile in summary["share_by_decile"] if decile["pairs"]]
    if shares and shares[-1]["share_bt"] is not None:
        tiles.append(
            Tile(
                percent(shares[-1]["share_bt"]),
                "of the BT update goes to the most distant tenth of the pairs",
                f"{percent(shares[-1]['share_normbt'])} with NormBT weights; an even share is 10 %",
            )
        )
        tiles.append(
            Tile(
                percent(shares[0]["share_bt"]),
                "goes to the closest tenth",
                f"{percent(shares[0]['share_normbt'])} with NormBT weights",
            )
        )
    pearson = summary["correlations"].get("distance", {}).get("pearson")
    if pearson and pearson["value"] is not None:
        tiles.append(
            Tile(
                f"r = {pearson['value']:.3f}",
                "correlation of distance and gradient norm",
                f"{percent(summary['confidence'], 0)} interval {_estimate(pearson)}",
            )
        )
    quiet = summary["quiet_mistakes"]
    tiles.append(
        Tile(
            f"{quiet['quiet_bt']:,} of {quiet['misranked']:,}",
            "misranked pairs are quiet: BT updates them less than the median correct pair",
            f"{quiet['quiet_normbt']:,} with NormBT weights",
        )
    )
    return tiles


def _findings(summary: DiagnosisSummary) -> list[str]:
    found = []
    backbone = summary["correlations_backbone"].get("distance")
    full = summary["correlations"].get("distance")
    if full and backbone and backbone["pearson"]["value"] is not None and full["spearman"]["value"] is not None:
        found.append(
            f"The rank correlation of distance and gradient norm is {full['spearman']['value']:.3f} "
            f"{_estimate(full['spearman'])}; without the head's own part, which is the distance itself, r is "
            f"{backbone['pearson']['value']:.3f} {_estimate(backbone['pearson'])}."
        )
    slopes = [row["slope"] for row in summary["error_bins"] if row["slope"]["value"] is not None]
    if slopes:
        growing = sum(slope["low"] is not None and slope["low"] > 0 for slope in slopes)
        found.append(
            f"At nearly equal error the gradient norm grows with the distance in {growing} of {len(slopes)} bins "
            f"(the interval of the log-log slope is above 0); the slopes run from "
            f"{min(slope['value'] or 0 for slope in slopes):.2f} to "
            f"{max(slope['value'] or 0 for slope in slopes):.2f}, where 1 is proportional."
        )
    measured = {name: group for name, group in summary["per_category"].items() if group["median_distance"] is not None}
    if len(measured) > 1:
        name = min(measured, key=lambda key: measured[key]["median_distance"] or 0)
        group = measured[name]
        found.append(
            f"The closest category is {name} (median distance {number(group['median_distance'])}): "
            f"{percent(group['pairs'] / summary['sampled_pairs'])} of the pairs, {percent(group['share_bt'])} of the "
            f"BT update, {percent(group['share_normbt'])} with NormBT weights."
        )
    if summary["effective_pairs_bt"] is not None and summary["effective_pairs_normbt"] is not None:
        found.append(
            f"In the average over all pairs, {summary['sampled_pairs']:,} unequal updates count as "
            f"{summary['effective_pairs_bt']:,.0f} equal ones under BT, and as "
            f"{summary['effective_pairs_normbt']:,.0f} with NormBT weights."
        )
    return found


def _charts(runs: Sequence[str], summaries: Sequence[DiagnosisSummary], tables: Sequence[PairTable]) -> list[Chart]:
    distances = np.concatenate([table.numbers("distance")[: table.sampled] for table in tables])
    norms = np.concatenate([table.numbers("gradient_norm")[: table.sampled] for table in tables])
    both = "log" if {scale_for(distances), scale_for(norms)} == {"log"} else None
    x = Axis("representation distance ‖h_c − h_r‖", both or scale_for(distances))
    y = Axis("gradient norm ‖∇(r_c − r_r)‖", both or scale_for(norms))
    alone = len(runs) == 1
    charts: list[Chart] = [
        Scatter(
            "gradient-norm-by-distance",
            "Gradient norm against distance",
            f"Each dot is a pair{_drawn(tables)}. Colour is the prediction error: above 0.5 the pair is misranked.",
            x,
            y,
            "distance",
            "gradient_norm",
            [
                Panel("" if alone else run, table, _correlation(s))
                for run, s, table in zip(runs, summaries, tables, strict=True)
            ],
            colour="error",
        )
    ]
    bins = [
        Panel(
            ("" if alone else f"{run}, ") + f"error {row['error_low']:.2f} to {row['error_high']:.2f}",
            table,
            f"slope {row['slope']['value']:.2f} {_estimate(row['slope'], 2)}"
            if row["slope"]["value"] is not None
            else "no slope",
            where=("error", row["error_low"], row["error_high"]),
            slope=row["slope"]["value"],
        )
        for run, summary, table in zip(runs, summaries, tables, strict=True)
        for row in summary["error_bins"]
    ]
    if bins:
        charts.append(
            Scatter(
                "gradient-norm-at-equal-error",
                "At equal error, does distance still decide?",
                "The same pairs in bins of nearly equal prediction error. The line has the log-log slope of all pairs "
                "of the bin: 1 means proportional to the distance, 0 means no effect of the distance.",
                Axis("distance", "log"),
                Axis("gradient norm", "log"),
                "distance",
                "gradient_norm",
                bins,
            )
        )
    charts.append(_share_by_decile(runs, summaries))
    if any(summary["per_category"] for summary in summaries):
        charts += _categories(runs, summaries, tables, x, y)
    return charts


def _drawn(tables: Sequence[PairTable]) -> str:
    drawn, total = sum(table.sampled for table in tables), sum(table.total for table in tables)
    return "" if drawn == total else f" ({drawn:,} of {total:,}, drawn at random)"


def _correlation(summary: DiagnosisSummary) -> str:
    found = summary["correlations"].get("distance")
    if not found or found["pearson"]["value"] is None or found["spearman"]["value"] is None:
        return ""
    return f"Pearson {found['pearson']['value']:.3f}, Spearman {found['spearman']['value']:.3f}"


def _share_by_decile(runs: Sequence[str], summaries: Sequence[DiagnosisSummary]) -> Bars:
    return Bars(
        "share-by-decile",
        "Share of the update by distance",
        "Pairs in ten equal groups by distance, and the share of the summed updates each group gets.",
        "distance decile (1: closest pairs)",
        Axis("share of the update", percent=True, low=0),
        [str(place) for place in range(1, 11)],
        [
            (
                "" if len(runs) == 1 else run,
                [
                    Series("BT", "bt", [_share(row["share_bt"]) for row in summary["share_by_decile"]]),
                    Series(
                        "NormBT weights", "normbt", [_share(row["share_normbt"]) for row in summary["share_by_decile"]]
                    ),
                ],
            )
            for run, summary in zip(runs, summaries, strict=True)
        ],
        reference=0.1,
        reference_label="even share",
        filters=[
            [
                {"run": place, "ranges": {"distance": [row["distance_low"], row["distance_high"]]}}
                if row["distance_low"] is not None
                else None
                for row in summary["share_by_decile"]
            ]
            for place, summary in enumerate(summaries)
        ],
    )


def _share(value: float | None) -> Mark | None:
    return None if value is None else Mark(value)


def _categories(
    runs: Sequence[str], summaries: Sequence[DiagnosisSummary], tables: Sequence[PairTable], x: Axis, y: Axis
) -> list[Chart]:
    counts: dict[str, int] = {}
    for summary in summaries:
        for name, group in summary["per_category"].items():
            counts[name] = counts.get(name, 0) + group["pairs"]
    kept = sorted(counts, key=lambda name: -counts[name])[:MOST_CATEGORIES]
    left_out = len(counts) - len(kept)
    first = summaries[0]["per_category"]
    kept.sort(key=lambda name: (first.get(name, {}).get("median_distance") or 0.0, name))
    also = f" The {left_out} smallest of {len(counts)} categories are only in the table." if left_out else ""
    filters = [{"choices": {"category": name}} for name in kept]
    charts: list[Chart] = []
    for name, title, column, axis in (
        ("distance-by-category", "Distance by category", "distance", x),
        ("gradient-norm-by-category", "Gradient norm by category", "gradient_norm", y),
    ):
        charts.append(
            Spans(
                name,
                title,
                f"Dot: median; thick: middle half; thin: middle nine tenths{_of(tables)}.{also}",
                axis,
                kept,
                [
                    Series(run, run_tone(place, len(runs)), [_spread(table, column, category) for category in kept])
                    for place, (run, table) in enumerate(zip(runs, tables, strict=True))
                ],
                filters,
            )
        )
    for run, summary in zip(runs, summaries, strict=True):
        groups = [summary["per_category"].get(name) for name in kept]
        charts.append(
            Spans(
                "share-by-category" if len(runs) == 1 else f"share-by-category-{run.replace('/', '-')}",
                "Share of the update by category" + ("" if len(runs) == 1 else f": {run}"),
                "Each category's share of the pairs, and of the summed updates under BT and with NormBT weights."
                + also,
                Axis("share", percent=True, low=0),
                kept,
                [
                    Series("pairs", "pairs", [_share(g and g["pairs"] / summary["sampled_pairs"]) for g in groups]),
                    Series("BT", "bt", [_share(g and g["share_bt"]) for g in groups]),
                    Series("NormBT weights", "normbt", [_share(g and g["share_normbt"]) for g in groups]),
                ],
                filters,
            )
        )
    return charts


def _of(tables: Sequence[PairTable]) -> str:
    drawn = _drawn(tables)
    return f" of the pairs{drawn}" if drawn else " of the pairs"


def _spread(table: PairTable, column: str, category: str) -> Mark | None:
    members = np.array(table.values["category"][: table.sampled] == category, dtype=bool)
    values = table.numbers(column)[: table.sampled][members]
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, inner_low, middle, inner_high, high = (float(q) for q in np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))
    return Mark(middle, low, high, inner_low, inner_high)


def _category_table(run: str, summary: DiagnosisSummary) -> Table:
    rows = [
        [
            name,
            f"{group['pairs']:,}",
            f"{group['misranked']:,}",
            number(group["mean_error"]),
            number(group["median_distance"]),
            number(group["median_gradient_norm"]),
            percent(group["pairs"] / summary["sampled_pairs"]),
            percent(group["share_bt"]),
            percent(group["share_normbt"]),
        ]
        for name, group in summary["per_category"].items()
    ]
    header = ["category", "pairs", "misranked", "mean error", "median distance", "median gradient norm"]
    return Table(f"By category: {run}", [*header, "share of pairs", "of BT update", "of NormBT update"], rows)


def _notes(run: str, summary: DiagnosisSummary) -> list[str]:
    taken = (
        f"all {summary['total_pairs']:,} pairs"
        if summary["sampled_pairs"] == summary["total_pairs"]
        else f"{summary['sampled_pairs']:,} of {summary['total_pairs']:,} pairs, drawn with seed {summary['seed']}"
    )
    method, check, fit = summary["method"], summary["self_check"], summary["proportional_fit"]
    checked = "" if check is None else f" Self-check: {check['message']}"
    return [
        f"{run}: {summary['model']} on {taken}; {summary['truncated']:,} cut to {summary['inference']['max_length']:,} "
        f"tokens, {summary['ties']:,} ties, {summary['non_finite']:,} with a number that is not finite and in no "
        f"statistic, {summary['without_category']:,} without a category. mu {number(summary['mu'], 4)}, "
        f"{summary['clipped']:,} weights at the bound of {summary['max_weight'] or MISSING}.",
        f"{run}: gradient norms over {method['parameters']:,} parameters by method {method['used']} "
        f"({method['reason']}).{checked} One constant k = {number(fit['k'], 4)} for gradient norm = k × distance "
        f"explains {percent(fit['r_squared'])} of the variance of the norms. Intervals cover "
        f"{percent(summary['confidence'], 0)} ({summary['resamples']:,} bootstrap resamples).",
    ]


def _estimate(estimate: Estimate, digits: int = 3) -> str:
    return interval(estimate["low"], estimate["high"], lambda value: f"{value:.{digits}f}")
