"""The files a job writes: every field with its type, and the only functions that write and read them.

``docs/results-format.md`` describes every field declared here, and a test compares the two.
"""

from normbt.results.diagnosis import (
    CategoryDiagnosis,
    Correlation,
    DecileShare,
    DiagnosisPair,
    DiagnosisSummary,
    ErrorBin,
    Estimate,
    GradientMethod,
    ProductForm,
    ProportionalFit,
    QuietMistakes,
    SelfCheck,
    read_diagnosis,
)
from normbt.results.evaluation import (
    LEADERBOARD_FILE,
    PAIRS_FILE,
    SUMMARY_FILE,
    Coverage,
    EvaluationPair,
    EvaluationSummary,
    InferenceSettings,
    LeaderboardMetadata,
    Score,
    read_evaluation,
)
from normbt.results.files import SCHEMA_VERSION, Written, read_json, read_jsonl, write_json, write_jsonl, write_lines
from normbt.results.origin import RECORDED_PACKAGES, Provenance, provenance
from normbt.results.parts import Parts, require_same_run
from normbt.results.scoring import (
    NORMALISATION_FILE,
    Normalisation,
    NormalisationFile,
    RewardMoments,
    ScoringCounts,
    ScoringSummary,
)

__all__ = [
    "LEADERBOARD_FILE",
    "NORMALISATION_FILE",
    "PAIRS_FILE",
    "RECORDED_PACKAGES",
    "SCHEMA_VERSION",
    "SUMMARY_FILE",
    "CategoryDiagnosis",
    "Correlation",
    "Coverage",
    "DecileShare",
    "DiagnosisPair",
    "DiagnosisSummary",
    "ErrorBin",
    "Estimate",
    "EvaluationPair",
    "EvaluationSummary",
    "GradientMethod",
    "InferenceSettings",
    "LeaderboardMetadata",
    "Normalisation",
    "NormalisationFile",
    "Parts",
    "ProductForm",
    "ProportionalFit",
    "Provenance",
    "QuietMistakes",
    "RewardMoments",
    "Score",
    "ScoringCounts",
    "ScoringSummary",
    "SelfCheck",
    "Written",
    "provenance",
    "read_diagnosis",
    "read_evaluation",
    "read_json",
    "read_jsonl",
    "require_same_run",
    "write_json",
    "write_jsonl",
    "write_lines",
]
