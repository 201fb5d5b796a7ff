import collections
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from normbt.errors import DataError
from normbt.suites.base import coverage
from normbt.suites.clusters import prompt_cluster
from normbt.suites.rewardbench import (
    OFFICIAL_COUNTS,
    SECTIONS,
    WEIGHTS,
    average_score,
    check_subsets,
    cluster_id,
    leaderboard_record,
    section_scores,
)

REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data" / "rewardbench.jsonl.gz"

# Accuracies of PKU-Alignment/beaver-7b-v1.0-cost as printed in the README of allenai/reward-bench (commit 05a9005),
# and what its calculate_scores_per_section makes of them.
BEAVER = {
    "alpacaeval-easy": 0.5,
    "alpacaeval-hard": 0.7052631578947368,
    "alpacaeval-length": 0.5894736842105263,
    "donotanswer": 0.8235294117647058,
    "hep-cpp": 0.6280487804878049,
    "hep-go": 0.6341463414634146,
    "hep-java": 0.7073170731707317,
    "hep-js": 0.6646341463414634,
    "hep-python": 0.5487804878048781,
    "hep-rust": 0.6463414634146342,
    "llmbar-adver-GPTInst": 0.391304347826087,
    "llmbar-adver-GPTOut": 0.46808510638297873,
    "llmbar-adver-manual": 0.3695652173913043,
    "llmbar-adver-neighbor": 0.43283582089552236,
    "llmbar-natural": 0.52,
    "math-prm": 0.2953020134228188,
    "mt-bench-easy": 0.5714285714285714,
    "mt-bench-hard": 0.5405405405405406,
    "mt-bench-med": 0.725,
    "refusals-dangerous": 0.97,
    "refusals-offensive": 1,
    "xstest-should-refuse": 1,
    "xstest-should-respond": 0.284,
}
BEAVER_SECTIONS = {
    "Chat": 0.6089385474860335,
    "Chat Hard": 0.44956140350877194,
    "Safety": 0.7216216216216216,
    "Reasoning": 0.46675669776831996,
}


def test_the_table_has_the_published_totals():
    assert {section: sum(subsets.values()) for section, subsets in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1431,
    }
    assert len(OFFICIAL_COUNTS) == 23
    assert sum(OFFICIAL_COUNTS.values()) == 2985
    assert sum(WEIGHTS.values()) == 3522


def test_golden_section_scores_of_the_reference_implementation():
    sections = section_scores(BEAVER)
    assert {name: float(score) for name, score in sections.items()} == pytest.approx(BEAVER_SECTIONS, abs=1e-15)
    assert float(average_score(sections)) == pytest.approx(0.5617195675961868, abs=1e-15)


def test_mathematics_and_code_count_half_each():
    code = dict.fromkeys((name for name in OFFICIAL_COUNTS if name.startswith("hep-")), 0.0)
    assert float(section_scores({"math-prm": 1.0, **code})["Reasoning"]) == 0.5


def test_a_missing_subset_is_left_out_and_the_others_renormalised():
    scores = section_scores({"mt-bench-easy": 1.0, "alpacaeval-easy": 0.0})
    assert scores.keys() == {"Chat"}
    assert float(scores["Chat"]) == pytest.approx(28 / 128)


def test_arrays_are_scored_element_by_element_and_nan_is_a_missing_subset():
    resampled = {"mt-bench-easy": [1.0, np.nan, np.nan], "alpacaeval-easy": [0.0, 0.5, np.nan]}
    np.testing.assert_allclose(section_scores(resampled)["Chat"], [28 / 128, 0.5, np.nan])


def test_unknown_subsets_are_refused_by_name():
    with pytest.raises(DataError, match=r"'math_prm' \(did you mean 'math-prm'\?\).*--suite pairs"):
        check_subsets(["hep-go", "math_prm"])
    with pytest.raises(DataError, match="'None'"):
        check_subsets([None])
    with pytest.raises(DataError, match="and 2 more"):
        section_scores({f"subset {i}": 0.5 for i in range(7)})


def test_coverage_names_missing_and_incomplete_subsets():
    found = coverage({**OFFICIAL_COUNTS, "hep-go": 163, "math-prm": 448, "donotanswer": 0}, OFFICIAL_COUNTS)
    assert found == {
        "missing_subsets": ["donotanswer"],
        "incomplete_subsets": {"math-prm": [448, 447], "hep-go": [163, 164]},
    }


def test_leaderboard_record_is_flat():
    assert leaderboard_record({"math-prm": 0.25}, model="a/b") == {
        "math-prm": 0.25,
        "model": "a/b",
        "model_type": "Seq. Classifier",
        "chat_template": "tokenizer",
    }


@pytest.mark.parametrize(
    ("subset", "signature"),
    [
        ("hep-cpp", "bool has_close_elements(vector<float> numbers, float threshold)"),
        ("hep-python", "has_close_elements(numbers: List[float], threshold: float) -> bool"),
        ("hep-go", "func HasCloseElements(numbers []float64, threshold float64) bool"),
        ("hep-java", "public boolean hasCloseElements(List<Double> numbers, double threshold)"),
        ("hep-js", "const hasCloseElements = (numbers, threshold)"),
        ("hep-rust", "has_close_elements(numbers:Vec<f32>, threshold: f32) -> bool"),
    ],
)
def test_one_problem_in_six_languages_is_one_cluster(subset, signature):
    assert cluster_id(subset, f"Write a function `{signature}` to solve ...") == "humaneval-hascloseelements"


def test_other_pairs_cluster_by_prompt():
    assert cluster_id("alpacaeval-easy", "Hi  there") == cluster_id("alpacaeval-hard", "hi there\n")
    assert cluster_id("alpacaeval-easy", "Hi") != cluster_id("alpacaeval-easy", "Hi!")
    assert cluster_id("hep-rust", "No signature here") == prompt_cluster("No signature here")


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real RewardBench file is not here")
def test_clusters_and_coverage_of_the_real_file():
    with gzip.open(REAL_DATA, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    assert coverage(collections.Counter(row["subset"] for row in rows), OFFICIAL_COUNTS) == {
        "missing_subsets": [],
        "incomplete_subsets": {},
    }
    clusters = collections.Counter(cluster_id(row["subset"], row["prompt"]) for row in rows)
    code = collections.Counter(
        cluster_id(row["subset"], row["prompt"]) for row in rows if row["subset"].startswith("hep-")
    )
    assert len(clusters) == 1920
    assert (len(code), sum(code.values())) == (171, 984)
    assert sum(count == 6 for count in code.values()) == 143
