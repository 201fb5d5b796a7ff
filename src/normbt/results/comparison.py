"""The file of a comparison: every field with its type."""

from typing import TypedDict

from normbt.results.origin import Provenance

COMPARISON_FILE = "comparison.json"
COMPARISON_MARKDOWN = "comparison.md"
COMPARISON_LATEX = "comparison.tex"


class ComparedRun(TypedDict):
    """One evaluation that went into a comparison."""

    folder: str
    model: str
    training_seed: int | None
    records_sha256: str
    score: float
    ties: int
    non_finite: int
    truncated: int


class ComparedMethod(TypedDict):
    """One side of a comparison: a model, or a method trained with several seeds."""

    name: str
    score: float
    runs: list[ComparedRun]


class ScoreDifference(TypedDict):
    """The difference of two methods in one score, method minus baseline."""

    baseline: str
    method: str
    outcome: str
    kind: str
    family: str
    baseline_score: float
    method_score: float
    difference: float
    low: float
    high: float
    standard_error: float
    degrees: float
    p_value: float
    p_holm: float
    verdict: str
    decisions: int
    clusters: int
    discordance: float
    only_baseline: int | None
    only_method: int | None
    mcnemar_p: float | None
    detectable: float | None


class SeedDifference(TypedDict):
    """The difference of two runs with one seed in one score."""

    baseline: str
    method: str
    outcome: str
    seed: int | None
    baseline_score: float
    method_score: float
    difference: float
    only_baseline: int
    only_method: int
    mcnemar_p: float


class SeedTest(TypedDict):
    """The paired t-test over the seeds in one score."""

    baseline: str
    method: str
    outcome: str
    seeds: int
    difference: float
    standard_error: float
    low: float | None
    high: float | None
    p_value: float | None


class Comparison(TypedDict):
    """A comparison's ``comparison.json``."""

    schema_version: int
    kind: str
    suite: str
    headline: str
    tie_policy: str
    data_digest: str | None
    records: int
    clusters: int
    level: str
    alpha: float
    confidence: float
    power: float
    resamples: int
    primary: list[str]
    methods: list[ComparedMethod]
    differences: list[ScoreDifference]
    seed_differences: list[SeedDifference]
    seed_tests: list[SeedTest]
    findings: list[str]
    notes: list[str]
    provenance: Provenance
