"""Comparisons: what is refused, what is computed, what is claimed, and in which forms it is written."""

import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest, ttest_rel

from normbt import cli
from normbt.compare import compare, latex, markdown, parse_methods, render_comparison
from normbt.compare.findings import points
from normbt.errors import ConfigError, DataError, StateError
from normbt.evaluate.summary import ScoreTable
from normbt.results import (
    COMPARISON_FILE,
    COMPARISON_LATEX,
    COMPARISON_MARKDOWN,
    PAIRS_FILE,
    PROMPTS_FILE,
    SUMMARY_FILE,
    Comparison,
    EvaluationPair,
    EvaluationPrompt,
    ScoreDifference,
    SeedDifference,
    SeedTest,
    read_json,
    write_json,
    write_jsonl,
)
from normbt.stats import mcnemar_exact, sign_flip_test
from normbt.suites import SUITES
from normbt.suites.rewardbench import section_scores
from normbt.synthetic import generate_pairs

SUBSETS = ["math-prm"] * 30 + ["hep-go"] * 20 + ["hep-js"] * 20 + ["mt-bench-easy"] * 20 + ["donotanswer"] * 30


def cluster(index, subset):
    """The code problems are asked in both languages; every other pair is a cluster of its own."""
    return f"problem-{index % 20}" if subset.startswith("hep-") else f"pair-{index}"


def pair(index, correct, *, subset=None, **fields):
    record = EvaluationPair(
        id=f"p{index}",
        source=None,
        category=None,
        subset=subset,
        cluster_id=cluster(index, subset or ""),
        score_chosen=float(correct),
        score_rejected=0.5,
        correct=bool(correct),
        tie=False,
        distance=1.0,
        n_tokens_chosen=1,
        n_tokens_rejected=1,
        truncated=False,
        n_characters_chosen=1,
        n_characters_rejected=1,
    )
    return {**record, **fields}


def write(folder, records, *, suite="rewardbench", seed=None, digest="d" * 64, policy="wrong", **inference):
    """The files of an evaluation, as far as a comparison reads them."""
    name = PROMPTS_FILE if "credit" in records[0] else PAIRS_FILE
    written = write_jsonl(folder / name, records)
    table = ScoreTable(SUITES[suite], records, resamples=10)
    summary = {"schema_version": 1, "kind": "evaluation", "model": str(folder), "suite": suite, "tie_policy": policy}
    summary |= {"score": table.score(table.outcomes.headline()), "inference": inference, "training_seed": seed}
    summary |= {"records_file": name, "pairs_sha256": written.sha256, "provenance": {"data": [{"digest": digest}]}}
    write_json(folder / SUMMARY_FILE, summary)
    return folder


def right(seed, *, better=0.0):
    """Which pairs a model ranks right: all models find the same pairs hard."""
    easy = np.random.default_rng(0).random(len(SUBSETS))
    return easy + 0.4 * np.random.default_rng(seed).normal(size=len(SUBSETS)) < 0.7 + better


def bench(folder, seed, *, better=0.0, training_seed=None, **fields):
    records = [pair(i, ok, subset=SUBSETS[i]) for i, ok in enumerate(right(seed, better=better))]
    return write(folder, records, seed=training_seed, **fields)


@pytest.fixture
def two(tmp_path):
    return bench(tmp_path / "bt", 1), bench(tmp_path / "normbt", 2, better=0.1)


def row(comparison, outcome, method=None):
    return next(
        one
        for one in comparison["differences"]
        if one["outcome"] == outcome and (method is None or one["method"] == method)
    )


def printed(comparison):
    console = Console(width=200, file=io.StringIO())
    console.print(render_comparison(comparison))
    return console.file.getvalue()


# --- what is compared -------------------------------------------------------------------------------------------------


