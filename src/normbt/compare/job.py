"""The job: read evaluations, compare them, write the comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from normbt.compare.differences import Measured, Settings
from normbt.compare.findings import describe
from normbt.compare.runs import Run, Runs, read_runs
from normbt.compare.tables import latex, markdown
from normbt.errors import ConfigError
from normbt.results import (
    COMPARISON_FILE,
    COMPARISON_LATEX,
    COMPARISON_MARKDOWN,
    SCHEMA_VERSION,
    ComparedMethod,
    ComparedRun,
    Comparison,
    provenance,
    write_json,
    write_lines,
)
from normbt.suites.outcomes import BREAKDOWNS


def compare(
    methods: Mapping[str, Sequence[str | Path]],
    *,
    baseline: str | None = None,
    primary: Sequence[str] = (),
    by: Sequence[str] = (),
    alpha: float = 0.05,
    confidence: float = 0.95,
    power: float = 0.8,
    resamples: int = 10_000,
    seed: int = 0,
    output_dir: str | Path | None = None,
) -> Comparison:
    """Compare models, or methods with several seeds, on the same pairs. No model is needed.

    Args:
        methods: folders of ``normbt evaluate`` for each method, one for each seed; at least two methods with the same
            number of folders.
        baseline: the method that the others are compared with; None for the first.
        primary: names of the outcomes that the comparison is about, adjusted among themselves; ``"score"`` stands for
            the headline. Empty for the headline and what the suite names (Reasoning, for RewardBench).
        by: kinds of further outcomes: ``"subsets"``, ``"categories"``, ``"sources"``.
        alpha: level of the tests, in ``(0, 1)``.
        confidence: coverage of the intervals, in ``(0, 1)``.
        power: probability at which the detectable difference is found, in ``(0, 1)``.
        resamples: number of bootstrap resamples and of sign flips.
        seed: of both.
        output_dir: where to write ``comparison.json``, ``comparison.md`` and ``comparison.tex``; None for nowhere.

    Returns:
        The comparison, as written.

    Raises:
        ConfigError: a setting is out of range, an outcome or method is unknown, or the seeds do not fit.
        DataError: a folder holds no evaluation, or the evaluations cannot be compared; the message says why.
        StateError: an evaluation was changed after it was written.
    """
    settings = _settings(methods, baseline, primary, by, alpha, confidence, power, resamples, seed)
    runs = read_runs(methods)
    measured = Measured(runs, settings)
    differences = measured.differences()
    headline = measured.outcomes[0]
    scores = iter(measured.scores(headline).tolist())
    first = next(iter(runs.methods.values()))[0]
    comparison = Comparison(
        schema_version=SCHEMA_VERSION,
        kind="comparison",
        suite=first.summary["suite"],
        headline=headline.name,
        tie_policy=first.summary["tie_policy"],
        data_digest=first.digest,
        records=len(first.records),
        clusters=len({record["cluster_id"] for record in first.records}),
        level="models" if runs.seeds == 1 else "methods",
        alpha=alpha,
        confidence=confidence,
        power=power,
        resamples=resamples,
        primary=measured.primary,
        methods=[_method(name, [_run(run, next(scores)) for run in members]) for name, members in runs.methods.items()],
        differences=differences,
        seed_differences=measured.seed_differences(),
        seed_tests=measured.seed_tests(),
        findings=describe(differences, seeds=runs.seeds, alpha=alpha, confidence=confidence, power=power),
        notes=runs.notes,
        provenance=_provenance(runs, settings),
    )
    if output_dir is not None:
        folder = Path(output_dir)
        write_lines(folder / COMPARISON_MARKDOWN, [markdown(comparison)])
        write_lines(folder / COMPARISON_LATEX, [latex(comparison)])
        write_json(folder / COMPARISON_FILE, comparison)
    return comparison


def _settings(
    methods: Mapping[str, Sequence[str | Path]],
    baseline: str | None,
    primary: Sequence[str],
    by: Sequence[str],
    alpha: float,
    confidence: float,
    power: float,
    resamples: int,
    seed: int,
) -> Settings:
    problems = []
    if len(methods) < 2:
        problems.append(f"a comparison needs at least two methods, found {', '.join(methods) or 'none'}")
    if baseline is not None and baseline not in methods:
        problems.append(f"baseline must be one of {', '.join(methods)}, found '{baseline}'")
    for name, value in (("alpha", alpha), ("confidence", confidence), ("power", power)):
        if not 0 < value < 1:
            problems.append(f"{name} must be between 0 and 1, found {value}")
    if resamples < 1:
        problems.append(f"resamples must be at least 1, found {resamples}")
    problems += [f"by must be one of {', '.join(BREAKDOWNS)}, found '{kind}'" for kind in by if kind not in BREAKDOWNS]
    if problems:
        text = "; ".join(problems)
        raise ConfigError(f"{text[:1].upper()}{text[1:]}.")
    return Settings(
        baseline=baseline or next(iter(methods)),
        primary=tuple(primary),
        by=tuple(by),
        alpha=alpha,
        confidence=confidence,
        power=power,
        resamples=resamples,
        seed=seed,
    )


def _run(run: Run, score: float) -> ComparedRun:
    counts = run.summary["score"]
    return ComparedRun(
        folder=str(run.folder),
        model=run.summary["model"],
        training_seed=run.seed,
        records_sha256=run.summary["pairs_sha256"],
        score=score,
        ties=counts["ties"],
        non_finite=counts["non_finite"],
        truncated=counts["truncated"],
    )


def _method(name: str, runs: list[ComparedRun]) -> ComparedMethod:
    return ComparedMethod(name=name, score=sum(run["score"] for run in runs) / len(runs), runs=runs)


def _provenance(runs: Runs, settings: Settings):
    folders = {name: [str(run.folder) for run in members] for name, members in runs.methods.items()}
    first = next(iter(runs.methods.values()))[0]
    config = {"methods": folders, **vars(settings)}
    return provenance(config=config, seed=settings.seed, data=first.summary["provenance"]["data"])
