import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer

from normbt import cli
from normbt.diagnose import diagnose, render_diagnosis
from normbt.diagnose import job as job_module
from normbt.diagnose.texts import pair_texts, place_of, word_similarity
from normbt.errors import ConfigError, DataError, ModelError, StateError
from normbt.gradients import check as check_module
from normbt.norm_meter import make_norm_meter
from normbt.packing import TokenPair
from normbt.results import PAIRS_FILE, SUMMARY_FILE, read_diagnosis, write_json
from tiny import BOS, EOS, tiny_model


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def write_pairs(path, count, *, seed=0, **fields):
    """Pairs of random words; three share each prompt. `fields` are lists to take turns from."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        chosen, rejected = (words(*generator.integers(10, 60, generator.integers(2, 9))) for _ in range(2))
        row = {"id": f"p{index}", "prompt": f"w{5 + index // 3} ", "chosen": chosen, "rejected": rejected}
        rows.append(row | {name: values[index % len(values)] for name, values in fields.items()})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "rows.jsonl", 30, category=["math", "chat", None])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint, data):
    """A diagnosis of all thirty pairs, in three chunks; tests only read it."""
    folder = tmp_path_factory.mktemp("diagnosis")
    patch = pytest.MonkeyPatch()
    patch.setattr(job_module, "CHUNK_PAIRS", 12)
    summary = diagnose(checkpoint, data=data, output_dir=folder, resamples=50)
    patch.undo()
    return folder, summary


def gradient_of_pair(model, chosen_ids, rejected_ids):
    """Rewards, hidden states and the gradient of their difference, by name, from two plain forwards."""
    rewards, hidden = [], []
    hook = model.score.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0][0, -1].detach()))
    for ids in (chosen_ids, rejected_ids):
        rewards.append(model(input_ids=torch.tensor([ids])).logits[0, 0])
    hook.remove()
    gradients = torch.autograd.grad(rewards[0] - rewards[1], list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return [reward.item() for reward in rewards], hidden, dict(zip(names, gradients, strict=True))


def test_every_number_of_every_pair_is_what_one_backward_pass_of_its_own_gives(finished, checkpoint, data):
    folder, summary = finished
    read, pairs = read_diagnosis(folder)
    pairs = list(pairs)
    assert read == summary
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert [pair["id"] for pair in pairs] == [row["id"] for row in rows]
    model = tiny_model("llama").train(False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for row, pair in zip(rows, pairs, strict=True):
        chosen_ids, rejected_ids = (
            [*tokenizer(row["prompt"] + row[side], add_special_tokens=False)["input_ids"], EOS]
            for side in ("chosen", "rejected")
        )
        (chosen, rejected), (h_chosen, h_rejected), gradients = gradient_of_pair(model, chosen_ids, rejected_ids)
        d = chosen - rejected
        head = float(gradients["score.weight"].norm())
        full = float(sum(gradient.double().square().sum() for gradient in gradients.values()) ** 0.5)
        error = 1 - 1 / (1 + np.exp(-d))
        distance = float((h_chosen - h_rejected).norm())
        expected = {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "margin_reward": d,
            "error": error,
            "distance": distance,
            "distance_relative": distance / float((h_chosen.norm() + h_rejected.norm()) / 2),
            "distance_cosine": 1 - float(torch.cosine_similarity(h_chosen, h_rejected, dim=0)),
            "gradient_norm": full,
            "gradient_norm_head": head,
            "gradient_norm_backbone": (full**2 - head**2) ** 0.5,
            "update_bt": error * full,
            "weight": min(summary["mu"] / (distance + 1e-6), 10.0),
            "update_normbt": min(summary["mu"] / (distance + 1e-6), 10.0) * error * full,
        }
        assert {name: pair[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert pair["misranked"] == (d <= 0)
        assert (pair["n_tokens_chosen"], pair["n_tokens_rejected"]) == (len(chosen_ids), len(rejected_ids))
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (row["prompt"], row["chosen"], row["rejected"])
    assert summary["mu"] == pytest.approx(np.mean([pair["distance"] for pair in pairs]))


def test_the_summary_is_made_of_the_pairs(finished, data):
    folder, summary = finished
    pairs = list(read_diagnosis(folder)[1])
    assert (summary["kind"], summary["sampled_pairs"], summary["total_pairs"], summary["seed"]) == (
        "diagnosis",
        30,
        30,
        None,
    )
    assert summary["misranked"] == sum(pair["misranked"] for pair in pairs)
    assert summary["without_category"] == 10
    assert list(summary["per_category"]) == ["math", "chat"]
    update = {name: np.array([pair[name] for pair in pairs]) for name in ("update_bt", "update_normbt", "distance")}
    nearest = np.argsort(update["distance"])[:3]
    assert summary["share_by_decile"][0]["share_bt"] == pytest.approx(
        update["update_bt"][nearest].sum() / update["update_bt"].sum()
    )
    assert summary["share_by_decile"][0]["share_normbt"] == pytest.approx(
        update["update_normbt"][nearest].sum() / update["update_normbt"].sum()
    )
    assert summary["product_form"]["max_relative_deviation"] < 1e-4
    assert summary["method"]["pairs_ghost"] + summary["method"]["pairs_exact"] == 30
    assert summary["method"]["parameters"] == sum(p.numel() for p in tiny_model("llama").parameters())
    assert summary["provenance"]["data"][0]["kept"] == 30
    assert summary["provenance"]["config"]["weights"]
    assert summary["peak_memory_bytes"] > 2**20
    assert not list(folder.glob("*.parts"))


def without_what_changes(summary):
    left_out = ("provenance", "peak_memory_bytes")
    return {name: value for name, value in summary.items() if name not in left_out}


class _Interrupted(Exception):
    """The plug was pulled."""


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_diagnosis_goes_on_and_equals_an_unbroken_one(
    tmp_path, checkpoint, data, finished, monkeypatch, caplog, after
):
    monkeypatch.setattr(job_module, "CHUNK_PAIRS", 12)
    measured = []

    def pulling(done, total):
        measured.append(done)
        if len(measured) == after:
            raise _Interrupted

    settings = {"data": data, "output_dir": tmp_path, "resamples": 50}
    with pytest.raises(_Interrupted):
        diagnose(checkpoint, progress=pulling, **settings)
    assert not (tmp_path / SUMMARY_FILE).exists()
    with pytest.raises(StateError, match=r"max_weight was 10\.0, now 5\.0"):
        diagnose(checkpoint, max_weight=5.0, **settings)
    with pytest.raises(StateError, match="seed was 0, now 1"):
        diagnose(checkpoint, seed=1, **settings)
    chunks = []
    run = job_module.ChunkDiagnosis.run
    monkeypatch.setattr(
        job_module.ChunkDiagnosis, "run", lambda self, rows: chunks.append(len(rows)) or run(self, rows)
    )
    caplog.set_level("INFO", "normbt")
    summary = diagnose(checkpoint, **settings)
    assert "Going on with the diagnosis that was cut" in caplog.text
    assert chunks == [12, 12, 6][after:]
    folder, unbroken = finished
    assert (tmp_path / PAIRS_FILE).read_bytes() == (folder / PAIRS_FILE).read_bytes()
    assert without_what_changes(summary) == without_what_changes(unbroken)


@pytest.mark.slow
def test_a_killed_command_goes_on_and_equals_an_unbroken_one(tmp_path, checkpoint, caplog):
    data = write_pairs(tmp_path / "rows.jsonl", 400)
    settings = {"data": data, "max_pairs": 300, "method": "exact", "resamples": 20}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "normbt", "diagnose", checkpoint, *arguments, "--output_dir", cut]
    killed = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((cut / f"{PAIRS_FILE}.parts").glob("00000001*")):
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (cut / SUMMARY_FILE).exists()
    caplog.set_level("INFO", "normbt")
    diagnose(str(checkpoint), output_dir=cut, **settings)
    assert "Going on with the diagnosis that was cut" in caplog.text
    diagnose(str(checkpoint), output_dir=whole, **settings)
    assert (cut / PAIRS_FILE).read_bytes() == (whole / PAIRS_FILE).read_bytes()


def test_a_finished_diagnosis_is_not_done_again_and_not_replaced_by_another(
    tmp_path, checkpoint, data, monkeypatch, caplog
):
    settings = {"data": data, "output_dir": tmp_path, "max_pairs": 4, "resamples": 5}
    first = diagnose(checkpoint, **settings)
    assert (first["sampled_pairs"], first["total_pairs"], first["seed"]) == (4, 30, 0)
    monkeypatch.setattr(job_module, "_measure", None)
    caplog.set_level("INFO", "normbt")
    assert diagnose(checkpoint, **settings) == first
    assert "is complete already" in caplog.text
    with pytest.raises(StateError, match="max_pairs was 4, now 5"):
        diagnose(checkpoint, **(settings | {"max_pairs": 5}))
    monkeypatch.undo()
    (tmp_path / PAIRS_FILE).write_text("spoilt")
    anew = diagnose(checkpoint, **settings, overwrite=True)
    assert anew["mu"] == first["mu"]
    assert len(list(read_diagnosis(tmp_path)[1])) == 4
    assert diagnose(checkpoint, **(settings | {"max_pairs": 5}), overwrite=True)["sampled_pairs"] == 5
    write_json(tmp_path / SUMMARY_FILE, {"schema_version": 1, "kind": "evaluation"})
    with pytest.raises(ConfigError, match="holds a result of kind 'evaluation'"):
        diagnose(checkpoint, **settings)


def test_the_sample_is_seeded_and_keeps_the_order_of_the_data(tmp_path, checkpoint, data):
    ids = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        diagnose(checkpoint, data=data, output_dir=folder, max_pairs=6, seed=seed, resamples=5)
        ids.append([pair["id"] for pair in read_diagnosis(folder)[1]])
    assert ids[0] == ids[1] != ids[2]
    assert ids[0] == sorted(ids[0], key=lambda name: int(name[1:]))


def test_pairs_that_are_equal_or_not_numbers_are_counted_and_null(tmp_path, checkpoint):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    rows = [
        {"prompt": "w5 ", "chosen": "other", "rejected": "words"},  # both are <unk>: the same tokens
        {"prompt": "w6 ", "chosen": "w9 w8", "rejected": "w7"},
        {"prompt": "w7 ", "chosen": "w11 w12", "rejected": "w14"},
        {"prompt": "w7 ", "chosen": "w11", "rejected": "w13 w20"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    folder = tmp_path / "out"
    # A bound that float32 rounds down: in double precision no weight reaches it.
    summary = diagnose(model, tokenizer=tokenizer, data=path, output_dir=folder, resamples=5, max_weight=3.3)
    pairs = list(read_diagnosis(folder)[1])
    assert (summary["non_finite"], summary["ties"], summary["clipped"]) == (1, 1, 1)
    equal, broken = pairs[0], pairs[1]
    # Two forwards of equal tokens may differ by rounding, which the weight multiplies.
    assert (equal["distance"], equal["gradient_norm"], equal["update_normbt"]) == pytest.approx((0, 0, 0), abs=1e-4)
    assert (equal["tie"], equal["misranked"], equal["weight"]) == (True, True, np.float32(3.3))
    assert (broken["misranked"], broken["tie"]) == (True, False)
    assert {broken[name] for name in ("reward_chosen", "error", "distance", "weight", "update_normbt")} == {None}
    assert summary["mu"] == pytest.approx(np.mean([pair["distance"] for pair in pairs if pair is not broken]))
    printed = io.StringIO()
    Console(file=printed, width=200).print(render_diagnosis(summary))
    assert "Pairs with NaN or infinities, left out of every statistic: 1." in printed.getvalue()


def test_rewardbench_has_its_sections_and_its_clusters(tmp_path, checkpoint):
    data = write_pairs(tmp_path / "rows.jsonl", 6, subset=["hep-python", "hep-go", "math-prm"])
    diagnose(checkpoint, data=data, output_dir=tmp_path / "out", resamples=5)
    pairs = list(read_diagnosis(tmp_path / "out")[1])
    assert {pair["category"] for pair in pairs} == {"reasoning"}
    assert len({pair["cluster_id"] for pair in pairs}) == 2


# Texts


def test_texts_are_as_people_read_them():
    user, right, wrong = (
        {"role": "user", "content": "größer?"},
        {"role": "assistant", "content": "ja"},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
    )
    assert pair_texts({"prompt": [user], "chosen": [right], "rejected": [wrong]}) == (
        "user: größer?",
        "assistant: ja",
        "assistant: [{'name': 'f'}]",
    )
    assert pair_texts({"chosen": [user, right], "rejected": [user, wrong]})[0] == "user: größer?"
    assert pair_texts({"chosen": "a b", "rejected": "a c"}) == (None, "a b", "a c")
    assert pair_texts({"prompt": "", "chosen": "b", "rejected": "c"})[0] == ""


def test_a_pair_without_a_prompt_is_a_cluster_of_its_own():
    assert place_of({"id": "x", "category": 3}, None) == (None, "3", None, "pair-x")


def lcs(one, other):
    """Length of the longest common subsequence, by the textbook table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, first in enumerate(one):
        for j, second in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if first == second else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@settings(max_examples=50, deadline=None)