def test_folders_names_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/bt-0", "runs/bt-1", "a/out", "b/out", "lr=1e-4"):
        Path(name).mkdir(parents=True)
    assert parse_methods(["x/bt", "y/normbt/"]) == {"bt": [Path("x/bt")], "normbt": [Path("y/normbt")]}
    assert parse_methods(["a/out", "b/out"]) == {"a/out": [Path("a/out")], "b/out": [Path("b/out")]}
    found = parse_methods(["bt=runs/bt-*", "n=x", "n=y"])
    assert found == {"bt": [Path("runs/bt-0"), Path("runs/bt-1")], "n": [Path("x"), Path("y")]}
    assert list(parse_methods(["lr=1e-4", "other"])) == ["lr=1e-4", "other"]  # a folder that is called that
    for argument in ("bt=", "=x", "bt=nowhere/*"):
        with pytest.raises(ConfigError, match="no folder matches"):
            parse_methods([argument, "b"])
    with pytest.raises(ConfigError, match="at least two methods, found bt"):
        parse_methods(["bt=a", "bt=b"])


def test_results_of_other_pairs_rules_and_suites_are_refused_by_name(tmp_path, two):
    first, second = two
    other = bench(tmp_path / "other", 3, digest="e" * 64)
    with pytest.raises(DataError, match=r"bt and .*other cannot be compared: their data digest differs \(dddd.*eeee"):
        compare({"a": [first], "b": [second], "c": [other]})
    other = bench(tmp_path / "other", 3, policy="fractional")
    with pytest.raises(DataError, match=r"their tie policy differs \(wrong and fractional\)"):
        compare({"a": [first], "b": [other]})
    records = [pair(i, True, category="x") for i in range(3)]
    with pytest.raises(DataError, match=r"their suite differs \(rewardbench and pairs\)"):
        compare({"a": [first], "b": [write(tmp_path / "pairs", records, suite="pairs")]})


def test_results_with_other_ids_are_refused_with_their_number_and_the_first(tmp_path, two):
    records = [pair(i + 5, True, subset=subset) for i, subset in enumerate(SUBSETS)]
    moved = write(tmp_path / "moved", records)
    with pytest.raises(DataError, match="ids differ") as refused:
        compare({"a": [two[0]], "b": [moved]})
    assert "5 only in" in str(refused.value)
    assert "(p0, p1, p2, …)" in str(refused.value)
    assert "(p120, p121, p122, …)" in str(refused.value)
    assert "--limit" in str(refused.value)


def test_folders_without_a_finished_evaluation_are_refused(tmp_path, two):
    with pytest.raises(DataError, match=r"is not a finished evaluation.*folders in it: bt, normbt\?"):
        compare({"a": [tmp_path], "b": [two[1]]})
    with (two[1] / PAIRS_FILE).open("a") as stream:
        stream.write("{}\n")
    with pytest.raises(StateError, match="is not the file that"):
        compare({"a": [two[0]], "b": [two[1]]})


def test_one_run_named_twice_is_not_two_seeds(tmp_path, two):
    with pytest.raises(DataError, match=r"both of a, hold the same rewards.*not two seeds"):
        compare({"a": [two[0], two[0]], "b": [two[1], two[0]]})
    with pytest.raises(ConfigError, match="same number of runs; found a 1, b 2"):
        compare({"a": [two[0]], "b": list(two)})


def test_runs_are_paired_by_their_training_seed(tmp_path):
    a = [bench(tmp_path / f"a{seed}", seed, training_seed=seed) for seed in (1, 2)]
    b = [bench(tmp_path / f"b{seed}", 10 + seed, training_seed=seed) for seed in (2, 1)]
    found = compare({"a": a, "b": b}, resamples=50)
    assert [run["training_seed"] for run in found["methods"][1]["runs"]] == [1, 2]
    assert [one["seed"] for one in found["seed_differences"][:2]] == [1, 2]
    other = bench(tmp_path / "other", 30, training_seed=3)
    with pytest.raises(ConfigError, match="training seeds of b differ: a 1, 2; b 2, 3"):
        compare({"a": a, "b": [b[0], other]}, resamples=50)
    unknown = bench(tmp_path / "unknown", 31)
    found = compare({"a": a, "b": [b[0], unknown]}, resamples=50)
    assert "paired in the order given" in found["notes"][0]


