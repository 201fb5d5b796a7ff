"""Formats and rules of the benchmarks with several answers or their own tie rule; RewardBench v1 has a file of its own.

The golden numbers were made with the reference implementations named in the modules, run on the inputs below.
"""

import gzip
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbt.errors import ConfigError, DataError
from normbt.evaluate.data import find_data, sample
from normbt.results import EvaluationPair, EvaluationPrompt
from normbt.suites import SUITES, Outcomes, find_suite
from normbt.suites.judgebench import second_wins_ties
from normbt.suites.rewardbench2 import best_of_credit
from normbt.suites.rm_bench import difficulty

RB2, RM_BENCH, JUDGEBENCH = SUITES["rewardbench2"], SUITES["rm-bench"], SUITES["judgebench"]


def prompt(name, chosen, rejected, **fields):
    """A record of a prompt; the lengths of its answers are their rewards, unless given."""
    record = EvaluationPrompt(
        id=name,
        source=None,
        category=None,
        subset=None,
        cluster_id=name,
        scores_chosen=list(chosen),
        scores_rejected=list(rejected),
        credit=0.0,
        tie=False,
        n_tokens_chosen=[1] * len(chosen),
        n_tokens_rejected=[1] * len(rejected),
        truncated_chosen=[False] * len(chosen),
        truncated_rejected=[False] * len(rejected),
        n_characters_chosen=[1] * len(chosen),
        n_characters_rejected=[1] * len(rejected),
    )
    return {**record, **fields}


def ties(name, scores, correct):
    kind, _, number = name.partition(":")
    assert kind in ("ref", "tied")
    return prompt(name, scores[:correct], scores[correct:], subset="Ties", cluster_id=f"ties-{number}")


def scores_of(suite, records, *, by_length=False):
    """Headline, and every section and detail by name."""
    decisions = suite.decisions(records, by_length=by_length)
    outcomes = Outcomes(suite, records, decisions)
    sums = outcomes.sums(decisions.credit)
    named = {one.name: one for one in [*outcomes.sections(), *outcomes.details()]}
    values = {name: float(one.statistic(sums, outcomes.counts)) for name, one in named.items()}
    return float(outcomes.headline().statistic(sums, outcomes.counts)), values


# --- RewardBench 2 ----------------------------------------------------------------------------------------------------


GOLDEN_TIES = [
    ties("ref:1", [1.0, 0.2, 0.1], 1),
    ties("tied:1", [1.0, 0.9, 0.5, 0.1], 2),
    ties("ref:2", [0.1, 0.2], 1),
    ties("tied:2", [1.0, 1.0, 1.0, 0.5], 3),
]


def test_golden_score_of_ties():
    headline, values = scores_of(RB2, GOLDEN_TIES)
    assert values["Ties"] == pytest.approx(0.7499752737684335, abs=1e-15)
    assert headline == values["Ties"]
    assert values["Ties: tied accuracy"] == 1.0
    assert values["Ties: reference accuracy"] == 0.5


def slow_ties(records):
    """The published formula, prompt by prompt."""
    stats = {}
    for record in records:
        chosen, rejected = record["scores_chosen"], record["scores_rejected"]
        kind, _, number = record["id"].partition(":")
        stats[kind, number] = (min(chosen) - max(rejected), max(chosen) - min(chosen))
    kinds = {kind: [number for name, number in stats if name == kind] for kind in ("ref", "tied")}
    accuracy = {
        kind: sum(stats[kind, n][0] > 0 for n in numbers) / len(numbers) if numbers else 0.0
        for kind, numbers in kinds.items()
    }
    both = [number for number in kinds["ref"] if number in kinds["tied"]]
    preferred = hard = margin = 0.0
    for number in both:
        (reference, _), (gap, spread) = stats["ref", number], stats["tied", number]
        least = min(reference, gap)
        preferred += gap > spread
        hard += least > spread
        if spread == 0:
            margin += 0.0 if least == 0 else math.copysign(1.0, least)
        else:
            margin += math.tanh(least / spread - 1)
    parts = (accuracy["tied"], accuracy["ref"], preferred / len(both), hard / len(both), margin / len(both))
    return sum(weight * part for weight, part in zip((0.3, 0.3, 0.2, 0.2, 0.01), parts, strict=True))


