"""The files of an evaluation: every field with its type."""

import os
from pathlib import Path
from typing import TypedDict

from normbt.results.files import check_digest, read_json, read_jsonl
from normbt.results.origin import Provenance

PAIRS_FILE = "pairs.jsonl"
SUMMARY_FILE = "summary.json"
LEADERBOARD_FILE = "leaderboard.json"


class EvaluationPair(TypedDict):
    """One line of an evaluation's ``pairs.jsonl``."""

    id: str
    source: str | None
    category: str | None
    subset: str | None
    cluster_id: str
    score_chosen: float | None
    score_rejected: float | None
    correct: bool
    tie: bool
    distance: float | None
    n_tokens_chosen: int
    n_tokens_rejected: int
    truncated: bool
    n_characters_chosen: int
    n_characters_rejected: int


class Score(TypedDict):
    """An accuracy (or a weighted mean of accuracies) over a group of pairs, with its intervals and counts."""

    value: float
    low: float
    high: float
    wilson_low: float | None
    wilson_high: float | None
    length_only: float
    pairs: int
    clusters: int
    correct: int
    ties: int
    non_finite: int
    truncated: int


class Coverage(TypedDict):
    """How much of the official benchmark the data held."""

    missing_subsets: list[str]
    incomplete_subsets: dict[str, list[int]]


class InferenceSettings(TypedDict):
    """What decides the exact value of a score, apart from the weights."""

    dtype: str
    device: str
    attention: str | None
    max_length: int
    batch_tokens: int
    batching: str
    template: str
    untrained_head: bool


class EvaluationSummary(TypedDict):
    """An evaluation's ``summary.json``."""

    schema_version: int
    kind: str
    model: str
    suite: str
    tie_policy: str
    headline: str
    score: Score
    accuracy: Score
    sections: dict[str, Score]
    categories: dict[str, Score]
    subsets: dict[str, Score]
    sources: dict[str, Score]
    coverage: Coverage | None
    confidence: float
    resamples: int
    inference: InferenceSettings
    pairs_sha256: str
    provenance: Provenance


class LeaderboardMetadata(TypedDict):
    """The fields of ``leaderboard.json`` that are not subsets; every other key is a subset with its accuracy."""

    model: str
    model_type: str


def read_evaluation(folder: str | os.PathLike[str]) -> tuple[EvaluationSummary, list[EvaluationPair]]:
    """Read the summary and the pairs of one evaluation, and check that they belong together.

    Raises:
        DataError: a file is missing or is not what its name says.
        StateError: the pairs are not those the summary was made from, or the format is newer than this program.
    """
    folder = Path(folder)
    summary = read_json(folder / SUMMARY_FILE, kind="evaluation")
    check_digest(folder / PAIRS_FILE, summary["pairs_sha256"], described_by=folder / SUMMARY_FILE, again="Evaluate")
    return summary, list(read_jsonl(folder / PAIRS_FILE))  # type: ignore[return-value]  # the digest vouches for it
