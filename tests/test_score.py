"""`normbt score`: every row gets the reward it would get alone, whatever happens on the way."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from normbt import cli
from normbt.errors import ConfigError, DataError, ModelError, StateError
from normbt.head import capture_hidden
from normbt.loading import load_reward_model
from normbt.moments import join_moments, moments_of
from normbt.pairs.check import Malformed
from normbt.pairs.files import Row
from normbt.pairs.texts import scorable_row
from normbt.results import NORMALISATION_FILE, read_json, read_jsonl
from normbt.results import files as files_module
from normbt.score import parquet as parquet_module
from normbt.score import read_normalisation, score_rows
from normbt.score.parquet import write_parquet

TEMPLATE = "<bos>{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}<eos>"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def words(generator, count):
    return " ".join(f"w{number}" for number in generator.integers(5, 64, count))


def answers(count, seed=0):
    generator = np.random.default_rng(seed)
    return [
        {"prompt": words(generator, 3) + " ", "response": words(generator, 2 + index % 5), "number": index}
        for index in range(count)
    ]


def reward_alone(checkpoint, text):
    model, tokenizer = load_reward_model(checkpoint, device="cpu")
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad(), capture_hidden(model) as captured:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return captured.rewards.item(), ids.shape[1]


def run(checkpoint, data, output, **settings):
    return score_rows(checkpoint, data=data, output=output, **{"device": "cpu", "chunk_rows": 4} | settings)


# The job


def test_every_row_is_carried_through_in_order_with_its_own_reward(tmp_path, checkpoint):
    rows = [row | {"tags": ["a", {"b": None}], "größe": 0.5} for row in answers(11)]
    summary = run(checkpoint, write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", batch_tokens=20)
    found = list(read_jsonl(tmp_path / "out.jsonl"))
    assert [row["id"] for row in found] == [f"row-{index}" for index in range(1, 12)]
    for row, record in zip(rows, found, strict=True):
        reward, tokens = reward_alone(checkpoint, row["prompt"] + row["response"])
        assert {name: record[name] for name in row} == row
        assert record["reward"] == pytest.approx(reward, abs=1e-5)
        assert (record["reward_tokens"], record["reward_truncated"]) == (tokens, False)
    rewards = np.array([record["reward"] for record in found])
    assert summary["rewards"]["mean"] == pytest.approx(rewards.mean(), rel=1e-12)
    assert summary["rewards"]["std"] == pytest.approx(rewards.std(), rel=1e-12)
    assert (summary["counts"]["read"], summary["counts"]["scored"]) == (11, 11)
    assert summary == read_json(tmp_path / "out.summary.json", kind="scoring")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.summary.json", "rows.jsonl"]


def test_both_answers_of_a_pair_get_a_reward(tmp_path, checkpoint, pairs_file):
    run(checkpoint, pairs_file, tmp_path / "out.jsonl", column="rm")
    for row in read_jsonl(tmp_path / "out.jsonl"):
        for side in ("chosen", "rejected"):
            reward, tokens = reward_alone(checkpoint, row["prompt"] + row[side])
            assert row[f"rm_{side}"] == pytest.approx(reward, abs=1e-5)
            assert row[f"rm_tokens_{side}"] == tokens


def test_conversations_and_text_in_one_file_become_conversations(tmp_path, checkpoint):
    from transformers import AutoTokenizer

    model, _ = load_reward_model(checkpoint, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = TEMPLATE
    user, assistant = {"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}
    rows = [
        {"messages": [user, assistant]},
        {"prompt": [user], "response": [assistant]},
        {"prompt": "w5 w6", "completion": "w7"},
        {"prompt": [user], "text": "w7"},
        {"prompt": "w5 w6", "response": [user, assistant]},
        {"text": "w5 w6 w7"},
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    summary = score_rows(model, tokenizer=tokenizer, data=data, output=tmp_path / "out.jsonl")
    assert len({row["reward"] for row in read_jsonl(tmp_path / "out.jsonl")}) == 1
    assert (summary["counts"]["scored"], summary["counts"]["malformed"]) == (5, 1)
    assert 'plain text without a "prompt" cannot become a conversation' in summary["reasons"][0]["reason"]
    assert summary["inference"]["template"] == "tokenizer"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a"}, 'no "response", no "completion", no "text", no "messages"'),
        ({"response": "a", "question": "b"}, '"response" without "prompt", but a column "question": rename it'),
        ({"completion": "a"}, '"completion" without "prompt"'),
        ({"prompt": "a", "response": None}, '"response" is null'),
        ({"prompt": "a", "chosen": "b"}, 'no "rejected"'),
        ({"messages": [{"role": "user", "content": "a"}]}, '"messages" must end with a message of the assistant'),
        ({"messages": "a"}, '"messages" must be a list of messages, found text'),
        ({"prompt": "a", "response": "b", "id": 1.5}, '"id" must be text or a whole number'),
        ({"prompt": "a", "response": "\ud800"}, "lone surrogate"),
        ({"prompt": "a", "response": "b", "note": "half \ud83d"}, '"note" holds a lone surrogate at character 5'),
        ({"prompt": "a", "response": "b", "notes": [{"k": "\ud83d"}]}, '"notes" holds a lone surrogate'),
        ({"prompt": "a", "response": "b", "text": "\ud83d"}, '"text" holds a lone surrogate'),
        ({"prompt": "a", "response": "b", "\ud83d": 1}, "lone surrogate"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "\ud83d"}, '"margin" holds a lone surrogate'),
        ({"messages": [{"role": "assistant", "content": "a", "\ud83d": None}]}, '"messages" holds a lone surrogate'),
        ({"messages": [{"role": "assistant", "tool_calls": ["\ud83d"]}]}, '"messages" holds a lone surrogate'),
    ],
)
def test_what_cannot_be_scored_says_why(row, problem):
    with pytest.raises(Malformed, match=problem.replace(".", r"\.")):
        scorable_row(Row(1, row))


def test_malformed_rows_are_left_out_counted_and_named_or_stop_the_run(tmp_path, checkpoint):
    data = write_rows(tmp_path / "rows.jsonl", answers(6))
    lines = data.read_text().splitlines()
    lines[1], lines[4] = '{"prompt": "w5"', '{"chosen": "w5", "rejected": "w6"}'
    data.write_text("\n".join([*lines, '{"prompt": "w5 ", "response": " "}']))
    summary = run(checkpoint, data, tmp_path / "out.jsonl")
    assert [row["id"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["row-1", "row-3", "row-4", "row-6", "row-7"]
    counts = summary["counts"]
    assert (counts["read"], counts["scored"], counts["malformed"], counts["empty"]) == (7, 5, 2, 1)
    assert [reason["row"] for reason in summary["reasons"]] == [2, 5]
    assert "a row of pairs, where the data began with answers" in summary["reasons"][1]["reason"]
    with pytest.raises(DataError, match=r"row 2: broken JSON.*--on_malformed skip"):
        run(checkpoint, data, tmp_path / "stopped.jsonl", on_malformed="stop")
    with pytest.raises(DataError, match=r"none of its 1 rows can be scored.*\n  row 1: no"):
        run(checkpoint, write_rows(tmp_path / "none.jsonl", [{"a": 1}]), tmp_path / "none_out.jsonl")


def test_rewards_that_are_not_numbers_are_null_and_counted(tmp_path, checkpoint):
    model, tokenizer = load_reward_model(checkpoint, device="cpu")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = float("nan")
    rows = [{"prompt": "w5 ", "response": text} for text in ("w6", "w9", "w7")]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    summary = score_rows(model, tokenizer=tokenizer, data=data, output=tmp_path / "out.jsonl")
    assert [row["reward"] is None for row in read_jsonl(tmp_path / "out.jsonl")] == [False, True, False]
    assert (summary["counts"]["non_finite"], summary["rewards"]["count"]) == (1, 2)


def test_a_column_of_the_data_is_never_overwritten(tmp_path, checkpoint):
    data = write_rows(tmp_path / "rows.jsonl", [row | {"reward": 1} for row in answers(3)])
    with pytest.raises(ConfigError, match=r"has a column reward already.*--column"):
        run(checkpoint, data, tmp_path / "out.jsonl")
    run(checkpoint, data, tmp_path / "out.jsonl", column="second", overwrite=True)
    assert {row["reward"] for row in read_jsonl(tmp_path / "out.jsonl")} == {1}


def test_all_wrong_settings_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as refused:
        score_rows(
            "x", data="y", output=tmp_path / "out.csv", template="z", batch_tokens=0, on_malformed="drop", column=""
        )
    for part in (".jsonl or .parquet, found 'out.csv'", "template must", "batch_tokens must", "skip or stop", "a name"):
        assert part in str(refused.value)


# Killed runs


class Killed(BaseException):
    """Stands for SIGKILL where the test wants it: nothing catches it."""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_killed_run_goes_on_to_the_same_file(tmp_path, checkpoint, monkeypatch, suffix):
    data = write_rows(tmp_path / "rows.jsonl", answers(22))
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    summary = run(checkpoint, data, whole)
    real, calls = os.fsync, []

    def dies(descriptor):  # while a part is being written
        calls.append(descriptor)
        if len(calls) == 4:
            raise Killed
        real(descriptor)

    monkeypatch.setattr(files_module.os, "fsync", dies)
    with pytest.raises(Killed):
        run(checkpoint, data, cut)
    monkeypatch.setattr(files_module.os, "fsync", real)
    parts = tmp_path / f"{cut.name}.parts"
    assert len(list(parts.glob("0*.jsonl"))) == 2
    (parts / ".00000002.jsonl.abcd.tmp").write_text('{"torn')  # what SIGKILL leaves of a write
    scored = []

    def dies_in_the_fourth_chunk(done):
        scored.append(done)
        if done > 12:
            raise Killed

    with pytest.raises(Killed):
        run(checkpoint, data, cut, progress=dies_in_the_fourth_chunk)
    assert scored[:3] == [4, 8, 12][:3]  # the two chunks that were there are not scored again
    assert not cut.exists()
    again = run(checkpoint, data, cut)
    assert cut.read_bytes() == whole.read_bytes()
    assert again["output_sha256"] == summary["output_sha256"]
    assert again["rewards"] == summary["rewards"]
    assert not parts.exists()


def test_a_run_that_died_between_output_and_summary_is_finished(tmp_path, checkpoint, monkeypatch):
    data = write_rows(tmp_path / "rows.jsonl", answers(6))
    whole = run(checkpoint, data, tmp_path / "whole.jsonl")

    def dies(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("normbt.score.job.write_json", dies)
        with pytest.raises(Killed):
            run(checkpoint, data, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").exists()
    assert run(checkpoint, data, tmp_path / "out.jsonl")["output_sha256"] == whole["output_sha256"]


def test_a_finished_run_is_not_done_again(tmp_path, checkpoint, monkeypatch):
    data = write_rows(tmp_path / "rows.jsonl", answers(6))
    first = run(checkpoint, data, tmp_path / "out.jsonl")
    monkeypatch.setattr("normbt.score.chunks.score", None)
    assert run(checkpoint, data, tmp_path / "out.jsonl") == first
    with pytest.raises(TypeError, match="not callable"):  # it scores
        run(checkpoint, data, tmp_path / "out.jsonl", overwrite=True)
    monkeypatch.undo()
    assert run(checkpoint, data, tmp_path / "out.jsonl", overwrite=True)["output_sha256"] == first["output_sha256"]


def test_another_input_or_other_settings_are_refused_by_name(tmp_path, checkpoint):
    data = write_rows(tmp_path / "rows.jsonl", answers(9))

    def killed(done):
        if done > 4:
            raise Killed

    with pytest.raises(Killed):
        run(checkpoint, data, tmp_path / "out.jsonl", progress=killed)
    with pytest.raises(StateError, match="batch_tokens was 16384, now 99; chunk_rows was 4, now 3"):
        run(checkpoint, data, tmp_path / "out.jsonl", batch_tokens=99, chunk_rows=3)
    write_rows(data, answers(9, seed=1))
    with pytest.raises(StateError, match=r'belongs to another run: data_sha256 was "\w+…, now "\w+…\. .*--overwrite'):
        run(checkpoint, data, tmp_path / "out.jsonl")
    run(checkpoint, data, tmp_path / "out.jsonl", overwrite=True)
    with pytest.raises(StateError, match=r"max_length was 128, now 64"):
        run(checkpoint, data, tmp_path / "out.jsonl", max_length=64)
    (tmp_path / "mine.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="no run of normbt says so"):
        run(checkpoint, data, tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "precious"


def test_a_model_trained_on_is_another_model(tmp_path, checkpoint):
    data = write_rows(tmp_path / "rows.jsonl", answers(4))
    model, tokenizer = load_reward_model(checkpoint, device="cpu")
    score_rows(model, tokenizer=tokenizer, data=data, output=tmp_path / "out.jsonl")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    with pytest.raises(StateError, match="weights was"):
        score_rows(model, tokenizer=tokenizer, data=data, output=tmp_path / "out.jsonl")


@pytest.mark.slow
def test_processes_share_the_chunks_and_give_the_same_file(tmp_path, checkpoint):
    rows = answers(30)
    rows[13] = {"prompt": "w5"}  # malformed, in a chunk of the second process
    data = write_rows(tmp_path / "rows.jsonl", rows)
    whole = run(checkpoint, data, tmp_path / "whole.jsonl")
    # Not `accelerate launch`, which starts one process where there is no GPU, whatever number it is given.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "normbt", "score", str(checkpoint), "--data", str(data), "--chunk_rows", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    finished = subprocess.run(
        [*launcher, *command, "--output_file", str(tmp_path / "two.jsonl")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    # On CPUs the last bit of a product depends on where in memory the numbers lie.
    lines, lines_of_one = (list(read_jsonl(tmp_path / f"{name}.jsonl")) for name in ("two", "whole"))
    assert lines == [pytest.approx(line, abs=1e-5) for line in lines_of_one]
    two = read_json(tmp_path / "two.summary.json", kind="scoring")
    for name in ("counts", "reasons"):
        assert two[name] == whole[name]
    assert two["rewards"] == pytest.approx(whole["rewards"], abs=1e-5)
    assert finished.stdout.count("Rewards in") == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_half_an_emoji_costs_its_row_only(tmp_path, checkpoint, suffix):
    row = answers(1)[0]
    bad = [row | {"note": "half \ud83d"}, {"\ud83d": 1}, row | {"\ud83d": "x"}, row | {"id": "\ud83d"}]
    data = write_rows(tmp_path / "rows.jsonl", [*bad, row | {"note": "whole 😀"}])
    summary = run(checkpoint, data, tmp_path / f"out{suffix}")
    assert (summary["counts"]["scored"], summary["counts"]["malformed"]) == (1, 4)
    assert summary["reasons"][0] == {
        "row": 1,
        "reason": '"note" holds a lone surrogate at character 5: not valid Unicode',
    }
    assert "(columns: \\ud83d)" in summary["reasons"][1]["reason"]
    table = tmp_path / f"out{suffix}"
    [found] = list(read_jsonl(table)) if suffix == ".jsonl" else parquet.read_table(table).to_pylist()
    assert found["note"] == "whole 😀"
    with pytest.raises(DataError, match=r'row 1: "note" holds a lone surrogate .*--on_malformed skip'):
        run(checkpoint, data, tmp_path / f"stopped{suffix}", on_malformed="stop")


# Sources and outputs


def test_parquet_keeps_types_and_turns_what_varies_into_text(tmp_path, checkpoint):
    extra = [
        {"tags": ["a"], "mixed": 1, "late": None, "number": 1, "none": None, "bare": {}},
        {"tags": [], "mixed": "x", "late": {"k": 2}, "number": 2.5, "none": None, "bare": {}},
    ]
    rows = [row | extra[index // 4] for index, row in enumerate(answers(8))]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    run(checkpoint, data, tmp_path / "out.parquet")
    run(checkpoint, data, tmp_path / "out_2.jsonl")
    found = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    lines = list(read_jsonl(tmp_path / "out_2.jsonl"))
    assert [row["reward"] for row in found] == [row["reward"] for row in lines]
    assert [row["mixed"] for row in found] == ["1"] * 4 + ["x"] * 4
    assert [row["number"] for row in found] == [1.0] * 4 + [2.5] * 4
    assert [row["tags"] for row in found] == [["a"]] * 4 + [[]] * 4
    assert found[4]["late"] == {"k": 2}
    assert found[0]["bare"] == "{}"


@pytest.mark.parametrize("rows_at_once", [1, 4_096])  # types that differ meet within a batch, or between two
def test_a_column_that_parquet_cannot_hold_is_kept_as_text(tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(parquet_module, "ROW_GROUP", rows_at_once)
    columns = {
        "empty": [{"a": {"b": {}}}, None],
        "empty_in_list": [{"a": [{}]}, {"a": []}],
        "huge": [2**70, 1],
        "unsigned": [2**63, -1],
        "inside": [{"n": [2**70]}, {"n": [1]}],
        "beyond_double": [2**53 + 1, 0.5],
        "beyond_double_inside": [{"n": 0.5}, {"n": 2**53 + 1}],
        "deep": [json.loads('{"a":' * 400 + "{}" + "}" * 400), None],
    }
    held = {
        "grows": [{"a": {}}, {"a": {"b": 1}}],
        "nulls": [{"role": "user", "calls": None}, {"role": "user", "calls": None}],
        "wide": [2**62, None],
        "number": [1, 0.5],
        "list": [[], [1]],
    }
    rows = [{name: cells[index] for name, cells in (columns | held).items()} for index in range(2)]
    write_parquet(tmp_path / "a.parquet", lambda: [json.dumps(row) for row in rows])
    found = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    for name, cells in columns.items():
        assert [None if cell is None else json.loads(cell) for cell in found[name]] == cells, name
    assert found["grows"] == [{"a": {"b": None}}, {"a": {"b": 1}}]
    for name in set(held) - {"grows"}:
        assert found[name] == held[name]


def test_every_source_gives_the_same_rewards(tmp_path, checkpoint, monkeypatch):
    import gzip

    from datasets import Dataset

    rows = answers(9)
    plain = write_rows(tmp_path / "rows.jsonl", rows)
    run(checkpoint, plain, tmp_path / "plain.jsonl")
    wanted = [row["reward"] for row in read_jsonl(tmp_path / "plain.jsonl")]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    Dataset.from_list(rows).to_csv(tmp_path / "rows.csv")
    write_rows(tmp_path / "split.jsonl", [row | {"split": s} for row in rows for s in ("train", "test")])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(plain.read_bytes())))
    for name, source, settings in (
        ("gz", tmp_path / "rows.jsonl.gz", {}),
        ("parquet", tmp_path / "rows.parquet", {}),
        ("csv", tmp_path / "rows.csv", {}),
        ("split", tmp_path / "split.jsonl", {"split": "test"}),
        ("dataset", Dataset.from_list(rows), {}),
        ("stdin", "-", {}),
    ):
        summary = run(checkpoint, source, tmp_path / f"out_{name}.jsonl", **settings)
        assert [row["reward"] for row in read_jsonl(tmp_path / f"out_{name}.jsonl")] == pytest.approx(wanted, abs=1e-5)
        assert summary["counts"]["other_split"] == (9 if name == "split" else 0)
    assert list(tmp_path.glob("*stdin.jsonl")) == [tmp_path / "out_stdin.jsonl"]
    with pytest.raises(DataError, match="a stream cannot be read again"):
        run(checkpoint, Dataset.from_list(rows).to_iterable_dataset(), tmp_path / "stream.jsonl")


def test_what_json_cannot_hold_is_written_as_text_or_refused(tmp_path, checkpoint):
    import datetime

    from datasets import Dataset

    day = datetime.datetime(2026, 1, 2, 3)
    rows = [row | {"day": day, "log": [{"day": day}]} for row in answers(3)]
    run(checkpoint, Dataset.from_list(rows), tmp_path / "out.jsonl")
    first = next(read_jsonl(tmp_path / "out.jsonl"))
    assert (first["day"], first["log"]) == ("2026-01-02T03:00:00", [{"day": "2026-01-02T03:00:00"}])
    with pytest.raises(DataError, match="column picture holds bytes"):
        run(checkpoint, Dataset.from_list([row | {"picture": b"x"} for row in rows]), tmp_path / "bytes.jsonl")


# Normalisation


def test_normalised_rewards_have_mean_zero_and_deviation_one(tmp_path, encoder_checkpoint):
    import shutil

    model = shutil.copytree(encoder_checkpoint, tmp_path / "rm")
    data = write_rows(tmp_path / "rows.jsonl", answers(9))
    raw = run(model, data, tmp_path / "raw.jsonl", fit_normalisation="base")
    entry = read_normalisation(model, "base")
    assert (entry["mean"], entry["std"], entry["count"]) == (raw["rewards"]["mean"], raw["rewards"]["std"], 9)
    summary = run(model, data, tmp_path / "out.jsonl", normalise="base")
    assert summary["rewards"]["mean"] == pytest.approx(0, abs=1e-12)
    assert summary["rewards"]["std"] == pytest.approx(1, abs=1e-12)
    assert summary["normalisation"] == entry
    for one, other in zip(read_jsonl(tmp_path / "raw.jsonl"), read_jsonl(tmp_path / "out.jsonl"), strict=True):
        assert other["reward"] == (one["reward"] - entry["mean"]) / entry["std"]
    run(
        model,
        write_rows(tmp_path / "more.jsonl", answers(5, seed=1)),
        tmp_path / "more_out.jsonl",
        fit_normalisation="2",
    )
    assert read_json(model / NORMALISATION_FILE)["datasets"].keys() == {"base", "2"}
    with pytest.raises(ConfigError, match=r"no data set 'bse' \(it has: 2, base\)"):
        run(model, data, tmp_path / "x.jsonl", normalise="bse")
    with pytest.raises(ConfigError, match="leave normalise out"):
        run(model, data, tmp_path / "x.jsonl", normalise="base", fit_normalisation="3")
    with pytest.raises(DataError, match="have no spread"):
        run(model, write_rows(tmp_path / "one.jsonl", answers(1)), tmp_path / "one_out.jsonl", fit_normalisation="3")
    with pytest.raises(ModelError, match="made with other weights"):
        read_normalisation(model, "base", weights="others")
    with pytest.raises(ConfigError, match="not a local folder"):
        run("some/model", data, tmp_path / "x.jsonl", fit_normalisation="a")


def test_moments_of_chunks_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(5, 2, 1000)
    joined = join_moments(moments_of(part) for part in np.array_split(values, [1, 7, 7, 500]))
    assert joined == pytest.approx(moments_of(values), rel=1e-13)
    assert join_moments([moments_of(np.array([np.nan]))])["mean"] is None


def test_the_command_scores_and_says_what_it_did(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", [*answers(5), {"prompt": "w5"}])
    assert cli.main(["score", str(checkpoint), "--data", "rows.jsonl", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "row 6: no" in printed
    assert f"Rewards in scores/{checkpoint.name}/rows.jsonl" in printed
    assert len(list(read_jsonl(Path("scores", checkpoint.name, "rows.jsonl")))) == 5
