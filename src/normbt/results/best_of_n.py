"""The files of `normbt best-of-n`: every field with its type."""

import os
from pathlib import Path
from typing import TypedDict

from normbt.results.diagnosis import Estimate
from normbt.results.files import read_json, read_jsonl
from normbt.results.origin import Provenance
from normbt.results.scoring import RewardMoments

BEST_OF_N_FILE = "best_of_n.json"
CURVES_FILE = "curves.jsonl"
CANDIDATES_FILE = "candidates.jsonl"

ORACLE, RANDOM, LONGEST = "oracle", "random", "longest"
"""Rules of choice that are not reward models: by the gold score, by lot, by the number of characters."""


class CurvePoint(TypedDict):
    """One line of ``curves.jsonl``: what a rule gains by choosing the best of n."""

    rule: str
    n: int
    kl_bound: float
    gold: Estimate
    score: Estimate
    regret: Estimate
    gain: Estimate
    characters: Estimate


class RuleDifference(TypedDict):
    """Two rules on the same candidates of the same prompts, ``first - second``."""

    first: str
    second: str
    n: int
    gold: Estimate
    first_better: float
    second_better: float


class PoolCounts(TypedDict):
    """What became of every candidate and every prompt."""

    candidates: int
    malformed: int
    without_score: int
    prompts: int
    prompts_used: int
    prompts_with_few: int
    prompts_near_n: int
    fewest: int
    most: int


class BestOfNSummary(TypedDict):
    """The summary ``best_of_n.json``."""

    schema_version: int
    kind: str
    candidates: str
    proxies: list[str]
    gold: str | None
    sizes: list[int]
    counts: PoolCounts
    reasons: list[str]
    spread: dict[str, RewardMoments]
    ties: dict[str, float]
    agreement: dict[str, Estimate]
    differences: list[RuleDifference]
    confidence: float
    resamples: int
    provenance: Provenance


def read_best_of_n(folder: str | os.PathLike[str]) -> tuple[BestOfNSummary, list[CurvePoint]]:
    """Read the summary and the curves of one study.

    Raises:
        DataError: a file is missing or is not what its name says.
        StateError: the format is newer than this program.
    """
    summary = read_json(Path(folder) / BEST_OF_N_FILE, kind="best-of-n")
    return summary, list(read_jsonl(Path(folder) / CURVES_FILE))  # type: ignore[return-value] - the kind vouches for it