few = st.integers(0, 3).map(float)  # few values, so that ties, zero gaps and zero spreads are frequent


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(few, min_size=2, max_size=4),
            st.lists(few, min_size=2, max_size=3),
            st.lists(few, min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_ties_equal_the_formula(couples):
    records = []
    for number, (reference, right, wrong) in enumerate(couples):
        records += [ties(f"ref:{number}", reference, 1), ties(f"tied:{number}", [*right, *wrong], len(right))]
    assert scores_of(RB2, records)[0] == pytest.approx(slow_ties(records), abs=1e-12)


def test_a_tied_prompt_without_its_reference_counts_for_its_accuracy_only():
    records = [*GOLDEN_TIES, ties("tied:3", [0.0, 0.0, 1.0], 2)]
    _, values = scores_of(RB2, records)
    assert values["Ties: tied accuracy"] == pytest.approx(2 / 3)
    assert values["Ties"] == pytest.approx(slow_ties(records), abs=1e-12)


def test_rewards_that_are_not_numbers_earn_nothing_in_ties():
    for broken in (ties("tied:1", [None, 0.9, 0.5], 2), ties("tied:1", [1.0, 0.9, None], 2)):
        _, values = scores_of(RB2, [GOLDEN_TIES[0], broken])
        assert [values[f"Ties: {name}"] for name in ("tied accuracy", "preference", "hard preference", "margin")] == [
            0.0
        ] * 4
    decisions = RB2.decisions([GOLDEN_TIES[0], broken])
    assert decisions.finite[decisions.counted].tolist() == [True, False]


@settings(max_examples=100, deadline=None)
@given(st.lists(few, min_size=2, max_size=5))
def test_shared_highest_reward_is_what_a_fair_draw_expects(scores):
    """Breaking ties at random and asking whether the first answer is chosen, over all orders of preference."""
    highest = [index for index, value in enumerate(scores) if value == max(scores)]
    assert best_of_credit(scores) == pytest.approx(sum(index == 0 for index in highest) / len(highest))


def test_rewardbench2_is_the_plain_mean_of_its_subsets():
    records = [
        prompt("Math/1", [1.0], [0.0, 0.5, 0.2], subset="Math"),
        prompt("Math/2", [1.0], [1.0, 0.5, 0.2], subset="Math"),
        prompt("Focus/1", [0.1], [1.0, 0.5, 0.2], subset="Focus"),
        prompt("Focus/2", [None], [1.0, 0.5, 0.2], subset="Focus"),
        *GOLDEN_TIES,
    ]
    headline, values = scores_of(RB2, records)
    assert (values["Math"], values["Focus"]) == (0.75, 0.0)
    assert headline == pytest.approx((0.75 + 0.0 + values["Ties"]) / 3)
    decisions = RB2.decisions(records)
    assert decisions.tie[:4].tolist() == [False, True, False, False]
    accuracy = Outcomes(RB2, records, decisions).accuracy()
    assert accuracy.rows.sum() == 8  # four prompts and four of Ties, none of what is derived from couples
    assert RB2.coverage(records)["incomplete_subsets"] == {"Math": [2, 183], "Focus": [2, 495], "Ties": [4, 102]}


# --- RM-Bench ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["chat", "math", "safety"]), st.lists(few, min_size=6, max_size=6)),
        min_size=1,
        max_size=6,
    )
)
def test_rm_bench_equals_its_matrices(rows):
    records = [
        prompt(f"{domain}/{index}", values[:3], values[3:], category=domain, subset=domain)
        for index, (domain, values) in enumerate(rows)
    ]
    by_domain = {}
    for domain in dict.fromkeys(domain for domain, _ in rows):
        own = [record for record in records if record["category"] == domain]
        matrix = np.zeros((3, 3))
        for record, i, j in itertools.product(own, range(3), range(3)):
            matrix[i, j] += record["scores_chosen"][i] > record["scores_rejected"][j]
        matrix /= len(own)
        hard = np.triu(matrix, 1).sum() / 3
        by_domain[domain] = (hard, np.trace(matrix) / 3, np.tril(matrix, -1).sum() / 3)
    headline, values = scores_of(RM_BENCH, records)
    assert headline == pytest.approx(np.mean(list(by_domain.values())))
    for domain, levels in by_domain.items():
        assert values[domain] == pytest.approx(np.mean(levels))
    for place, level in enumerate(("Hard", "Normal", "Easy")):
        assert values[level] == pytest.approx(np.mean([levels[place] for levels in by_domain.values()]))


