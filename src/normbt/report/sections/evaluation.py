"""How well the pairs are ranked: the results of ``normbt evaluate``."""

from collections.abc import Sequence

from normbt.bias import prediction_error
from normbt.report.charts import Axis, Chart, Mark, Series, Spans, run_tone
from normbt.report.explorer import Column, PairTable, read_table
from normbt.report.section import Headline, Limits, Section, Table, Tile, interval, percent
from normbt.report.sources import Mark as FileMark
from normbt.report.sources import Source
from normbt.results import PAIRS_FILE, SUMMARY_FILE, EvaluationSummary, Score, read_json

PAIRED_SUITES = ("rewardbench", "judgebench", "pairs")
"""Suites of two answers each, where guessing ranks one half right."""

MARKS = (FileMark(SUMMARY_FILE, "evaluation"),)

COLUMNS = (
    Column("category", "Category", "choice", "the data's category", shown=True, filter=True),
    Column("subset", "Subset", "choice", "the data's subset", shown=True, filter=True),
    Column("misranked", "Misranked", "flag", "not counted as right", shown=True),
    Column("tie", "Tie", "flag", "both scores are equal"),
    Column("error", "Error", "number", "prediction error 1 − σ(d), 0 right to 1 wrong", shown=True, filter=True),
    Column("distance", "Distance", "number", "‖h_c − h_r‖, the difference the head sees", shown=True, filter=True),
    Column("score_chosen", "Score, chosen", "number", "score of the preferred answer", shown=True),
    Column("score_rejected", "Score, rejected", "number", "score of the other answer", shown=True),
    Column("n_tokens_chosen", "Tokens, chosen", "number", "tokens the model read"),
    Column("n_tokens_rejected", "Tokens, rejected", "number", "tokens the model read"),
    Column("correct", "Correct", "flag", "both scores are finite and the preferred one is higher"),
    Column("truncated", "Truncated", "flag", "a sequence was cut to the longest length"),
)


def build(sources: Sequence[Source], limits: Limits) -> Section:
    """Make the section of one or more evaluations."""
    summaries: list[EvaluationSummary] = [read_json(source.file, kind="evaluation") for source in sources]  # type: ignore[misc]  # of that kind
    runs = [source.label for source in sources]
    suites = list(dict.fromkeys(summary["suite"] for summary in summaries))
    return Section(
        name="evaluation",
        title="How well the pairs are ranked",
        intro=(
            "Scores with their intervals, by each benchmark's own rules. The intervals come from the choice of pairs; "
            "another training seed moves a score as well."
        ),
        runs=runs,
        headlines=[Headline("", [_tile(run, summary) for run, summary in zip(runs, summaries, strict=True)])],
        charts=[_chart(suite, runs, summaries, len(suites) > 1) for suite in suites],
        tables=[_score_table(run, summary) for run, summary in zip(runs, summaries, strict=True)],
        pairs=[
            _table(source, limits)
            for source, summary in zip(sources, summaries, strict=True)
            if summary["records_file"] == PAIRS_FILE
        ],
        notes=[_note(run, summary) for run, summary in zip(runs, summaries, strict=True)],
        origins={run: dict(summary["provenance"]) for run, summary in zip(runs, summaries, strict=True)},
    )


def _table(source: Source, limits: Limits) -> PairTable:
    return read_table(
        source.folder / PAIRS_FILE,
        run=source.label,
        columns=COLUMNS,
        derived={
            "misranked": lambda cells: 1 - cells["correct"],
            "error": lambda cells: prediction_error(cells["score_chosen"] - cells["score_rejected"]),
        },
        rankings=(lambda cells: cells["error"],),
        ranking="largest errors, in turns with a random draw",
        max_rows=limits.max_rows,
        seed=limits.seed,
    )


def _parts(summary: EvaluationSummary) -> dict[str, Score]:
    """The scores worth a row each: sections where the suite has them, otherwise categories."""
    return {**(summary["sections"] or summary["categories"]), summary["headline"]: summary["score"]}


def _tile(run: str, summary: EvaluationSummary) -> Tile:
    score = summary["score"]
    return Tile(
        percent(score["value"]),
        f"{run}: {summary['headline']}, {summary['suite']}",
        f"{percent(summary['confidence'], 0)} interval {_interval(score)}; always the longer answer: "
        f"{percent(score['length_only'])}",
    )


def _interval(score: Score) -> str:
    return interval(score["low"], score["high"], lambda value: f"{100 * value:.1f}")


def _chart(suite: str, runs: Sequence[str], summaries: Sequence[EvaluationSummary], several: bool) -> Chart:
    shown = [(place, summary) for place, summary in enumerate(summaries) if summary["suite"] == suite]
    groups = list(dict.fromkeys(name for _, summary in shown for name in _parts(summary)))
    series = [
        Series(runs[place], run_tone(place, len(runs)), [_mark(_parts(summary).get(name)) for name in groups])
        for place, summary in shown
    ]
    first = _parts(shown[0][1])
    series.append(
        Series(
            "longer answer wins",
            "pairs",
            [Mark(first[name]["length_only"]) if name in first else None for name in groups],
        )
    )
    return Spans(
        f"scores-{suite}" if several else "scores",
        f"Scores, {suite}",
        f"Dot: score; line: {percent(shown[0][1]['confidence'], 0)} interval. The hollow dot is the score of a rule "
        "that always prefers the longer answer.",
        Axis("pairs ranked right", percent=True, low=0, high=1),
        groups,
        series,
        reference=0.5 if suite in PAIRED_SUITES else None,
        reference_label="chance",
    )


def _mark(score: Score | None) -> Mark | None:
    return None if score is None else Mark(score["value"], score["low"], score["high"])


def _score_table(run: str, summary: EvaluationSummary) -> Table:
    scores: dict[str, Score] = {**_parts(summary), **summary["details"]}
    if summary["accuracy"] != summary["score"]:
        scores["accuracy over all pairs"] = summary["accuracy"]
    return Table(
        f"Scores: {run}, {summary['suite']}",
        ["", "score", "interval", "longer answer", "decisions", "ties", "not finite", "truncated"],
        [
            [
                name,
                percent(score["value"]),
                _interval(score),
                percent(score["length_only"]),
                *(f"{score[count]:,}" for count in ("pairs", "ties", "non_finite", "truncated")),
            ]
            for name, score in scores.items()
        ],
    )


def _note(run: str, summary: EvaluationSummary) -> str:
    inference, accuracy = summary["inference"], summary["accuracy"]
    missing = summary["coverage"] and summary["coverage"]["missing_subsets"]
    gaps = f" Missing subsets: {', '.join(missing)}." if missing else ""
    return (
        f"{run}: {summary['model']} on {accuracy['pairs']:,} decisions of {summary['suite']}; "
        f"{accuracy['truncated']:,} cut to {inference['max_length']:,} tokens. {inference['dtype']} on "
        f"{inference['device']}, template {inference['template']}. Intervals: bootstrap of {accuracy['clusters']:,} "
        f"clusters of pairs ({summary['resamples']:,} resamples). Ties: {accuracy['ties']:,}, policy "
        f"'{summary['tie_policy']}'; {accuracy['non_finite']:,} scores not finite.{gaps}"
    )