def test_settings_that_move_scores_are_named_where_they_differ(tmp_path):
    a = bench(tmp_path / "a", 1, dtype="float32", max_length=256)
    b = bench(tmp_path / "b", 2, dtype="bfloat16", max_length=256)
    notes = compare({"a": [a], "b": [b]}, resamples=50)["notes"]
    assert len(notes) == 1
    assert re.search(r"differ in dtype.*float32 \(.*bfloat16 \(", notes[0])


# --- what is computed -------------------------------------------------------------------------------------------------


def test_one_run_each_by_hand(two):
    found = compare({"bt": [two[0]], "normbt": [two[1]]}, resamples=2000)
    first, second = right(1), right(2, better=0.1)
    subset_of = np.array(SUBSETS)
    accuracies = [{name: model[subset_of == name].mean() for name in set(SUBSETS)} for model in (first, second)]
    sections = [section_scores(one) for one in accuracies]
    for name in ("Chat", "Safety", "Reasoning"):
        one = row(found, name)
        assert one["baseline_score"] == pytest.approx(float(sections[0][name]))
        assert one["difference"] == pytest.approx(float(sections[1][name] - sections[0][name]))
    headline = row(found, "mean of 3 sections")
    assert headline["difference"] == pytest.approx(
        np.mean([float(sections[1][name] - sections[0][name]) for name in sections[0]])
    )
    assert (headline["decisions"], headline["clusters"]) == (120, 30 + 20 + 20 + 30)
    reasoning, inside = row(found, "Reasoning"), np.char.startswith(subset_of, "hep") | (subset_of == "math-prm")
    only = (int((first & ~second)[inside].sum()), int((second & ~first)[inside].sum()))
    assert (reasoning["only_baseline"], reasoning["only_method"]) == only
    assert reasoning["mcnemar_p"] == pytest.approx(binomtest(only[0], sum(only), 0.5).pvalue)
    assert reasoning["discordance"] == sum(only) / inside.sum()
    # The p-value: swap the two models problem by problem, weights included.
    weight = {"math-prm": 984 / (984 + 328) / 30, "hep-go": 164 / (984 + 328) / 20, "hep-js": 164 / (984 + 328) / 20}
    gain = np.array([weight.get(name, 0.0) for name in SUBSETS]) * (second.astype(float) - first)
    clusters = [cluster(index, name) for index, name in enumerate(SUBSETS)]
    expected = sign_flip_test(gain, clusters, flips=100_000, seed=9)[0]
    assert reasoning["p_value"] == pytest.approx(expected, abs=0.03)
    for one in found["differences"]:
        assert one["low"] <= one["difference"] <= one["high"]
        assert one["detectable"] == pytest.approx(2.83 * one["standard_error"], rel=0.04)


def test_pairs_of_one_problem_are_one_piece_of_evidence(tmp_path):
    """Sixty pairs gained, of three problems: McNemar takes them for sixty, the test that is used for three."""
    before = [pair(i, False, cluster_id=f"c{i // 20}") for i in range(60)]
    after = [{**one, "correct": True} for one in before]
    folders = [write(tmp_path / name, rows, suite="pairs") for name, rows in (("a", before), ("b", after))]
    found = row(compare({"a": [folders[0]], "b": [folders[1]]}, resamples=100), "accuracy")
    assert found["mcnemar_p"] < 1e-15
    assert found["p_value"] == 2 / 2**3
    assert found["verdict"] == "no difference shown"