def test_hard_means_that_the_right_answer_is_the_plainer_one():
    # The model likes fancy answers: it is right where the right one is fancier, and only there.
    record = prompt("chat/1", [0.0, 1.0, 2.0], [0.5, 1.5, 2.5], category="chat", subset="chat")
    _, values = scores_of(RM_BENCH, [record])
    assert (values["Hard"], values["Normal"], values["Easy"]) == (0.0, 0.0, 1.0)
    assert [difficulty(0, 1), difficulty(2, 2), difficulty(1, 0)] == ["Hard", "Normal", "Easy"]


def test_rm_bench_counts_comparisons_that_hang_on_ties_cuts_and_nan():
    record = prompt("chat/1", [1.0, None, 2.0], [1.0, 0.0, 0.0], category="chat", subset="chat")
    decisions = RM_BENCH.decisions([{**record, "truncated_rejected": [True, False, False]}])
    assert decisions.tie.sum() == 1
    assert (~decisions.finite).sum() == 3
    assert decisions.truncated.sum() == 3
    assert decisions.credit.sum() == 5


def test_the_longer_answer_by_each_rule():
    equal = prompt("chat/1", [9.0] * 3, [0.0] * 3, category="chat", subset="chat")
    assert scores_of(RM_BENCH, [equal], by_length=True)[0] == 0.5  # a coin
    longer = {**equal, "n_characters_chosen": [1, 5, 9], "n_characters_rejected": [2, 6, 10]}
    assert scores_of(RM_BENCH, [longer], by_length=True)[1]["Easy"] == 1.0
    four = prompt("Math/1", [9.0], [0.0] * 3, subset="Math")
    assert scores_of(RB2, [four], by_length=True)[0] == 0.25
    assert scores_of(RB2, [{**four, "n_characters_chosen": [2]}], by_length=True)[0] == 1.0


def test_rm_bench_writes_the_dictionary_of_its_own_script():
    records = [
        prompt(f"{domain}/1", [1.0] * 3, [0.0] * 3, category=domain, subset=domain)
        for domain in ("chat", "math", "code", "safety")
    ]
    headline, values = scores_of(RM_BENCH, records)
    kinds = {
        "sections": {name: values[name] for name in ("chat", "math", "code", "safety")},
        "details": {name: values[name] for name in ("Hard", "Normal", "Easy")},
        "subsets": {},
    }
    flat = RM_BENCH.leaderboard(kinds, headline=headline, model="m", template="none")
    keys = {"chat", "math", "code", "safety", "hard_acc", "normal_acc", "easy_acc", "total_avg_acc"}
    assert flat == dict.fromkeys(keys, 1.0)


# --- JudgeBench -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(few, few, st.sampled_from(["A>B", "B>A"])), min_size=1, max_size=8))
def test_judgebench_gives_a_tie_to_the_second_answer(pairs):
    decisions = [("A>B" if first > second else "B>A") == label for first, second, label in pairs]
    chosen = np.array([first if label == "A>B" else second for first, second, label in pairs])
    rejected = np.array([second if label == "A>B" else first for first, second, label in pairs])
    found = second_wins_ties(chosen, rejected, [label == "A>B" for *_, label in pairs])
    assert found.correct.tolist() == decisions


def test_nan_is_wrong_wherever_it_stands():
    nan = math.nan
    found = second_wins_ties(np.array([nan, 1.0, nan]), np.array([0.0, nan, nan]), [False] * 3)
    assert not found.correct.any()
    assert not found.finite.any()


# --- what holds for every rule ----------------------------------------------------------------------------------------