@given(one=st.lists(st.sampled_from("abcd"), max_size=9), other=st.lists(st.sampled_from("abcd"), max_size=9))
def test_similarity_is_that_of_the_longest_common_subsequence(one, other):
    found = word_similarity(" ".join(one), " ".join(other))
    total = len(one) + len(other)
    assert found == pytest.approx(2 * lcs(one, other) / total if total else 1.0)


def test_one_flipped_comparison_and_one_ideograph_are_one_word():
    assert word_similarity("if (a<b)", "if (a>=b)") == pytest.approx(2 * 5 / 13)
    assert word_similarity("我喜欢猫", "我喜欢狗") == pytest.approx(6 / 8)
    assert word_similarity("naïve café", "naïve cafe") == pytest.approx(2 / 4)


# The choice of the method


def token_pairs(count=5):
    generator = np.random.default_rng(0)
    return [
        TokenPair([BOS, *generator.integers(5, 60, 4).tolist()], [BOS, *generator.integers(5, 60, 6).tolist()], 1)
        for _ in range(count)
    ]


def test_ghost_norms_are_used_where_they_agree_and_equal_the_exact_ones():
    model, pairs = tiny_model("llama"), token_pairs()
    meter = make_norm_meter(model, pairs, batch_tokens=64)
    assert (meter.method, meter.check["passed"], meter.check["pairs"]) == ("ghost", True, 4)
    assert meter.check["max_relative_error"] < 1e-5
    exact = make_norm_meter(model, pairs, method="exact", batch_tokens=64)
    np.testing.assert_allclose(meter.norms(pairs).head, exact.norms(pairs).head, rtol=1e-5)
    np.testing.assert_allclose(meter.norms(pairs).backbone, exact.norms(pairs).backbone, rtol=1e-5)