def test_two_pairs_that_every_seed_gains_show_nothing(tmp_path):
    """They vary over no seed and in no resample, so that no variance says how little they are."""
    folders = {"bt": [], "normbt": []}
    for seed, (name, found) in itertools.product(range(3), folders.items()):
        noise = np.random.default_rng(seed).random(40) < 0.5
        records = [pair(i, ok, category="many") for i, ok in enumerate(noise)]
        records += [pair(40 + i, name == "normbt", category="two") for i in range(2)]
        found.append(write(tmp_path / f"{name}{seed}", records, suite="pairs", seed=seed))
    found = row(compare(folders, resamples=200), "two")
    assert (found["difference"], found["p_value"], found["verdict"]) == (1.0, 0.5, "no difference shown")


def test_labels_of_the_data_are_no_strata(tmp_path):
    """A source for every pair leaves a benchmark's own strata, of which plain pairs have one, as they are."""
    rows = [[pair(i, ok) for i, ok in enumerate(right(seed))] for seed in (1, 2)]
    named = [[{**one, "source": f"https://{one['id']}"} for one in records] for records in rows]
    intervals = []
    for kind, both in (("plain", rows), ("named", named)):
        folders = [write(tmp_path / f"{kind}{place}", records, suite="pairs") for place, records in enumerate(both)]
        found = row(compare({"a": [folders[0]], "b": [folders[1]]}, resamples=500), "accuracy")
        score = ScoreTable(SUITES["pairs"], both[0], resamples=500).by("sources")
        intervals.append((found["low"], found["high"], found["standard_error"]))
        assert len(score) == (0 if kind == "plain" else len(rows[0]))
    assert intervals[0] == pytest.approx(intervals[1])
    assert intervals[0][0] < intervals[0][1]


def test_the_interval_is_that_of_a_loop_over_resamples(two):
    """Slow twin: draw clusters one by one within each stratum, score both models on the same draw."""
    found = row(compare({"bt": [two[0]], "normbt": [two[1]]}, resamples=10_000), "mean of 3 sections")
    models, generator = (right(1), right(2, better=0.1)), np.random.default_rng(5)
    clusters = np.array([cluster(index, name) for index, name in enumerate(SUBSETS)])
    code = np.char.startswith(np.array(SUBSETS), "hep")
    strata = [np.array(SUBSETS) == name for name in ("math-prm", "mt-bench-easy", "donotanswer")] + [code]
    differences = []
    for _ in range(1500):
        drawn = []
        for stratum in strata:
            names = np.unique(clusters[stratum])
            for name in generator.choice(names, len(names)):
                drawn += np.flatnonzero(clusters == name).tolist()
        subset_of = np.array(SUBSETS)[drawn]
        means = [
            np.mean(list(section_scores({n: model[drawn][subset_of == n].mean() for n in set(SUBSETS)}).values()))
            for model in models
        ]
        differences.append(means[1] - means[0])
    low, high = np.quantile(differences, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.015)
    assert found["standard_error"] == pytest.approx(np.std(differences), rel=0.08)


def test_the_order_of_the_records_does_not_matter(tmp_path, two):
    records = [pair(i, ok, subset=SUBSETS[i]) for i, ok in enumerate(right(2, better=0.1))]
    shuffled = write(tmp_path / "shuffled", [records[i] for i in np.random.default_rng(0).permutation(len(records))])
    one, other = (compare({"bt": [two[0]], "n": [folder]}, resamples=100) for folder in (two[1], shuffled))
    assert one["differences"] == other["differences"]


def test_equal_models_show_no_difference_and_claim_no_power(two):
    found = compare({"a": [two[0]], "b": [two[0]]}, resamples=100)
    for one in found["differences"]:
        assert (one["difference"], one["low"], one["high"], one["p_value"], one["p_holm"]) == (0, 0, 0, 1, 1)
        assert (one["verdict"], one["detectable"]) == ("no difference shown", None)
    assert "no difference could be shown. No decision differs" in found["findings"][0]


