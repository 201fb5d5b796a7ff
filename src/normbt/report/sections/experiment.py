"""Methods over seeds: the results of ``normbt experiment``."""

from collections.abc import Iterator, Sequence

from normbt.report.charts import Axis, Chart, Mark, Series, Spans, run_tone
from normbt.report.section import Limits, Section, Table, percent
from normbt.report.sources import Mark as FileMark
from normbt.report.sources import Source
from normbt.results import EXPERIMENT_FILE, ExperimentCell, ExperimentSummary, read_json

MARKS = (FileMark(EXPERIMENT_FILE, "experiment"),)


def build(sources: Sequence[Source], limits: Limits) -> Section:
    """Make the section of one or more experiments."""
    summaries: list[ExperimentSummary] = [read_json(source.file, kind="experiment") for source in sources]  # type: ignore[misc]  # of that kind
    runs = [source.label for source in sources]
    return Section(
        name="experiment",
        title="Methods over seeds",
        intro=(
            "Every method with every seed, evaluated on the same benchmarks. Whether two methods differ, the "
            "comparison says; the dots alone do not."
        ),
        runs=runs,
        charts=[chart for run, summary in zip(runs, summaries, strict=True) for chart in _charts(run, summary)],
        tables=[table for run, summary in zip(runs, summaries, strict=True) for table in _tables(run, summary)],
        notes=[note for run, summary in zip(runs, summaries, strict=True) for note in _notes(run, summary)],
        origins={run: dict(summary["provenance"]) for run, summary in zip(runs, summaries, strict=True)},
    )


def _groups(summary: ExperimentSummary) -> Iterator[tuple[str, str, dict[str, list[ExperimentCell]]]]:
    """The cells of each training set and suite, by method."""
    for training_set in summary["training_sets"]:
        by_method: dict[str, list[ExperimentCell]] = {}
        for cell in summary["cells"]:
            if cell["training_set"] == training_set:
                by_method.setdefault(cell["method"], []).append(cell)
        for suite in summary["recipe"]["suites"] if by_method else ():
            yield training_set, suite, by_method


def _charts(run: str, summary: ExperimentSummary) -> Iterator[Chart]:
    for training_set, suite, by_method in _groups(summary):
        outcomes = list(next(iter(by_method.values()))[0]["scores"][suite])
        yield Spans(
            f"scores-{run}-{training_set}-{suite}".replace("/", "-"),
            f"{suite}, trained on {training_set}",
            "Dot: mean over the seeds; line: from the lowest to the highest seed.",
            Axis("score", percent=True, low=0, high=1),
            outcomes,
            [
                Series(method, run_tone(place, len(by_method)), [_mark(cells, suite, name) for name in outcomes])
                for place, (method, cells) in enumerate(by_method.items())
            ],
        )


def _mark(cells: Sequence[ExperimentCell], suite: str, outcome: str) -> Mark:
    values = [cell["scores"][suite][outcome] for cell in cells]
    return Mark(sum(values) / len(values), min(values), max(values))


def _tables(run: str, summary: ExperimentSummary) -> Iterator[Table]:
    for training_set, suite, by_method in _groups(summary):
        outcomes = list(next(iter(by_method.values()))[0]["scores"][suite])
        yield Table(
            f"{run}: {suite}, trained on {training_set}",
            ["method", "seed", "learning rate", *outcomes],
            [
                [
                    method,
                    str(cell["seed"]),
                    "" if cell["learning_rate"] is None else f"{cell['learning_rate']:g}",
                    *(percent(cell["scores"][suite][name]) for name in outcomes),
                ]
                for method, cells in by_method.items()
                for cell in cells
            ],
        )


def _notes(run: str, summary: ExperimentSummary) -> Iterator[str]:
    for one in summary["search"]:
        listed = ", ".join(f"{rate}: {percent(accuracy)}" for rate, accuracy in one["accuracies"].items())
        lead = "" if one["p_value"] is None else f"; p = {one['p_value']:.2g} for the lead"
        yield (
            f"{run}: learning rate {one['chosen']:g} for {one['method']} on {one['training_set']}, by the accuracy on "
            f"validation pairs ({listed}{lead})."
        )
    if summary["missing"]:
        yield f"{run}: {len(summary['missing'])} runs are not done: {', '.join(summary['missing'])}."