def pair(index, *, correct, **fields):
    record = EvaluationPair(
        id=str(index),
        source=None,
        category=None,
        subset=None,
        cluster_id=str(index),
        score_chosen=float(correct),
        score_rejected=0.5,
        correct=correct,
        tie=False,
        distance=1.0,
        n_tokens_chosen=1,
        n_tokens_rejected=1,
        truncated=False,
        n_characters_chosen=1,
        n_characters_rejected=1,
    )
    return {**record, **fields}


def random_records(name, generator):
    if name == "rewardbench2":
        subsets = ["Math"] * 5 + ["Focus"] * 3
        ordinary = [
            prompt(
                f"{subset}/{i}", generator.random(1), generator.integers(0, 2, 3) * generator.random(), subset=subset
            )
            for i, subset in enumerate(subsets)
        ]
        couples = [
            record
            for number in range(3)
            for record in (
                ties(f"ref:{number}", generator.random(3), 1),
                ties(f"tied:{number}", generator.random(5), 2),
            )
        ]
        return ordinary + couples
    if name == "rm-bench":
        domains = generator.permutation(["chat"] * 4 + ["math"] * 3 + ["safety"] * 2)
        return [
            prompt(f"{d}/{i}", generator.random(3), generator.random(3), category=str(d), subset=str(d))
            for i, d in enumerate(domains)
        ]
    subsets = {"rewardbench": ["math-prm", "hep-go", "mt-bench-easy"], "judgebench": ["mmlu-pro", "livecodebench"]}
    names = subsets.get(name, ["x", "y"])
    return [
        pair(i, correct=bool(generator.random() < 0.6), subset=names[i % len(names)], category="ab"[i % 2])
        for i in range(20)
    ]


@pytest.mark.parametrize("name", SUITES)
def test_every_score_is_its_weights_times_the_credit(name):
    """What lets one bootstrap serve all scores, and a test flip two models cluster by cluster."""
    suite, generator = SUITES[name], np.random.default_rng(0)
    records = random_records(name, generator)
    decisions = suite.decisions(records)
    outcomes = Outcomes(suite, records, decisions)
    kinds = [outcomes.breakdown(kind) for kind in ("categories", "subsets", "sources")]
    every = [outcomes.headline(), outcomes.accuracy(), *outcomes.sections(), *outcomes.details()]
    every += [one for kind in kinds for one in kind]
    assert len(every) >= 4
    for _ in range(3):
        credit = generator.random(len(decisions.credit))
        for outcome in every:
            expected = float(outcome.statistic(outcomes.sums(credit), outcomes.counts))
            assert outcomes.weights(outcome) @ credit == pytest.approx(expected), outcome.name
            assert outcome.rows.any()


def test_an_unknown_suite_is_refused():
    with pytest.raises(ConfigError, match="one of rewardbench, rewardbench2, rm-bench, judgebench, pairs, found 'rm'"):
        find_suite("rm")


# --- formats ----------------------------------------------------------------------------------------------------------