def test_seeds_are_tested_with_the_paired_t_and_each_seed_alone(tmp_path):
    methods = {
        name: [bench(tmp_path / f"{name}{s}", s + start, better=better, training_seed=s) for s in range(3)]
        for name, start, better in (("bt", 1, 0.0), ("normbt", 11, 0.1))
    }
    found = compare(methods, resamples=500)
    assert found["level"] == "methods"
    scores = {method["name"]: [run["score"] for run in method["runs"]] for method in found["methods"]}
    expected = ttest_rel(scores["normbt"], scores["bt"])
    test = next(one for one in found["seed_tests"] if one["outcome"] == found["headline"])
    assert test["p_value"] == pytest.approx(expected.pvalue)
    alone = [one for one in found["seed_differences"] if one["outcome"] == found["headline"]]
    assert [one["method_score"] for one in alone] == pytest.approx(scores["normbt"])
    assert [one["seed"] for one in alone] == [0, 1, 2]
    models = [(right(s + 1), right(s + 11, better=0.1)) for s in range(3)]
    assert [one["only_method"] for one in alone] == [int((b & ~a).sum()) for a, b in models]
    assert alone[0]["mcnemar_p"] == mcnemar_exact(alone[0]["only_baseline"], alone[0]["only_method"])
    headline = row(found, found["headline"])
    assert headline["difference"] == pytest.approx(np.mean(scores["normbt"]) - np.mean(scores["bt"]))
    assert headline["only_baseline"] is headline["mcnemar_p"] is None
    # Wider than what the seeds alone or the pairs alone would say.
    assert headline["standard_error"] > test["standard_error"]
    assert "3 runs each, paired by seed" in found["findings"][-1]


def test_primary_outcomes_are_adjusted_among_themselves(two):
    found = compare({"a": [two[0]], "b": [two[1]]}, resamples=200, by=["subsets"])
    assert found["primary"] == ["mean of 3 sections", "Reasoning"]
    families = {}
    for one in found["differences"]:
        families.setdefault(one["family"], []).append(one)
    assert {name: len(rows) for name, rows in families.items()} == {"primary": 2, "secondary": 2, "subsets": 5}
    for rows in families.values():
        smallest = min(rows, key=lambda one: one["p_value"])
        assert smallest["p_holm"] == pytest.approx(min(1, len(rows) * smallest["p_value"]))
        assert all(one["p_holm"] >= one["p_value"] for one in rows)
    found = compare({"a": [two[0]], "b": [two[1]]}, resamples=200, primary=["Safety", "score"])
    assert found["primary"] == ["Safety", "mean of 3 sections"]
    with pytest.raises(ConfigError, match=r"no outcome Safty.*There are: score \(mean of 3 sections\), Chat, Safety"):
        compare({"a": [two[0]], "b": [two[1]]}, primary=["Safty"])


def test_several_methods_against_one_baseline(tmp_path, two):
    third = bench(tmp_path / "third", 3)
    found = compare({"a": [two[0]], "b": [two[1]], "c": [third]}, baseline="b", resamples=100)
    assert {(one["baseline"], one["method"]) for one in found["differences"]} == {("b", "a"), ("b", "c")}
    assert sum(one["family"] == "primary" for one in found["differences"]) == 4  # one family for all of them
    assert printed(found).count("against b") == 2
    reverse = compare({"a": [two[0]], "b": [two[1]]}, resamples=100)
    assert row(found, "Safety", "a")["difference"] == -row(reverse, "Safety")["difference"]


def test_wrong_settings_are_named_at_once(two):
    with pytest.raises(ConfigError) as refused:
        compare({"a": [two[0]], "b": [two[1]]}, baseline="x", alpha=5, power=0, resamples=0, by=["subset"])
    for part in ("Baseline must be one of a, b", "alpha must", "power must", "resamples must", "by must be one of"):
        assert part in str(refused.value)


