import dataclasses
import gzip
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from normbt.errors import ConfigError, DataError, ModelError
from normbt.evaluate import ScoreTable, evaluate, evaluate_all, render_summary
from normbt.evaluate import answers as answers_module
from normbt.head import capture_hidden
from normbt.results import (
    DATA_REPORT_FILE,
    DETERMINISM_FILE,
    LEADERBOARD_FILE,
    PAIRS_FILE,
    PROMPTS_FILE,
    SUMMARY_FILE,
    EvaluationPair,
    read_evaluation,
    read_records,
)
from normbt.stats import Resampled, cluster_bootstrap, percentile_interval, wilson_interval
from normbt.suites import SUITES
from normbt.suites.rewardbench import cluster_id
from tiny import BOS, EOS, PAD, tiny_model

REAL_DATA = Path(__file__).parents[1].parent / "shared" / "data" / "rewardbench.jsonl.gz"
CHAT_TEMPLATE = "<s>{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}</s>"


@pytest.fixture
def tokenizer():
    """Words w4 to w61 are tokens; every other word is <unk>."""
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 3, "user": 62, "assistant": 63}
    words |= {f"w{i}": i for i in range(4, 62)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def write_rows(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def random_pairs(count, *, seed=0, **fields):
    """Pairs of random words; three pairs share each prompt. `fields` are lists to take turns from."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        chosen, rejected = (words(*generator.integers(10, 60, generator.integers(2, 9))) for _ in range(2))
        row = {"id": f"p{index}", "prompt": f"w{4 + index // 3} ", "chosen": chosen, "rejected": rejected}
        rows.append(row | {name: values[index % len(values)] for name, values in fields.items()})
    return rows


def reward(model, ids):
    with torch.no_grad(), capture_hidden(model) as captured:
        model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    return captured.rewards.item(), captured.hidden[0].clone()


def fake_pair(index, *, correct=True, **fields):
    pair = EvaluationPair(
        id=str(index),
        source=None,
        category=None,
        subset=None,
        cluster_id=str(index),
        score_chosen=1.0,
        score_rejected=0.0,
        correct=correct,
        tie=False,
        distance=1.0,
        n_tokens_chosen=1,
        n_tokens_rejected=1,
        truncated=False,
        n_characters_chosen=1,
        n_characters_rejected=1,
    )
    return {**pair, **fields}


# The job


def test_every_pair_is_scored_as_if_it_were_alone(tmp_path, tokenizer):
    model = tiny_model("llama")
    rows = random_pairs(12, category=["a", "b"], source=["x", "y", "z"])
    summary = evaluate(
        model, tokenizer=tokenizer, suite="pairs", data=write_rows(tmp_path, rows), output_dir=tmp_path / "out",
        resamples=50, batch_tokens=40,
    )  # fmt: skip
    saved, pairs = read_evaluation(tmp_path / "out")
    assert saved == summary
    assert [pair["id"] for pair in pairs] == [row["id"] for row in rows]
    for row, pair in zip(rows, pairs, strict=True):
        chosen_ids, rejected_ids = (
            [*tokenizer(row["prompt"] + row[side])["input_ids"], EOS] for side in ("chosen", "rejected")
        )
        (chosen, chosen_hidden), (rejected, rejected_hidden) = reward(model, chosen_ids), reward(model, rejected_ids)
        assert pair["score_chosen"] == pytest.approx(chosen, abs=1e-5)
        assert pair["score_rejected"] == pytest.approx(rejected, abs=1e-5)
        assert pair["distance"] == pytest.approx((chosen_hidden - rejected_hidden).norm().item(), abs=1e-5)
        assert pair["correct"] == (chosen > rejected)
        assert (pair["n_tokens_chosen"], pair["n_tokens_rejected"]) == (len(chosen_ids), len(rejected_ids))
        assert (pair["n_characters_chosen"], pair["n_characters_rejected"]) == (
            len(row["chosen"]),
            len(row["rejected"]),
        )
        assert (pair["category"], pair["source"], pair["subset"]) == (row["category"], row["source"], None)
    right = sum(pair["correct"] for pair in pairs)
    assert 0 < right < 12
    assert summary["score"] == summary["accuracy"]
    assert summary["score"]["value"] == right / 12
    assert (summary["score"]["pairs"], summary["score"]["clusters"]) == (12, 4)
    assert (summary["score"]["wilson_low"], summary["score"]["wilson_high"]) == wilson_interval(right, 12)
    assert summary["categories"].keys() == {"a", "b"}
    assert summary["sources"].keys() == {"x", "y", "z"}
    assert summary["sections"] == summary["details"] == summary["subsets"] == {}
    assert summary["coverage"] is None
    assert summary["provenance"]["data"][0]["kept"] == 12
    assert summary["provenance"]["config"]["batch_tokens"] == 40
    assert not (tmp_path / "out" / LEADERBOARD_FILE).exists()


def test_ties_and_scores_that_are_not_numbers_are_wrong_counted_and_null(tmp_path, tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = math.nan
    rows = [
        {"prompt": "w5 ", "chosen": "other", "rejected": "words"},  # both are <unk>: the same tokens
        {"prompt": "w6 ", "chosen": "w9 w8", "rejected": "w7"},
        {"prompt": "w7 ", "chosen": "w11", "rejected": "w9"},
    ]
    settings = {"tokenizer": tokenizer, "suite": "pairs", "data": write_rows(tmp_path, rows), "resamples": 20}
    summary = evaluate(model, output_dir=tmp_path / "out", **settings)
    pairs = [json.loads(line) for line in (tmp_path / "out" / PAIRS_FILE).read_text().splitlines()]
    assert [pair["correct"] for pair in pairs] == [False, False, False]
    assert [pair["tie"] for pair in pairs] == [True, False, False]
    assert pairs[1]["score_chosen"] is None
    assert pairs[1]["distance"] is None
    assert pairs[1]["score_rejected"] is not None
    assert pairs[2]["score_rejected"] is None
    assert (summary["score"]["ties"], summary["score"]["non_finite"], summary["score"]["value"]) == (1, 2, 0.0)
    assert summary["tie_policy"] == "wrong"


def test_rewardbench_scores_its_sections_and_writes_the_leaderboard_record(tmp_path, tokenizer):
    subsets = ["math-prm", "hep-go", "mt-bench-hard", "llmbar-natural"]
    rows = random_pairs(40, subset=subsets)
    summary = evaluate(
        tiny_model("llama"), tokenizer=tokenizer, data=write_rows(tmp_path, rows), output_dir=tmp_path, resamples=50
    )
    accuracy = {name: score["value"] for name, score in summary["subsets"].items()}
    assert accuracy.keys() == set(subsets)
    reasoning = (984 * accuracy["math-prm"] + 164 * accuracy["hep-go"]) / (984 + 164)
    chat_hard = (37 * accuracy["mt-bench-hard"] + 100 * accuracy["llmbar-natural"]) / 137
    assert summary["sections"].keys() == {"Chat Hard", "Reasoning"}
    assert summary["sections"]["Reasoning"]["value"] == pytest.approx(reasoning)
    assert summary["sections"]["Chat Hard"]["value"] == pytest.approx(chat_hard)
    assert summary["score"]["value"] == pytest.approx((reasoning + chat_hard) / 2)
    assert summary["headline"] == "mean of 2 sections"
    assert summary["accuracy"]["value"] == pytest.approx(np.mean(list(accuracy.values())))
    assert summary["categories"].keys() == {"reasoning", "chat_hard"}
    assert summary["coverage"]["incomplete_subsets"]["math-prm"] == [10, 447]
    assert len(summary["coverage"]["missing_subsets"]) == 19
    record = json.loads((tmp_path / LEADERBOARD_FILE).read_text())
    assert record == accuracy | {"model": summary["model"], "model_type": "Seq. Classifier", "chat_template": "none"}
    assert list(record) == sorted(record)


def test_rewardbench_without_data_is_the_official_split_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def read(source, *, split):
        asked.append((source, split))
        raise DataError("no network here")

    monkeypatch.setattr("normbt.suites.plain.read_pairs", read)
    with pytest.raises(DataError, match="no network here"):
        evaluate("nowhere", output_dir=tmp_path)
    assert asked == [("allenai/reward-bench", "filtered")]


def test_rewardbench_refuses_other_data(tmp_path, tokenizer):
    settings = {"tokenizer": tokenizer, "output_dir": tmp_path / "out"}
    with pytest.raises(DataError, match=r"needs the columns prompt and subset, found no subset .*--suite pairs"):
        evaluate(tiny_model(), data=write_rows(tmp_path, random_pairs(2)), **settings)
    rows = random_pairs(2, subset=["math"])
    with pytest.raises(DataError, match=r"'math' \(did you mean 'math-prm'\?\)"):
        evaluate(tiny_model(), data=write_rows(tmp_path, rows), **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("suite", "template", "own", "rendered", "first"),
    [
        ("rewardbench", "auto", True, "tokenizer", "<s> user w4 assistant"),
        ("rewardbench", "auto", False, "none", "w4"),
        ("pairs", "auto", True, "none", "w4"),
        ("pairs", "chat", True, "tokenizer", "<s> user w4 assistant"),
        ("pairs", "chat", False, "built-in", "<unk>"),
        ("rewardbench", "plain", True, "none", "w4"),
    ],
)
def test_plain_text_is_rendered_as_asked(tmp_path, tokenizer, monkeypatch, suite, template, own, rendered, first):
    tokenizer.chat_template = CHAT_TEMPLATE if own else None
    seen = []
    monkeypatch.setattr(
        "normbt.evaluate.answers.score_pairs",
        lambda model, chosen, rejected, **settings: (seen.extend(chosen), score_pairs(model, chosen, rejected))[1],
    )
    from normbt.scoring import score_pairs

    summary = evaluate(
        tiny_model(), tokenizer=tokenizer, suite=suite, template=template, resamples=10, output_dir=tmp_path / "out",
        data=write_rows(tmp_path, random_pairs(3, subset=["math-prm"])),
    )  # fmt: skip
    assert summary["inference"]["template"] == rendered
    assert tokenizer.decode(seen[0]).startswith(first)
    assert tokenizer.chat_template == (CHAT_TEMPLATE if own else None)  # the caller's tokenizer stays as it was


def test_conversations_always_go_through_a_template(tmp_path, tokenizer):
    def user(text):
        return {"role": "user", "content": text}

    def assistant(text):
        return {"role": "assistant", "content": text}

    turn = [user("w4"), assistant("w5 w6"), user("w7")]
    rows = [
        {"chosen": [*turn, assistant("w8")], "rejected": [*turn, assistant("w9 w10")]},
        {"chosen": [*turn, assistant("w18")], "rejected": [*turn, assistant("w19 w11")]},
    ]
    tokenizer.chat_template = CHAT_TEMPLATE
    settings = {"tokenizer": tokenizer, "suite": "pairs", "data": write_rows(tmp_path, rows), "resamples": 10}
    summary = evaluate(tiny_model(), output_dir=tmp_path / "out", **settings)
    _, pairs = read_evaluation(tmp_path / "out")
    assert summary["inference"]["template"] == "tokenizer"
    assert len({pair["cluster_id"] for pair in pairs}) == 1  # the turns both answers share are their prompt
    assert pairs[0]["n_characters_rejected"] - pairs[0]["n_characters_chosen"] == len("w9 w10") - len("w8")
    with pytest.raises(ConfigError, match="conversations, which need a chat template"):
        evaluate(tiny_model(), output_dir=tmp_path / "out", template="plain", **settings)


def test_text_that_holds_its_prompt_cannot_become_a_conversation(tmp_path, tokenizer):
    rows = [{"chosen": "w4 w5", "rejected": "w4 w6"}, {"chosen": "w4 w7", "rejected": "w4 w8"}]
    settings = {"tokenizer": tokenizer, "suite": "pairs", "data": write_rows(tmp_path, rows), "resamples": 10}
    summary = evaluate(tiny_model(), output_dir=tmp_path / "out", **settings)
    assert summary["score"]["clusters"] == 2  # nothing says that they share a prompt
    with pytest.raises(ConfigError, match="plain text without a prompt"):
        evaluate(tiny_model(), output_dir=tmp_path / "out", template="chat", **settings)


def test_what_is_cut_is_counted_and_what_the_model_cannot_read_is_refused(tmp_path, tokenizer):
    rows = [
        {"prompt": words(*range(10, 30)) + " ", "chosen": "w5", "rejected": "w6"},
        {"prompt": "w4 ", "chosen": "w5", "rejected": "w6"},
    ]
    settings = {"tokenizer": tokenizer, "suite": "pairs", "data": write_rows(tmp_path, rows), "resamples": 10}
    summary = evaluate(tiny_model(), output_dir=tmp_path / "out", max_length=12, **settings)
    _, pairs = read_evaluation(tmp_path / "out")
    assert [pair["truncated"] for pair in pairs] == [True, False]
    assert pairs[0]["n_tokens_chosen"] == 12
    assert summary["score"]["truncated"] == 1
    assert evaluate(tiny_model(), output_dir=tmp_path / "out", **settings)["inference"]["max_length"] == 128
    with pytest.raises(ConfigError, match="max_length is 129, but the model reads at most 128 tokens"):
        evaluate(tiny_model(), output_dir=tmp_path / "out", max_length=129, **settings)


def test_a_limit_draws_a_random_sample_that_the_seed_decides(tmp_path, tokenizer):
    settings = {"tokenizer": tokenizer, "suite": "pairs", "data": write_rows(tmp_path, random_pairs(60)), "limit": 9}

    def sampled(seed):
        evaluate(tiny_model(), output_dir=tmp_path / "out", seed=seed, resamples=10, **settings)
        return [pair["id"] for pair in read_evaluation(tmp_path / "out")[1]]

    first = sampled(1)
    assert len(first) == 9
    assert first == sorted(first, key=lambda name: int(name[1:]))
    assert first != [f"p{index}" for index in range(9)]
    assert sampled(1) == first
    assert sampled(2) != first


def test_all_wrong_settings_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as refused:
        evaluate("nowhere", suite="rewardbnch", template="x", limit=0, confidence=95, output_dir=tmp_path)
    for part in (
        "one of rewardbench, rewardbench2, rm-bench, judgebench, pairs, found 'rewardbnch'",
        "template must",
        "limit must",
        "between 0 and 1",
    ):
        assert part in str(refused.value)
    with pytest.raises(ConfigError, match=r"'pairs' has no data of its own.*--data"):
        evaluate("nowhere", suite="pairs", output_dir=tmp_path)
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        evaluate(tiny_model(), suite="pairs", data=write_rows(tmp_path, random_pairs(2)), output_dir=tmp_path)


def test_a_tokenizer_of_another_model_is_named(tmp_path, tokenizer):
    model = tiny_model("llama", vocab_size=32)
    with pytest.raises(ModelError, match=r"token id \d\d, the model knows 32 tokens: they do not belong together"):
        evaluate(model, tokenizer=tokenizer, suite="pairs", data=write_rows(tmp_path, random_pairs(9)),
                 output_dir=tmp_path)  # fmt: skip


def test_a_model_from_a_folder_and_the_baseline_of_a_random_head(tmp_path, tokenizer):
    data, progress = write_rows(tmp_path, random_pairs(6)), []
    for name, model in (("rm", tiny_model("bert")), ("base", tiny_model("bert").bert)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    settings = {"suite": "pairs", "data": data, "output_dir": tmp_path / "out", "resamples": 10, "device": "cpu"}
    trained = evaluate(tmp_path / "rm", progress=lambda *done: progress.append(done), **settings)
    assert not trained["inference"]["untrained_head"]
    assert progress[-1] == (12, 12)
    assert trained["inference"]["dtype"] == "float32"
    assert trained["model"] == str(tmp_path / "rm")
    with pytest.raises(ModelError, match="has no scoring head"):
        evaluate(tmp_path / "base", **settings)
    baseline = evaluate(tmp_path / "base", allow_untrained_head=True, **settings)
    assert baseline["inference"]["untrained_head"]
    assert "scoring head is random" in rendered(baseline)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, not us
def test_an_adapter_is_evaluated_like_the_model_it_makes(tmp_path, tokenizer):
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    adapter = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])).eval()
    settings = {"suite": "pairs", "data": write_rows(tmp_path, random_pairs(9)), "resamples": 10}
    for name, model in (("plain", tiny_model("llama")), ("adapted", adapter)):  # an untrained adapter changes nothing
        evaluate(model, tokenizer=tokenizer, output_dir=tmp_path / name, **settings)
    (_, plain), (summary, adapted) = (read_evaluation(tmp_path / name) for name in ("plain", "adapted"))
    assert summary["inference"]["dtype"] == "float32"
    assert summary["model"] == "LlamaForSequenceClassification"
    assert [pair["score_chosen"] for pair in adapted] == pytest.approx([pair["score_chosen"] for pair in plain])


# Scores and their table


def rendered(summary):
    console = Console(width=400, file=io.StringIO())
    console.print(render_summary(summary))
    return console.file.getvalue()


def test_the_table_shows_sections_intervals_baseline_and_what_is_missing(tmp_path, tokenizer):
    rows = random_pairs(40, subset=["math-prm", "donotanswer"], source=["x", "y"])
    summary = evaluate(
        tiny_model(), tokenizer=tokenizer, data=write_rows(tmp_path, rows), output_dir=tmp_path, resamples=50
    )
    text = rendered(summary)
    for name in ("Safety", "Reasoning"):
        score = summary["sections"][name]
        line = next(line for line in text.splitlines() if name in line)
        assert f"{score['value']:.1%}" in line
        assert f"{score['low']:.1%} to {score['high']:.1%}" in line
        assert f"{score['length_only']:.1%}" in line
    assert "mean of 2 sections" in text
    assert "Subsets without data, left out of the scores: alpacaeval-easy" in text
    assert "and 15 more" in text
    assert "math-prm 20 of 447" in text
    assert "source x" in text
    assert "Ties and NaN count as wrong" in text
    assert "random" not in text


def test_intervals_are_those_of_the_cluster_bootstrap():
    generator = np.random.default_rng(0)
    pairs = [
        fake_pair(index, correct=bool(generator.random() < 0.6), cluster_id=f"c{index // 4}", category="ab"[index % 2])
        for index in range(80)
    ]
    table = ScoreTable(SUITES["pairs"], pairs, resamples=4000, seed=5)
    drawn = cluster_bootstrap(
        [pair["correct"] for pair in pairs],
        [pair["category"] for pair in pairs],
        [pair["cluster_id"] for pair in pairs],
        resamples=4000,
        seed=5,
    )
    whole = table.score(table.outcomes.accuracy())
    assert (whole["low"], whole["high"]) == pytest.approx(
        percentile_interval(drawn.overall()[:, 0], drawn=Resampled(20, 1))
    )
    by_category = table.by("categories")
    assert list(by_category) == ["a", "b"]
    for position, score in enumerate(by_category.values()):
        assert (score["low"], score["high"]) == pytest.approx(
            percentile_interval(drawn.means()[:, position, 0], drawn=Resampled(20, 1))
        )
        assert score["clusters"] == 20
    assert table.by("sources") == {}


def test_the_error_of_a_weighted_section_is_the_one_of_the_formula():
    """Reasoning counts 447 and 984 pairs half each: SE² = ¼ (p q / 447 + p' q' / 984) for independent pairs."""
    pairs = [fake_pair(f"m{i}", correct=i % 2 == 0, subset="math-prm") for i in range(447)]
    pairs += [fake_pair(f"c{i}", correct=i % 4 != 0, subset="hep-go") for i in range(984)]
    table = ScoreTable(SUITES["rewardbench"], pairs, resamples=10_000)
    score = table.scores(table.outcomes.sections())["Reasoning"]
    # With one of the six code subsets the weights are 984 and 164.
    first, second = 984 / 1148, 164 / 1148
    error = math.sqrt(first**2 * 0.25 / 447 + second**2 * 0.1875 / 984)
    assert (score["high"] - score["low"]) / (2 * 1.96) == pytest.approx(error, rel=0.05)
    assert score["value"] == pytest.approx(first * 224 / 447 + second * 0.75)


def test_the_longer_answer_is_a_coin_where_lengths_are_equal():
    lengths = [(2, 1), (1, 2), (3, 3), (5, 1)]
    pairs = [
        fake_pair(index, n_characters_chosen=chosen, n_characters_rejected=rejected)
        for index, (chosen, rejected) in enumerate(lengths)
    ]
    table = ScoreTable(SUITES["pairs"], pairs, resamples=10)
    assert table.score(table.outcomes.accuracy())["length_only"] == 2.5 / 4


@pytest.mark.skipif(not REAL_DATA.exists(), reason="the real RewardBench file is not here")
def test_the_longer_answer_on_the_real_benchmark():
    """Published with the data: taking the longer answer scores Chat .80, Chat Hard .29, Safety .42, Reasoning .40."""
    with gzip.open(REAL_DATA, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    pairs = [
        fake_pair(
            row["id"],
            subset=row["subset"],
            category=row["category"],
            cluster_id=cluster_id(row["subset"], row["prompt"]),
            n_characters_chosen=len(row["chosen"]),
            n_characters_rejected=len(row["rejected"]),
        )
        for row in rows
    ]
    table = ScoreTable(SUITES["rewardbench"], pairs, resamples=10)
    found = {name: round(score["length_only"], 2) for name, score in table.by("categories").items()}
    assert found == {"chat": 0.80, "chat_hard": 0.29, "safety": 0.42, "reasoning": 0.40}
    # The benchmark's own weights count math-prm, where the longer answer is nearly always wrong, for half of Reasoning.
    assert round(table.scores(table.outcomes.sections())["Reasoning"]["length_only"], 2) == 0.31


def test_the_summary_is_written_last(tmp_path, tokenizer, monkeypatch):
    """Whoever finds a summary finds a complete evaluation."""
    written = []
    import normbt.evaluate.run as run

    for name in ("write_json", "write_jsonl"):
        real = getattr(run, name)
        monkeypatch.setattr(
            run, name, lambda path, *a, real=real, **k: (written.append(Path(path).name), real(path, *a, **k))[1]
        )
    rows = random_pairs(3, subset=["math-prm"])
    evaluate(tiny_model(), tokenizer=tokenizer, data=write_rows(tmp_path, rows), output_dir=tmp_path, resamples=10)
    assert written == [PAIRS_FILE, LEADERBOARD_FILE, SUMMARY_FILE]


# Suites with several answers


def prompts_of(suite, count, *, seed=0):
    """Rows of a benchmark of several answers, in words that the tokenizer knows."""
    generator = np.random.default_rng(seed)

    def answers(number):
        return [words(*generator.integers(10, 60, generator.integers(2, 9))) for _ in range(number)]

    if suite == "rm-bench":
        domains = ["chat", "math", "code", "safety-refuse"]
        return [
            {"id": i, "prompt": f"w{4 + i}", "chosen": answers(3), "rejected": answers(3), "domain": domains[i % 4]}
            for i in range(count)
        ]
    rows = [
        {"id": str(i), "prompt": f"w{4 + i}", "chosen": answers(1), "rejected": answers(3), "subset": "Math"}
        for i in range(count)
    ]
    for i in range(2):
        for kind, number in (("ref", 1), ("tied", 2)):
            rows.append(
                {"id": f"{kind}:{i}", "prompt": f"w{30 + i}", "chosen": answers(number), "rejected": answers(2)}
                | {"subset": "Ties"}
            )
    return rows


@pytest.mark.parametrize("suite", ["rm-bench", "rewardbench2"])
def test_every_answer_of_a_prompt_is_scored_as_if_it_were_alone(tmp_path, tokenizer, suite):
    model, rows = tiny_model("llama"), prompts_of(suite, 8)
    summary = evaluate(
        model, tokenizer=tokenizer, suite=suite, data=write_rows(tmp_path, rows), output_dir=tmp_path / "out",
        resamples=50, check_determinism=True,
    )  # fmt: skip
    saved, records = read_records(tmp_path / "out")
    assert saved == summary
    assert summary["records_file"] == PROMPTS_FILE
    assert len(records) == len(rows)
    for row, record in zip(rows, records, strict=True):
        for side in ("chosen", "rejected"):
            ids = [[*tokenizer(row["prompt"] + text)["input_ids"], EOS] for text in row[side]]
            assert record[f"scores_{side}"] == pytest.approx([reward(model, one)[0] for one in ids], abs=1e-5)
            assert record[f"n_tokens_{side}"] == [len(one) for one in ids]
            assert record[f"n_characters_{side}"] == [len(text) for text in row[side]]
    score = summary["score"]
    assert score["low"] <= score["value"] <= score["high"]
    assert score["value"] == pytest.approx(np.mean([one["value"] for one in summary["sections"].values()]))
    assert score["wilson_low"] is None
    text = rendered(summary)
    assert summary["headline"] in text
    for name in (*summary["sections"], *summary["details"]):
        assert name in text
    flat = json.loads((tmp_path / "out" / LEADERBOARD_FILE).read_text())
    if suite == "rm-bench":
        assert summary["sections"].keys() == {"chat", "math", "code", "safety"}
        assert score["pairs"] == 9 * len(rows)
        assert flat["total_avg_acc"] == score["value"]
        assert records[0]["credit"] * 9 == pytest.approx(
            sum(c > r for c in records[0]["scores_chosen"] for r in records[0]["scores_rejected"])
        )
    else:
        assert summary["sections"].keys() == {"Math", "Ties"}
        assert summary["tie_policy"] == "fractional"
        assert flat["Ties"] == summary["sections"]["Ties"]["value"]
        assert flat["model_type"] == "Seq. Classifier"
    with pytest.raises(DataError, match="prompts with several answers, where pairs are wanted"):
        read_evaluation(tmp_path / "out")


def test_judgebench_gives_ties_to_the_second_answer_and_prints_percent(tmp_path, tokenizer):
    rows = [
        {"pair_id": f"u{i}", "source": "mmlu-pro-law", "question": f"w{4 + i}", "response_A": "other"}
        | {"response_B": "words", "label": label}  # both are <unk>: the same tokens
        for i, label in enumerate(["A>B", "B>A", "B>A"])
    ]
    summary = evaluate(
        tiny_model("llama"), tokenizer=tokenizer, suite="judgebench", data=write_rows(tmp_path, rows),
        output_dir=tmp_path / "out", resamples=20,
    )  # fmt: skip
    _, pairs = read_evaluation(tmp_path / "out")
    assert [(pair["correct"], pair["tie"]) for pair in pairs] == [(False, True), (True, True), (True, True)]
    assert (summary["score"]["value"], summary["score"]["ties"], summary["tie_policy"]) == (2 / 3, 3, "second")
    flat = json.loads((tmp_path / "out" / LEADERBOARD_FILE).read_text())
    assert flat == pytest.approx({"mmlu-pro": 200 / 3, "Overall": 200 / 3})
    assert "A tie is a decision for the second answer" in rendered(summary)


def test_rewards_do_not_depend_on_batches_or_on_the_padding_side(tmp_path, tokenizer):
    data, found = write_rows(tmp_path, random_pairs(12)), []
    for side, batch_tokens in (("right", 1), ("left", 40), ("left", 10_000), ("right", 10_000)):
        tokenizer.padding_side = side
        evaluate(
            tiny_model("llama"), tokenizer=tokenizer, suite="pairs", data=data, output_dir=tmp_path / "out",
            resamples=10, batch_tokens=batch_tokens,
        )  # fmt: skip
        found.append([pair["score_chosen"] for pair in read_evaluation(tmp_path / "out")[1]])
    for scores in found[1:]:
        assert scores == pytest.approx(found[0], abs=1e-5)


# Determinism


def test_the_check_finds_nothing_in_float32_and_reports_it_everywhere(tmp_path, tokenizer):
    settings = {"tokenizer": tokenizer, "suite": "pairs", "data": write_rows(tmp_path, random_pairs(130))}
    summary = evaluate(
        tiny_model("llama"), output_dir=tmp_path / "out", check_determinism=True, resamples=10, **settings
    )
    found = summary["determinism"]
    assert (found["records"], found["answers"], found["comparisons"]) == (100, 200, 100)
    assert found["largest_difference"] < 1e-5
    assert found["order_flips"] == found["non_finite_changed"] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / DETERMINISM_FILE).read_text().splitlines()]
    assert len(rows) == 200
    scores = {pair["id"]: pair["score_chosen"] for pair in read_evaluation(tmp_path / "out")[1]}
    assert all(row["score"] == scores[row["id"]] for row in rows if row["answer"] == "chosen")
    assert "Scored again one at a time (200 answers of 100 records)" in rendered(summary)
    assert "0 of 100 comparisons change their order" in rendered(summary)


def test_the_check_finds_what_batches_change(tmp_path, tokenizer, monkeypatch):
    """A fault planted in the batched scores: every reward is moved, one pair is turned round, one reward is lost."""
    real = answers_module.score_pairs

    def faulty(*arguments, **settings):
        scores = real(*arguments, **settings)
        chosen, rejected = scores.chosen + np.float32(0.25), scores.rejected + np.float32(0.25)
        chosen[0], rejected[0] = rejected[0], chosen[0]
        chosen[1] = np.nan
        return dataclasses.replace(scores, chosen=chosen, rejected=rejected)

    monkeypatch.setattr(answers_module, "score_pairs", faulty)
    summary = evaluate(
        tiny_model("llama"), tokenizer=tokenizer, suite="pairs", data=write_rows(tmp_path, random_pairs(6)),
        output_dir=tmp_path / "out", check_determinism=True, resamples=10,
    )  # fmt: skip
    found = summary["determinism"]
    assert found["largest_difference"] > 0.2
    assert found["order_flips"] == 2  # the pair turned round, and the one that lost a reward
    assert found["non_finite_changed"] == 1
    assert "1 became or ceased to be a number" in rendered(summary)


# All suites


def test_all_runs_what_is_there_and_says_why_the_rest_is_not(tmp_path, tokenizer):
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data, prompts_of("rm-bench", 4)).rename(data / "rm-bench.jsonl")
    write_rows(data, random_pairs(6)).rename(data / "pairs.jsonl")
    for name in ("judgebench-gpt.jsonl", "judgebench-claude.jsonl"):
        (data / name).touch()
    settings = {"tokenizer": tokenizer, "resamples": 10}
    summaries, skipped = evaluate_all(tiny_model("llama"), output_dir=tmp_path / "out", data=data, **settings)
    assert list(summaries) == ["rm-bench", "pairs"]
    for name, summary in summaries.items():
        assert read_records(tmp_path / "out" / name)[0] == summary
        assert summary["provenance"]["config"]["suite"] == name
    assert skipped.keys() == {"rewardbench", "rewardbench2", "judgebench"}
    assert "no name in" in skipped["rewardbench"]
    assert "begins with rewardbench or reward-bench" in skipped["rewardbench"]
    assert "judgebench-claude.jsonl, judgebench-gpt.jsonl" in skipped["judgebench"]
    (data / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="no usable pair"):  # data that are there and broken are not passed over
        evaluate_all(tiny_model("llama"), output_dir=tmp_path / "out", data=data, **settings)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"No suite has data\. rewardbench: no name in"):
        evaluate_all(tiny_model("llama"), output_dir=tmp_path / "out", data=empty, **settings)


@pytest.mark.slow
def test_processes_share_the_scoring_and_give_the_files_of_one(tmp_path, tokenizer):
    data, model = tmp_path / "data", tmp_path / "rm"
    data.mkdir()
    write_rows(data, prompts_of("rm-bench", 8)).rename(data / "rm-bench.jsonl")
    write_rows(data, prompts_of("rewardbench2", 8)).rename(data / "rewardbench2.jsonl")
    write_rows(data, random_pairs(60, subset=["math-prm", "donotanswer"])).rename(data / "rewardbench.jsonl")
    tiny_model("llama").save_pretrained(model)
    tokenizer.save_pretrained(model)
    settings = {"batch_tokens": 64, "resamples": 20, "check_determinism": True}
    one, _ = evaluate_all(model, output_dir=tmp_path / "one", data=data, device="cpu", **settings)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "normbt", "evaluate", str(model), "--all", "--data", str(data), "--check_determinism"]
    command += ["--batch_tokens", "64", "--resamples", "20", "--output_dir", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("Result files in") == 1
    for said_once in ("scoring", "rm-bench.jsonl: 8 rows read"):
        assert finished.stderr.count(said_once) == 1
    assert list(one) == ["rewardbench", "rewardbench2", "rm-bench"]
    for suite, summary in one.items():
        names = {path.name for path in (tmp_path / "one" / suite).iterdir()}
        assert {path.name for path in (tmp_path / "two" / suite).iterdir()} == names
        for name in names:
            shared, alone = (_contents(tmp_path / folder / suite / name) for folder in ("two", "one"))
            assert _equal_but_for_rounding(shared, alone), name
        assert summary["inference"]["batching"] == "packed"


def _contents(path):
    """Of a result file, without what differs between two runs with equal results."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    whole = json.loads(path.read_text())
    return {name: value for name, value in whole.items() if name not in ("provenance", "pairs_sha256")}


def _equal_but_for_rounding(one, other):
    """On CPUs the last bit of a product depends on where in memory the numbers lie."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal_but_for_rounding(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal_but_for_rounding, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=1e-5)
    return one == other


def test_all_from_the_hub_skips_what_cannot_be_reached(tmp_path, tokenizer, monkeypatch):
    def unreachable(source, *arguments, **settings):
        raise DataError(f"{source}: no network here")

    monkeypatch.setattr("normbt.suites.rows.open_source", unreachable)
    monkeypatch.setattr("normbt.suites.plain.read_pairs", unreachable)
    with pytest.raises(DataError) as refused:
        evaluate_all(tiny_model("llama"), tokenizer=tokenizer, output_dir=tmp_path)
    for part in ("rm-bench: THU-KEG/RM-Bench: no network here", "pairs: it has no official data"):
        assert part in str(refused.value)


def test_the_seed_a_model_was_trained_with_is_recorded(tmp_path, tokenizer):
    run = tmp_path / "rm"
    for folder in (run, run / "checkpoint-5"):
        tiny_model("llama").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    settings = {"suite": "pairs", "data": write_rows(tmp_path, random_pairs(4)), "resamples": 10, "device": "cpu"}
    assert evaluate(run, output_dir=tmp_path / "out", **settings)["training_seed"] is None
    report = {"schema_version": 1, "kind": "training", "sets": {}, "provenance": {"seed": 7}}
    (run / DATA_REPORT_FILE).write_text(json.dumps(report))
    for folder in (run, run / "checkpoint-5"):
        assert evaluate(folder, output_dir=tmp_path / "out", **settings)["training_seed"] == 7