def test_a_wrong_formula_is_caught_and_the_slow_way_used_loudly(monkeypatch, caplog):
    right = check_module.ghost_squares
    monkeypatch.setattr(check_module, "ghost_squares", lambda *arguments: 1.01 * right(*arguments))
    meter = make_norm_meter(tiny_model("llama"), token_pairs(), batch_tokens=64)
    assert (meter.method, meter.check["passed"]) == ("exact", False)
    assert meter.check["max_relative_error"] > meter.check["tolerance"]
    assert "pair by pair, which is slower: method='ghost' DIFFERS FROM one backward per pair" in caplog.text
    with pytest.raises(ModelError, match=r"method ghost is not right for this model: .*Use method auto or exact"):
        make_norm_meter(tiny_model("llama"), token_pairs(), method="ghost", batch_tokens=64)


def test_a_refused_model_is_measured_pair_by_pair_loudly(monkeypatch, caplog):
    def refuse(*arguments):
        raise ModelError("GatedThing has a parameter nobody knows.")

    monkeypatch.setattr(check_module, "ghost_squares", refuse)
    meter = make_norm_meter(tiny_model("llama"), token_pairs(), batch_tokens=64)
    assert (meter.method, meter.check["passed"], meter.check["max_relative_error"]) == ("exact", False, None)
    assert "ghost norms refused: GatedThing has a parameter nobody knows" in caplog.text