def test_prompts_with_several_answers_are_compared_by_their_own_rule(tmp_path):
    def prompts(seed):
        generator = np.random.default_rng(seed)
        records = []
        for index in range(24):
            domain = ("chat", "math", "code", "safety")[index % 4]
            record = EvaluationPrompt(
                id=f"{domain}/{index}", source=None, category=domain, subset=domain, cluster_id=f"c{index}",
                scores_chosen=(generator.random(3) + 0.1 * seed).tolist(),
                scores_rejected=generator.random(3).tolist(), credit=0.0, tie=False,
                n_tokens_chosen=[1] * 3, n_tokens_rejected=[1] * 3, truncated_chosen=[False] * 3,
                truncated_rejected=[False] * 3, n_characters_chosen=[1] * 3, n_characters_rejected=[1] * 3,
            )  # fmt: skip
            records.append(record)
        return records

    folders = [write(tmp_path / f"m{seed}", prompts(seed), suite="rm-bench") for seed in (1, 4)]
    found = compare({"a": [folders[0]], "b": [folders[1]]}, resamples=500)
    outcomes = [one["outcome"] for one in found["differences"]]
    assert outcomes == ["mean of 4 domains", "chat", "math", "code", "safety", "Hard", "Normal", "Easy"]
    headline, hard = row(found, "mean of 4 domains"), row(found, "Hard")
    assert (headline["decisions"], headline["clusters"], hard["decisions"]) == (9 * 24, 24, 3 * 24)
    summaries = [read_json(folder / SUMMARY_FILE)["score"]["value"] for folder in folders]
    assert headline["difference"] == pytest.approx(summaries[1] - summaries[0])


# --- what is claimed --------------------------------------------------------------------------------------------------


def planted(folder, *, gain, redrawn, seed):
    """A model of 500 built-in pairs: their true rewards with noise, drawn again on some pairs, left out on others."""
    rows = generate_pairs(500, seed=1)
    noise, again, places = (np.random.default_rng([1, stream]) for stream in (0, seed, 100 + seed))
    margin = np.array([one["margin"] for one in rows])
    draw = places.random(500)
    noisy = margin + 3.4 * noise.normal(size=500)
    noisy = np.where(draw < redrawn, margin + 3.4 * again.normal(size=500), noisy)
    noisy = np.where(draw > 1 - gain, margin, noisy)
    records = [
        pair(i, value > 0, category=one["category"], cluster_id=one["prompt"])
        for i, (one, value) in enumerate(zip(rows, noisy, strict=True))
    ]
    return write(folder, records, suite="pairs")


def test_a_better_model_of_built_in_pairs_is_found_and_an_equal_one_is_not(tmp_path):
    """With 20 % of the pairs understood, which are 5 points; 20 seeds of it are in test_stats_paired.py."""
    base = planted(tmp_path / "base", gain=0.0, redrawn=0.0, seed=1)
    better = planted(tmp_path / "strong", gain=0.2, redrawn=0.05, seed=2)
    equal = planted(tmp_path / "equal", gain=0.0, redrawn=0.3, seed=3)
    found = compare({"base": [base], "strong": [better], "equal": [equal]}, resamples=2000)
    first, second = (row(found, "accuracy", name) for name in ("strong", "equal"))
    assert first["difference"] == pytest.approx(0.05, abs=0.02)
    assert first["verdict"] == "better"
    assert found["findings"][0].endswith("strong is better.")
    assert second["discordance"] > first["discordance"]
    assert second["verdict"] == "no difference shown"
    assert {one["outcome"] for one in found["differences"]} == {"accuracy", "chat", "chat_hard", "safety", "reasoning"}


def test_it_speaks_of_models_not_of_methods_and_of_no_difference_where_there_is_none(tmp_path):
    folders = bench(tmp_path / "a", 1), bench(tmp_path / "b", 2)
    found = compare({"a": [folders[0]], "b": [folders[1]]}, resamples=2000)
    text = printed(found)
    assert all(one["verdict"] == "no difference shown" for one in found["differences"])
    headline = row(found, "mean of 3 sections")
    assert "mean of 3 sections" in found["findings"][0]
    assert "no difference could be shown. With 120 decisions in 100 clusters" in found["findings"][0]
    assert f"a true difference of {100 * headline['detectable']:.1f} points would have been found 80% of" in " ".join(
        text.split()
    )
    assert "No difference between b and a could be shown in: Chat, Safety." in text
    assert "One run each: this compares these models. It says nothing about the methods" in " ".join(text.split())
    assert "better" not in text