def rb2_row(number, **fields):
    row = {"id": str(number), "prompt": f"p{number}", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"}
    return row | {"num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4} | fields


def tied_row(number, **fields):
    row = rb2_row(f"tied:{number}", chosen=["a", "b"], rejected=["c"], subset="Ties", num_correct=2)
    return row | fields


def rm_row(number, **fields):
    return {"id": number, "prompt": f"p{number}", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]} | fields


def jb_row(number, **fields):
    row = {"pair_id": f"u{number}", "original_id": number, "source": "mmlu-pro-law", "question": f"q{number}"}
    row |= {"response_model": "gpt-4o-2024-05-13", "response_A": "first", "response_B": "second", "label": "B>A"}
    return row | fields


def write(path, rows):
    """Rows in the format that the name of the file says."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    content = json.dumps(rows, indent=4) if path.name.endswith((".json", ".json.gz")) else lines
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_official_rows_in_every_file_format(tmp_path, name):
    items, report = RB2.read(write(tmp_path / name, [rb2_row(1), rb2_row(2, subset="precise if")]), None)
    assert [(item.id, item.subset) for item in items] == [("Math/1", "Math"), ("Precise IF/2", "Precise IF")]
    assert (items[0].prompt, items[0].chosen, items[0].rejected) == ("p1", ("a",), ("b", "c", "d"))
    assert (report.read, report.kept) == (2, 2)
    assert report.digest is not None
    (item,), _ = RM_BENCH.read(write(tmp_path / name, [rm_row(7, domain="safety-refuse")]), None)
    assert (item.id, item.category, item.subset) == ("safety-refuse/7", "safety", "safety-refuse")
    (item,), _ = JUDGEBENCH.read(write(tmp_path / name, [jb_row(1)]), None)
    assert (item.id, item.chosen, item.rejected, item.chosen_first) == ("u1", ("second",), ("first",), False)
    assert (item.subset, item.source) == ("mmlu-pro", "gpt-4o-2024-05-13")


def test_couples_of_ties_share_a_cluster_and_a_sample_keeps_them_together(tmp_path):
    rows = [row for i in range(9) for row in (rb2_row(f"ref:{i}", subset="Ties"), tied_row(i), rb2_row(i))]
    items, _ = RB2.read(write(tmp_path / "rb2.jsonl", rows), None)
    clusters = {item.id: item.cluster_id for item in items}
    assert clusters["ref:3"] == clusters["tied:3"] == "ties-3"
    drawn = sample(RB2, items, 10, seed=0)
    assert len(drawn) in (10, 11)
    names = {item.id for item in drawn if item.subset == "Ties"}
    assert names
    assert all(f"ref:{name.split(':')[1]}" in names and f"tied:{name.split(':')[1]}" in names for name in names)
    assert [item.id for item in drawn] == [item.id for item in items if item in drawn]


def test_files_of_one_domain_name_it(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "chat_filtered.json", [rm_row(1), rm_row(2)])
    write(folder / "safety-response_filtered.json", [rm_row(1)])
    items, _ = RM_BENCH.read(folder, None)
    assert [item.id for item in items] == ["chat/1", "chat/2", "safety-response/1"]
    (item,), _ = RM_BENCH.read(write(tmp_path / "code_filtered.json", [rm_row(1)]), None)
    assert item.category == "code"
    write(folder / "total_dataset.json", [rm_row(1, domain="chat")])
    with pytest.raises(DataError, match=r"1 ids occur more than once \(the first: chat/1\).*several files"):
        RM_BENCH.read(folder, None)


@pytest.mark.parametrize(
    ("suite", "row", "reason"),
    [
        ("rewardbench2", rb2_row(1, subset="Maths"), "subset 'Maths' is not one of Factuality"),
        ("rewardbench2", rb2_row(1, chosen=["a", "b"], num_correct=2), "only Ties has several right answers"),
        ("rewardbench2", rb2_row(1, num_correct=2), '"num_correct" is 2, "chosen" holds 1'),
        ("rewardbench2", tied_row(1, chosen=["a"], num_correct=1), "a tied prompt must have several right answers"),
        ("rewardbench2", tied_row(1, rejected=[]), '"rejected" must be a list of texts'),
        ("rewardbench2", tied_row(1, id="12"), '"ref:NUMBER" or "tied:NUMBER", found \'12\''),
        ("rewardbench2", rb2_row(1, prompt=None), "no prompt"),
        ("rm-bench", rm_row(1), "domain None is none of chat, math, code, safety"),
        ("rm-bench", rm_row(1, domain="chat", chosen=["a", "b"]), "wanted 3 right and wrong answers, found 2 and 3"),
        ("judgebench", jb_row(1, label="A=B"), 'label must be "A>B" or "B>A"'),
        ("judgebench", jb_row(1, source="other"), "source 'other' begins with none of mmlu-pro"),
        ("judgebench", jb_row(1, response_A=3), '"response_A" must be text, found int'),
        ("judgebench", jb_row(1, response_A="\ud83d"), '"response_A" holds a lone surrogate'),
        ("judgebench", jb_row(1, response_model="\ud83d"), '"source" holds a lone surrogate'),
        ("rm-bench", rm_row(1, domain="chat\ud83d"), '"id" holds a lone surrogate'),
        ("rewardbench2", rb2_row(1, prompt="\ud83d"), '"prompt" holds a lone surrogate'),
        ("rewardbench2", rb2_row(1, rejected=["a", "b", "\ud83d"]), '"rejected" holds a lone surrogate'),
    ],
)
def test_rows_that_are_no_items_are_counted_and_named(tmp_path, suite, row, reason):
    good = {"rewardbench2": rb2_row(5), "rm-bench": rm_row(5, domain="chat"), "judgebench": jb_row(5)}[suite]
    items, report = SUITES[suite].read(write(tmp_path / "rows.jsonl", [row, good]), None)
    assert len(items) == 1
    assert (report.read, report.kept, report.malformed) == (2, 1, 1)
    assert reason in report.reasons[0][1]
    with pytest.raises(DataError, match="no usable row"):
        SUITES[suite].read(write(tmp_path / "bad.jsonl", [row]), None)


@pytest.mark.parametrize(
    ("suite", "hub_id", "split"),
    [
        ("rewardbench2", "allenai/reward-bench-2", "test"),
        ("rm-bench", "THU-KEG/RM-Bench", "train"),
        ("judgebench", "ScalerLab/JudgeBench", "gpt"),
    ],
)
def test_without_a_file_the_official_split_comes_from_the_hub(monkeypatch, suite, hub_id, split):
    from datasets import Dataset

    from normbt.evaluate import read_suite

    asked = []
    row = {"rewardbench2": rb2_row(1), "rm-bench": rm_row(1, domain="chat"), "judgebench": jb_row(1)}[suite]
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *name: ["train", "test", "gpt", "claude"])
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda label, name, *, split, streaming: (asked.append((label, split)), Dataset.from_list([row]))[1],
    )
    read = read_suite(SUITES[suite], data=None, split=None, limit=None, seed=0)
    assert asked == [(hub_id, split)]
    assert len(read.items) == 1
    assert read.report.source == f"{hub_id} ({split})"


def test_rows_of_another_split_are_left_out_and_a_chosen_split_is_taken_whole(tmp_path):
    rows = [jb_row(1, split="test"), jb_row(2, split="train"), jb_row(3)]
    mixed = write(tmp_path / "rows.jsonl", rows)
    for split, wanted in (("test", 1), ("train", 2), (None, 3)):
        items, report = JUDGEBENCH.read(mixed, split)
        assert (len(items), report.read, report.other_split) == (wanted, wanted, 3 - wanted)
    with pytest.raises(DataError, match="none of its 3 rows is of the split that was asked for"):
        JUDGEBENCH.read(mixed, "gpt")
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", [jb_row(4)])
    write(folder / "test.jsonl", rows)  # what its rows say of other splits was said of another file
    items, report = JUDGEBENCH.read(folder, "test")
    assert (len(items), report.other_split) == (3, 0)


def test_judgebench_counts_the_pairs_of_the_models_it_finds():
    records = [pair(0, correct=True, subset="mmlu-pro", source="claude-3-5-sonnet-20240620")]
    found = JUDGEBENCH.coverage(records)
    assert found["incomplete_subsets"] == {"mmlu-pro": [1, 154]}
    assert found["missing_subsets"] == ["livebench-reasoning", "livebench-math", "livecodebench"]
    assert JUDGEBENCH.leaderboard({"subsets": {"mmlu-pro": 0.5}}, headline=0.25, model="m", template="none") == {
        "mmlu-pro": 50.0,
        "Overall": 25.0,
    }


def test_data_in_a_folder_are_told_apart_by_their_names(tmp_path):
    names = ["rewardbench.jsonl.gz", "rewardbench2.jsonl", "reward-bench-2-test.parquet", "RM-Bench_total.json"]
    names += ["dataset=judgebench,response_model=gpt-4o.jsonl", "pairs.jsonl", "notes.txt", "rewardbenchmark.jsonl"]
    for name in names:
        (tmp_path / name).touch()
    found = {suite: sorted(path.name for path in paths) for suite, paths in find_data(tmp_path).items()}
    assert found == {
        "rewardbench": ["rewardbench.jsonl.gz"],
        "rewardbench2": ["reward-bench-2-test.parquet", "rewardbench2.jsonl"],
        "rm-bench": ["RM-Bench_total.json"],
        "judgebench": ["dataset=judgebench,response_model=gpt-4o.jsonl"],
        "pairs": ["pairs.jsonl"],
    }
    with pytest.raises(DataError, match="is not a folder"):
        find_data(tmp_path / "notes.txt")