def test_what_is_measured_pair_by_pair_already_is_not_advised_to(caplog):
    make_norm_meter(tiny_model("t5"), token_pairs(), batch_tokens=64)
    assert "relative_attention_bias" in caplog.text
    assert "whose per-pair norm is not known." in caplog.text or "can't be told apart." in caplog.text
    assert "Use method" not in caplog.text


def test_a_model_of_nan_is_told_what_it_is(caplog):
    model = tiny_model("llama")
    with torch.no_grad():
        model.score.weight[:] = float("nan")
    assert make_norm_meter(model, token_pairs(), batch_tokens=64).method == "exact"
    assert "Look for NaN in the weights" in caplog.text
    assert "padding" not in caplog.text


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_norms_do_not_depend_on_the_batches_and_leave_the_model_as_it_was(kind):
    model = tiny_model(kind).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    small, large = (
        make_norm_meter(model, token_pairs(), method="exact", batch_tokens=tokens).norms(token_pairs())
        for tokens in (1, 10_000)
    )
    np.testing.assert_allclose(small.full, large.full, rtol=1e-5)
    np.testing.assert_allclose(small.full, np.hypot(small.head, small.backbone))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


# The command


def test_the_command_prints_the_tables_and_writes_the_files(tmp_path, checkpoint, data, capsys):
    arguments = ["diagnose", str(checkpoint), "--data", str(data), "--max-pairs", "12", "--resamples", "20"]
    assert cli.main([*arguments, "--max_weight", "none", "--output_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for text in ("Share of the update, by distance", "At equal error", "math", "a sample (seed 0) of 30"):
        assert text in printed
    summary, _ = read_diagnosis(tmp_path)
    assert summary["max_weight"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_pairs", "-1"], "max_pairs must be at least 1, found -1"),
        (["--eps", "0"], "eps must be positive, found 0"),
        (["--max_weight", "ten"], "wanted a number or none, found 'ten'"),
        (["--confidence", "1"], "confidence must be between 0 and 1"),
        (["--method", "fast"], "fast"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(tmp_path, checkpoint, data, capsys, flags, message):
    arguments = ["diagnose", str(checkpoint), "--data", str(data), "--output_dir", str(tmp_path / "out"), *flags]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_data_is_one_clear_error(tmp_path, checkpoint):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "w5", "chosen": "w6", "rejected": "w6"}\n')
    with pytest.raises(DataError, match="identical"):
        diagnose(checkpoint, data=path, output_dir=tmp_path / "out")


def test_an_adapter_is_diagnosed_over_what_training_would_update(tmp_path, checkpoint, data):
    from peft import LoraConfig, get_peft_model

    from normbt.loading import load_reward_model

    base, tokenizer = load_reward_model(checkpoint)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    adapted.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    summary = diagnose(tmp_path / "adapter", data=data, output_dir=tmp_path / "out", max_pairs=4, resamples=5)
    assert summary["method"]["parameters"] == trained
    assert summary["product_form"]["max_relative_deviation"] < 1e-4
    assert Path(tmp_path / "out" / SUMMARY_FILE).is_file()