def test_points_have_one_sign():
    assert [points(value) for value in (0.0123, -0.05, 0.0, -0.0004, 0.0004)] == ["+1.2", "-5.0", "0.0", "0.0", "0.0"]


# --- files and forms --------------------------------------------------------------------------------------------------


def test_the_files_hold_the_declared_fields(tmp_path, two):
    third = bench(tmp_path / "c", 5), bench(tmp_path / "d", 6)
    found = compare({"a": list(two), "b": list(third)}, resamples=50, output_dir=tmp_path / "out")
    assert read_json(tmp_path / "out" / COMPARISON_FILE, kind="comparison") == json.loads(json.dumps(found))
    assert found.keys() == Comparison.__annotations__.keys()
    for rows, kind in (
        ("differences", ScoreDifference),
        ("seed_differences", SeedDifference),
        ("seed_tests", SeedTest),
    ):
        assert found[rows][0].keys() == kind.__annotations__.keys()
    assert (tmp_path / "out" / COMPARISON_MARKDOWN).read_text() == markdown(found)
    assert (tmp_path / "out" / COMPARISON_LATEX).read_text() == latex(found)
    assert found["provenance"]["config"]["methods"] == {
        "a": [str(one) for one in two],
        "b": [str(one) for one in third],
    }
    assert found["provenance"]["data"] == [{"digest": "d" * 64}]


def test_markdown_and_latex_have_the_cells_of_the_terminal(tmp_path):
    folders = [bench(tmp_path / name, seed) for name, seed in (("b_t", 1), ("norm&bt", 2))]
    found = compare({folder.name: [folder] for folder in folders}, resamples=100)
    text, table = printed(found), row(found, "Reasoning")
    cell = f"{table['only_baseline']} : {table['only_method']}"
    assert cell in text
    lines = [line for line in markdown(found).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(found["differences"])
    assert any(cell in line for line in lines)
    source = latex(found)
    rows = [line for line in source.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(found["differences"])
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1
    assert r"b\_t" in rows[0]
    assert r"norm\&bt" in rows[0]
    assert source.count(r"\toprule") == source.count(r"\bottomrule") == source.count(r"\begin{tabular}") == 1
    assert not re.search(r"(?<!\\)%", "\n".join(rows))
    assert all(finding in source and finding in markdown(found) for finding in found["findings"])


def test_no_model_and_no_torch_are_needed(two):
    code = (
        "import sys\n"
        "from normbt.cli import main\n"
        f"status = main(['compare', {str(two[0])!r}, {str(two[1])!r}, '--resamples', '50', '--format', 'json'])\n"
        "assert status == 0, status\n"
        "assert not {'torch', 'transformers', 'datasets', 'trl'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["kind"] == "comparison"


def test_the_command(tmp_path, two, capsys):
    argv = ["compare", f"bt={two[0]}", f"n={two[1]}", "--resamples", "50", "--output-dir", str(tmp_path / "out")]
    assert cli.main([*argv, "--primary", "score", "--primary", "Safety", "--by", "subsets"]) == 0
    shown = capsys.readouterr()
    assert "n against bt" in shown.out
    assert "Result files in" in shown.err
    found = read_json(tmp_path / "out" / COMPARISON_FILE)
    assert found["primary"] == ["mean of 3 sections", "Safety"]
    for form, mark in (("latex", r"\toprule"), ("markdown", "| --- |"), ("json", '"kind": "comparison"')):
        assert cli.main([*argv, "--format", form]) == 0
        assert mark in capsys.readouterr().out
    assert cli.main(["compare", str(two[0]), str(tmp_path / "nowhere")]) == 2
    assert "is not a finished evaluation" in capsys.readouterr().err
