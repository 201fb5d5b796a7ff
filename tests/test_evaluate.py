import gzip
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from normbt import rewardbench
from normbt.errors import ConfigError, DataError, ModelError
from normbt.evaluate import ScoreTable, evaluate, render_summary, scores_by
from normbt.head import capture_hidden
from normbt.results import LEADERBOARD_FILE, PAIRS_FILE, SUMMARY_FILE, EvaluationPair, read_evaluation
from normbt.stats import cluster_bootstrap, percentile_interval, wilson_interval
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
    assert summary["sections"] == summary["subsets"] == {}
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
    assert record == accuracy | {"model": summary["model"], "model_type": "Seq. Classifier"}
    assert list(record) == sorted(record)


def test_rewardbench_without_data_is_the_official_split_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def read(source, *, split):
        asked.append((source, split))
        raise DataError("no network here")

    monkeypatch.setattr("normbt.evaluate.job.read_pairs", read)
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
        "normbt.evaluate.job.score_pairs",
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
    for part in ("one of rewardbench, pairs, found 'rewardbnch'", "template must", "limit must", "between 0 and 1"):
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
    assert "Subsets without pairs, left out of the sections: alpacaeval-easy" in text
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
    table = ScoreTable(pairs, resamples=4000, seed=5)
    drawn = cluster_bootstrap(
        [pair["correct"] for pair in pairs],
        [pair["category"] for pair in pairs],
        [pair["cluster_id"] for pair in pairs],
        resamples=4000,
        seed=5,
    )
    whole = table.accuracy()
    assert (whole["low"], whole["high"]) == pytest.approx(percentile_interval(drawn.overall()[:, 0]))
    by_category = scores_by(table, "category")
    assert list(by_category) == ["a", "b"]
    for position, score in enumerate(by_category.values()):
        assert (score["low"], score["high"]) == pytest.approx(percentile_interval(drawn.means()[:, position, 0]))
        assert score["clusters"] == 20
    assert scores_by(table, "source") == {}


def test_the_error_of_a_weighted_section_is_the_one_of_the_formula():
    """Reasoning counts 447 and 984 pairs half each: SE² = ¼ (p q / 447 + p' q' / 984) for independent pairs."""
    pairs = [fake_pair(f"m{i}", correct=i % 2 == 0, subset="math-prm") for i in range(447)]
    pairs += [fake_pair(f"c{i}", correct=i % 4 != 0, subset="hep-go") for i in range(984)]
    table = ScoreTable(pairs, resamples=10_000)
    score = table.sections()["Reasoning"]
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
    assert ScoreTable(pairs, resamples=10).accuracy()["length_only"] == 2.5 / 4


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
            cluster_id=rewardbench.cluster_id(row["subset"], row["prompt"]),
            n_characters_chosen=len(row["chosen"]),
            n_characters_rejected=len(row["rejected"]),
        )
        for row in rows
    ]
    table = ScoreTable(pairs, resamples=10)
    found = {name: round(score["length_only"], 2) for name, score in scores_by(table, "category").items()}
    assert found == {"chat": 0.80, "chat_hard": 0.29, "safety": 0.42, "reasoning": 0.40}
    # The benchmark's own weights count math-prm, where the longer answer is nearly always wrong, for half of Reasoning.
    assert round(table.sections()["Reasoning"]["length_only"], 2) == 0.31


def test_the_summary_is_written_last(tmp_path, tokenizer, monkeypatch):
    """Whoever finds a summary finds a complete evaluation."""
    written = []
    import normbt.evaluate.job as job

    for name in ("write_json", "write_jsonl"):
        real = getattr(job, name)
        monkeypatch.setattr(
            job, name, lambda path, *a, real=real, **k: (written.append(Path(path).name), real(path, *a, **k))[1]
        )
    rows = random_pairs(3, subset=["math-prm"])
    evaluate(tiny_model(), tokenizer=tokenizer, data=write_rows(tmp_path, rows), output_dir=tmp_path, resamples=10)
    assert written == [PAIRS_FILE, LEADERBOARD_FILE, SUMMARY_FILE]
