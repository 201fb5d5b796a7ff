"""The files of `normbt score`: every field with its type."""

from typing import Any, TypedDict

from normbt.results.evaluation import InferenceSettings
from normbt.results.origin import Provenance

NORMALISATION_FILE = "reward_normalisation.json"


class ScoringCounts(TypedDict):
    """What became of every row: ``read = scored + malformed``."""

    read: int
    scored: int
    malformed: int
    empty: int
    truncated: int
    non_finite: int
    other_split: int


class RewardMoments(TypedDict):
    """How the finite rewards of a data set are spread."""

    count: int
    mean: float | None
    std: float | None
    minimum: float | None
    maximum: float | None


class Normalisation(TypedDict):
    """One entry of ``reward_normalisation.json``: ``(reward - mean) / std`` has mean 0 and deviation 1 on its data."""

    mean: float
    std: float
    count: int
    data: str
    data_sha256: str | None
    weights: str
    created: str


class NormalisationFile(TypedDict):
    """``reward_normalisation.json`` beside a model: an entry for each data set, by name."""

    schema_version: int
    kind: str
    datasets: dict[str, Normalisation]


class ScoringSummary(TypedDict):
    """The summary beside a file of rewards."""

    schema_version: int
    kind: str
    model: str
    output: str
    output_sha256: str
    column: str
    form: str
    counts: ScoringCounts
    reasons: list[dict[str, Any]]
    rewards: RewardMoments
    normalisation: Normalisation | None
    inference: InferenceSettings
    run: dict[str, Any]
    provenance: Provenance
