"""Which differences could be shown: the results of ``normbt compare``."""

from collections.abc import Sequence

from normbt.report.charts import Axis, Chart, Mark, Series, Spans, run_tone
from normbt.report.section import MISSING, Headline, Limits, Section, Table, percent
from normbt.report.sources import Mark as FileMark
from normbt.report.sources import Source
from normbt.results import COMPARISON_FILE, Comparison, ScoreDifference, read_json

MARKS = (FileMark(COMPARISON_FILE, "comparison"),)


def build(sources: Sequence[Source], limits: Limits) -> Section:
    """Make the section of one or more comparisons."""
    records: list[Comparison] = [read_json(source.file, kind="comparison") for source in sources]  # type: ignore[misc]  # of that kind
    runs = [source.label for source in sources]
    several = len(runs) > 1
    return Section(
        name="comparison",
        title="Which differences could be shown",
        intro=(
            "Methods on the same pairs, each against the baseline. An interval across zero shows no difference; that "
            "is not the same as no difference."
        ),
        runs=runs,
        headlines=[
            Headline(run if several else "", findings=record["findings"])
            for run, record in zip(runs, records, strict=True)
        ],
        charts=[_chart(run, record, several) for run, record in zip(runs, records, strict=True)],
        tables=[_table(run, record) for run, record in zip(runs, records, strict=True)],
        notes=[f"{run}: {note}" for run, record in zip(runs, records, strict=True) for note in record["notes"]],
        origins={run: dict(record["provenance"]) for run, record in zip(runs, records, strict=True)},
    )


def _chart(run: str, record: Comparison, several: bool) -> Chart:
    baseline = record["differences"][0]["baseline"]
    rows = [row for row in record["differences"] if row["baseline"] == baseline]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    outcomes = list(dict.fromkeys(row["outcome"] for row in rows))
    found = {(row["method"], row["outcome"]): row for row in rows}
    return Spans(
        f"differences-{run.replace('/', '-')}" if several else "differences",
        f"Against {baseline}{f': {run}' if several else ''}",
        f"Dot: difference of the scores; line: its paired {percent(record['confidence'], 0)} interval, over the pairs"
        f"{'' if record['level'] == 'models' else ' and seeds'} the methods share.",
        Axis("difference in score", percent=True),
        outcomes,
        [
            Series(method, run_tone(place, len(methods)), [_mark(found.get((method, one))) for one in outcomes])
            for place, method in enumerate(methods)
        ],
        reference=0.0,
        reference_label="no difference",
    )


def _mark(row: ScoreDifference | None) -> Mark | None:
    return None if row is None else Mark(row["difference"], row["low"], row["high"])


def _table(run: str, record: Comparison) -> Table:
    return Table(
        f"Differences: {run}",
        [
            "method less baseline",
            "outcome",
            "baseline",
            "method",
            "points",
            "p",
            "p (Holm)",
            "could have seen",
            "verdict",
        ],
        [
            [
                f"{row['method']} − {row['baseline']}",
                row["outcome"],
                percent(row["baseline_score"]),
                percent(row["method_score"]),
                f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]",
                _p(row["p_value"]),
                _p(row["p_holm"]),
                MISSING if row["detectable"] is None else f"{100 * row['detectable']:.1f}",
                row["verdict"],
            ]
            for row in record["differences"]
        ],
    )


def _p(value: float | None) -> str:
    return MISSING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
