"""The files of an evaluation: every field with its type."""

import os
from pathlib import Path
from typing import Any, TypedDict, cast

from normbt.errors import DataError
from normbt.results.files import check_digest, read_json, read_jsonl
from normbt.results.origin import Provenance

PAIRS_FILE = "pairs.jsonl"
PROMPTS_FILE = "prompts.jsonl"
DETERMINISM_FILE = "determinism.jsonl"
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


class EvaluationPrompt(TypedDict):
    """One line of an evaluation's ``prompts.jsonl``: a prompt with several right or wrong answers."""

    id: str
    source: str | None
    category: str | None
    subset: str | None
    cluster_id: str
    scores_chosen: list[float | None]
    scores_rejected: list[float | None]
    credit: float
    tie: bool
    n_tokens_chosen: list[int]
    n_tokens_rejected: list[int]
    truncated_chosen: list[bool]
    truncated_rejected: list[bool]
    n_characters_chosen: list[int]
    n_characters_rejected: list[int]


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


class RescoredAnswer(TypedDict):
    """One line of ``determinism.jsonl``: an answer scored in its batch and alone."""

    id: str
    answer: str
    score: float | None
    score_alone: float | None


class Determinism(TypedDict):
    """What scoring a sample of the answers again, one sequence at a time, changed."""

    records: int
    answers: int
    largest_difference: float
    mean_difference: float
    comparisons: int
    order_flips: int
    non_finite_changed: int


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
    details: dict[str, Score]
    categories: dict[str, Score]
    subsets: dict[str, Score]
    sources: dict[str, Score]
    coverage: Coverage | None
    confidence: float
    resamples: int
    inference: InferenceSettings
    determinism: Determinism | None
    training_seed: int | None
    records_file: str
    pairs_sha256: str
    provenance: Provenance


class LeaderboardMetadata(TypedDict):
    """The fields of ``leaderboard.json`` that are not subsets; every other key is a subset with its accuracy."""

    model: str
    model_type: str
    chat_template: str


def read_evaluation(folder: str | os.PathLike[str]) -> tuple[EvaluationSummary, list[EvaluationPair]]:
    """Read the summary and the pairs of one evaluation, and check that they belong together.

    Raises:
        DataError: a file is missing or is not what its name says, or the suite gives each prompt several answers.
        StateError: the pairs are not those the summary was made from, or the format is newer than this program.
    """
    summary, records = read_records(folder)
    if summary.get("records_file", PAIRS_FILE) != PAIRS_FILE:
        raise DataError(f"{folder} holds {PROMPTS_FILE}, prompts with several answers, where pairs are wanted.")
    return summary, cast("list[EvaluationPair]", records)


def read_records(
    folder: str | os.PathLike[str],
) -> tuple[EvaluationSummary, list[EvaluationPair] | list[EvaluationPrompt]]:
    """Read the summary and the records of one evaluation of any suite, and check that they belong together.

    Raises:
        DataError: a file is missing or is not what its name says.
        StateError: the records are not those the summary was made from, or the format is newer than this program.
    """
    folder = Path(folder)
    summary: Any = read_json(folder / SUMMARY_FILE, kind="evaluation")
    path = folder / summary.get("records_file", PAIRS_FILE)  # summaries of 0.1.0 do not name it
    check_digest(path, summary["pairs_sha256"], described_by=folder / SUMMARY_FILE, again="Evaluate")
    records: Any = list(read_jsonl(path))  # the digest vouches for the shape
    return summary, records
