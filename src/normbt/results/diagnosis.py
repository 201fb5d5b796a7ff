"""The files of a diagnosis: every field with its type."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from normbt.results.evaluation import PAIRS_FILE, SUMMARY_FILE, InferenceSettings
from normbt.results.files import check_digest, read_json, read_jsonl
from normbt.results.origin import Provenance


class DiagnosisPair(TypedDict):
    """One line of a diagnosis's ``pairs.jsonl``."""

    id: str
    source: str | None
    category: str | None
    subset: str | None
    cluster_id: str
    prompt: str | None
    chosen: str
    rejected: str
    reward_chosen: float | None
    reward_rejected: float | None
    margin_reward: float | None
    error: float | None
    misranked: bool
    tie: bool
    distance: float | None
    distance_relative: float | None
    distance_cosine: float | None
    weight: float | None
    gradient_norm: float | None
    gradient_norm_head: float | None
    gradient_norm_backbone: float | None
    update_bt: float | None
    update_normbt: float | None
    n_tokens_chosen: int
    n_tokens_rejected: int
    similarity: float
    truncated: bool


class SelfCheck(TypedDict):
    """The comparison of fast norms with one backward pass per pair, on the first pairs of a run."""

    pairs: int
    max_relative_error: float | None
    tolerance: float | None
    passed: bool
    message: str


class GradientMethod(TypedDict):
    """How the gradient norms were computed."""

    asked: str
    used: str
    reason: str
    pairs_ghost: int
    pairs_exact: int
    batch_tokens: int
    parameters: int


class Estimate(TypedDict):
    """A statistic with its bootstrap interval; null where it does not exist."""

    value: float | None
    low: float | None
    high: float | None


class Correlation(TypedDict):
    """How closely one kind of distance goes with the gradient norm."""

    pearson: Estimate
    spearman: Estimate


class ErrorBin(TypedDict):
    """Pairs of nearly equal prediction error: how the gradient norm grows with the distance among them."""

    error_low: float
    error_high: float
    pairs: int
    slope: Estimate


class DecileShare(TypedDict):
    """A tenth of the pairs, by distance, and its share of the update."""

    distance_low: float | None
    distance_high: float | None
    pairs: int
    share_bt: float | None
    share_normbt: float | None


class CategoryDiagnosis(TypedDict):
    """The pairs of one category."""

    pairs: int
    median_distance: float | None
    median_gradient_norm: float | None
    mean_error: float | None
    share_bt: float | None
    share_normbt: float | None
    misranked: int


class QuietMistakes(TypedDict):
    """Misranked pairs that are trained on less than the median of the correctly ranked ones."""

    misranked: int
    quiet_bt: int
    quiet_normbt: int
    median_update_bt: float | None
    median_update_normbt: float | None


class ProportionalFit(TypedDict):
    """The constant k of ``gradient_norm = k * distance``, and how well one constant does."""

    k: float | None
    r_squared: float | None
    ratio_p05: float | None
    ratio_p50: float | None
    ratio_p95: float | None


class ProductForm(TypedDict):
    """The identity "norm of the head's gradient = distance", as it came out."""

    pairs: int
    max_relative_deviation: float | None


class DiagnosisSummary(TypedDict):
    """A diagnosis's ``summary.json``."""

    schema_version: int
    kind: str
    model: str
    total_pairs: int
    sampled_pairs: int
    seed: int | None
    mu: float | None
    eps: float
    max_weight: float | None
    clipped: int
    misranked: int
    ties: int
    non_finite: int
    truncated: int
    method: GradientMethod
    self_check: SelfCheck | None
    correlations: dict[str, Correlation]
    correlations_backbone: dict[str, Correlation]
    error_bins: list[ErrorBin]
    share_by_decile: list[DecileShare]
    per_category: dict[str, CategoryDiagnosis]
    without_category: int
    quiet_mistakes: QuietMistakes
    effective_pairs_bt: float | None
    effective_pairs_normbt: float | None
    proportional_fit: ProportionalFit
    product_form: ProductForm
    confidence: float
    resamples: int
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    inference: InferenceSettings
    pairs_sha256: str
    provenance: Provenance


def read_diagnosis(folder: str | os.PathLike[str]) -> tuple[DiagnosisSummary, Iterator[DiagnosisPair]]:
    """Read the summary of one diagnosis, check that its pairs belong to it, and give the pairs one by one.

    The pairs carry their texts, so a large diagnosis may not fit the memory: they are read as they are asked for.

    Args:
        folder: what ``normbt diagnose`` wrote.

    Returns:
        The summary, and an iterator over the pairs.

    Raises:
        DataError: a file is missing or is not what its name says.
        StateError: the pairs are not those the summary was made from, or the format is newer than this program.
    """
    folder = Path(folder)
    summary = read_json(folder / SUMMARY_FILE, kind="diagnosis")
    check_digest(folder / PAIRS_FILE, summary["pairs_sha256"], described_by=folder / SUMMARY_FILE, again="Diagnose")
    pairs = read_jsonl(folder / PAIRS_FILE)
    return summary, pairs  # type: ignore[return-value]  # the digest vouches for the shape
