"""The files of an experiment: every field with its type."""

from typing import Any, TypedDict

from normbt.results.origin import Provenance

EXPERIMENT_FILE = "experiment.json"
CELL_FILE = "cell.json"


class TrainingSetRecord(TypedDict):
    """``set.json`` of a training set: which pairs its files hold."""

    schema_version: int
    kind: str
    settings: dict[str, Any]
    source: dict[str, Any]
    pairs: dict[str, int]
    left_out: int


class CellRecord(TypedDict):
    """``cell.json`` of one trained model; where it is, the training is complete."""

    schema_version: int
    kind: str
    training_set: str
    method: str
    learning_rate: float | None
    seed: int
    settings: dict[str, Any]
    seconds: float
    provenance: Provenance


class RateSearch(TypedDict):
    """How the learning rate of one method was chosen: by the mean accuracy of the search seeds on validation pairs."""

    training_set: str
    method: str
    accuracies: dict[str, float]
    chosen: float
    p_value: float | None


class ExperimentCell(TypedDict):
    """One compared model and its scores: of each suite the headline and, where it has them, its sections."""

    training_set: str
    method: str
    learning_rate: float | None
    seed: int
    folder: str
    seconds: float
    scores: dict[str, dict[str, float]]


class ExperimentComparison(TypedDict):
    """The methods compared on one suite; ``comparison.json`` in ``folder`` has all of it."""

    training_set: str
    suite: str
    folder: str
    seeds: list[int]
    findings: list[str]


class ExperimentSummary(TypedDict):
    """An experiment's ``experiment.json``."""

    schema_version: int
    kind: str
    name: str
    recipe: dict[str, Any]
    training_sets: dict[str, TrainingSetRecord]
    search: list[RateSearch]
    cells: list[ExperimentCell]
    missing: list[str]
    comparisons: list[ExperimentComparison]
    diagnoses: list[str]
    provenance: Provenance
