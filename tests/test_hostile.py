"""Hostile preference data: read, or refused in one clear error; nothing of it is ever run."""

import gzip
import json
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normbt.errors import DataError
from normbt.pairs import files, read_pairs

FUZZER = Path(__file__).parents[1] / "benchmarks" / "fuzz_readers.py"

PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return str(path)


def read(source: str, *, streaming: bool = False) -> tuple[list[dict], object]:
    pairs, report = read_pairs(source, streaming=streaming)
    return list(pairs), report


# Any JSON at all, with text that no tokenizer can read and numbers that no column holds among it.
_TEXT = st.text(max_size=8) | st.sampled_from(["\ud800", "a\udfffb", "\x00", "\x1b[2J"])
_SCALARS = st.none() | st.booleans() | st.integers() | st.just(10**30) | st.floats() | _TEXT
_ANY = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3))
_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]) | _SCALARS, "content": _TEXT | _ANY}),
    max_size=3,
)
_SIDE = _TEXT | _MESSAGES | _ANY
_ROWS = st.lists(
    st.builds(lambda further: PAIR | further, st.dictionaries(_TEXT, _ANY, max_size=2))
    | st.builds(lambda more, score: PAIR | {"more": more, "score": score}, _ANY, _SCALARS)
    | st.fixed_dictionaries(
        {},
        optional={"prompt": _SIDE, "chosen": _SIDE, "rejected": _SIDE, "margin": _SCALARS, "id": _SCALARS}
        | {"split": _SCALARS, "category": _ANY, "score": _ANY},
    )
    | _ANY,
    max_size=4,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=_ROWS, form=st.sampled_from([".jsonl", ".json"]), streaming=st.booleans())
def test_any_json_is_read_or_refused(tmp_path_factory, rows, form, streaming):
    path = tmp_path_factory.mktemp("rows") / f"pairs{form}"
    good = json.dumps(PAIR)
    lines = [good, *(json.dumps(row) for row in rows)]
    path.write_text("\n".join(lines) if form == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    try:
        pairs, report = read(str(path), streaming=streaming)
    except DataError:
        return
    counts = report.to_dict() if not streaming else report.now.to_dict()
    assert counts["read"] == len(rows) + 1 - counts["other_split"]
    assert counts["kept"] == len(pairs) == counts["read"] - counts["malformed"] - counts["empty"] - counts["identical"]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=60), form=st.sampled_from([".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz"])
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, form):
    path = tmp_path_factory.mktemp("bytes") / f"pairs{form}"
    path.write_bytes(data)
    with pytest.raises(DataError):  # so short a file holds no pair
        read(str(path))


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "jsonl.gz"])
def test_the_fuzzer_finds_nothing(form):
    """A short run of what `benchmarks/fuzz_readers.py` does a million times."""
    command = [sys.executable, str(FUZZER), "--inputs", "4000", "--format", form, "--seed", "7"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "4,000 inputs" in finished.stdout
    assert "kept pairs" in finished.stdout


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed (the extra `fuzz`, part of `dev`)")
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_the_guided_fuzzer_finds_nothing(form):
    """The same with atheris, which looks for inputs that reach new code of the readers."""
    command = [sys.executable, str(FUZZER), "--inputs", "6000", "--format", form, "--engine", "atheris"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "6,000 inputs" in finished.stdout
    assert "kept pairs" in finished.stdout
    assert "check.py" in finished.stdout


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"chosen": "a", "chosen": "b", "rejected": "c"}', 'the key "chosen" stands twice'),
        (json.dumps(PAIR)[:-1] + ', "margin": ' + "9" * 5000 + "}", "a number with thousands of digits"),
        (json.dumps(PAIR)[:-1] + ', "margin": ' + "9" * 400 + "}", '"margin" must be finite'),
        (json.dumps(PAIR)[:-1] + ', "margin": NaN}', '"margin" must be finite'),
        (json.dumps(PAIR)[:-1] + ', "more": ' + "[" * 100_000 + "}", "nested too deeply"),
        ('{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}', "lone surrogate"),
        (b'{"prompt": "a", "chosen": "\xed\xa0\x80", "rejected": "b"}', "not valid UTF-8"),
        ('{"prompt": "a", "chosen": [{"role": "\\u001b[2J", "content": 1}], "rejected": "b"}', "must have text"),
        ('{"prompt": "a", "chosen": "b", "' + "x" * 100_000 + '": "c"}', 'no "rejected"'),
    ],
)
def test_hostile_rows_are_counted_with_a_reason_one_can_read(tmp_path, row, reason):
    _, report = read(write(tmp_path / "a.jsonl", json.dumps(PAIR), row))
    assert (report.kept, report.malformed) == (1, 1)
    assert reason in report.reasons[0][1]
    assert len(report.reasons[0][1]) < 400
    assert report.reasons[0][1].isprintable()


@pytest.mark.parametrize("value", [10**30, -(2**63) - 1, float("nan"), float("inf")])
@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_that_no_column_holds_do_not_cost_the_pair(tmp_path, value, streaming):
    rows = [json.dumps(PAIR | {"more": 1}), json.dumps(PAIR | {"more": value, "chosen": "six"})]
    pairs, _ = read(write(tmp_path / "a.jsonl", *rows), streaming=streaming)
    assert [pair["chosen"] for pair in pairs] == ["4", "six"]


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": [{"role": "assistant", "tool_calls": ["\ud800"]}]},
        {"more": "\ud800"},
        {"more": {"a": ["\udfff"]}},
        {"more": {"\ud800": 1}},
        {"\ud800": 1},
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_text_that_is_not_unicode_is_malformed_in_every_column(tmp_path, more, streaming):
    rows = [json.dumps(PAIR), json.dumps(PAIR | more)]
    pairs, report = read(write(tmp_path / "a.jsonl", *rows), streaming=streaming)
    assert (len(pairs), report.malformed) == (1, 1)
    assert "lone surrogate" in report.reasons[0][1]


def test_a_further_column_nested_deeply_is_no_crash(tmp_path):
    rows = [json.dumps(PAIR), *(json.dumps(PAIR)[:-1] + f', "more": {"[" * n}{"]" * n}}}' for n in (100, 900, 980))]
    _, report = read(write(tmp_path / "a.jsonl", *rows))
    assert report.kept + report.malformed == 4


def test_nul_bytes_and_line_ends_of_windows_are_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR | {"chosen": "a\x00b"}).encode() + b"\r\n")
    assert read(str(path))[0][0]["chosen"] == "a\x00b"
    table = tmp_path / "a.csv"
    table.write_bytes(b'\xef\xbb\xbfprompt,chosen,rejected\r\n"a\r\nb",c,d\r\n')
    assert read(str(table))[0][0]["prompt"] == "a\r\nb"


def test_a_column_named_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="names a column twice: chosen"):
        read(write(tmp_path / "a.csv", "prompt,chosen,chosen,rejected", "a,b,c,d"))


# --- how much memory a file can make us hold --------------------------------------------------------------------------


def peak_megabytes(source: str) -> float:
    """Memory that reading a file takes at most; the report or the error does not matter here."""
    tracemalloc.start()
    try:
        for _ in files.read_file(Path(source)):
            pass
    except DataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak / 1e6


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_compressed_bomb_is_not_held_in_memory(tmp_path, monkeypatch, name):
    """100 MB in one line, from a file of 100 KB."""
    monkeypatch.setattr(files, "MAX_ROW", 1 << 20)
    monkeypatch.setattr(files, "MAX_OBJECT", 4 << 20)
    path = tmp_path / name
    with gzip.open(path, "wb", 1) as stream:
        stream.write(b'[{"chosen": "' if ".json." in name else b'{"chosen": "')
        for _ in range(100):
            stream.write(b"a" * 1_000_000)
    assert path.stat().st_size < 1e6
    assert peak_megabytes(str(path)) < 30


def test_a_long_array_in_one_line_is_read_row_by_row(tmp_path):
    path = tmp_path / "a.json"
    row = json.dumps(PAIR | {"chosen": "word " * 2000})
    path.write_text(f"[{','.join([row] * 2000)}]")
    assert path.stat().st_size > 20e6
    assert peak_megabytes(str(path)) < 15


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ("\n[{}]", 'found "[{}]" on line 2. Join several arrays into one, or '),
        ("garbage", 'found "garbage" on line 1. '),
        (" \n" * 20 + "]", 'found "]" on line 21. '),  # beyond the first piece that is read
        ("\n\x1b[2J" + "x" * 500, 'found "\\x1b[2Jxxxxxxxxx'),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_what_follows_an_array_of_rows_is_not_dropped(tmp_path, monkeypatch, name, after, found):
    monkeypatch.setattr(files, "_CHUNK", 16)
    array = json.dumps([PAIR, PAIR | {"chosen": "six"}])
    pack = gzip.compress if name.endswith(".gz") else bytes
    path = tmp_path / name
    path.write_bytes(pack((array + " \r\n\t" * 20).encode()))
    assert len(read(str(path))[0]) == 2
    path.write_bytes(pack((array + after).encode()))
    with pytest.raises(DataError, match=re.escape(found)):
        read(str(path))


def test_a_line_longer_than_a_row_may_be_costs_itself_only(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW", 2000)
    long = json.dumps(PAIR | {"chosen": "a" * 5000})
    _, report = read(write(tmp_path / "a.jsonl", json.dumps(PAIR), long, json.dumps(PAIR | {"chosen": "six"})))
    assert (report.kept, report.malformed) == (2, 1)
    assert report.reasons[0][0] == 2
    with pytest.raises(DataError, match="line 2 has more than"):
        read(write(tmp_path / "a.csv", "prompt,chosen,rejected", f"a,{'b' * 5000},c"))


# --- chat templates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch ' + marker) }}",
        "{% for message in messages %}{{ messages.append(message) }}{% endfor %}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('touch ' + marker).read() }}",
        "{% for i in range(10 ** 9) %}a{% endfor %}",
    ],
)
def test_a_chat_template_runs_in_a_sandbox(tmp_path, template):
    from datasets import Dataset

    from normbt.encoding import encode_pairs
    from test_trainer import word_tokenizer

    tokenizer, marker = word_tokenizer(), tmp_path / "was-run"
    tokenizer.chat_template = template.replace("marker", repr(str(marker)))
    rows = [{"chosen": [{"role": "assistant", "content": "w7"}], "rejected": [{"role": "assistant", "content": "w8"}]}]
    with pytest.raises(DataError, match="the chat template refuses this conversation"):
        encode_pairs(Dataset.from_list(rows), tokenizer, max_length=64)
    assert not marker.exists()


def test_code_of_a_checkpoint_is_not_run_unless_asked_for(tmp_path):
    from normbt.errors import ModelError
    from normbt.loading import load_reward_model

    marker = tmp_path / "was-run"
    auto = {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hostile", "auto_map": auto}))
    (tmp_path / "code.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="contains custom code"):
        load_reward_model(tmp_path)
    assert not marker.exists()


def write_payload(path: Path, marker: Path) -> None:
    """A file that makes another one when it is unpickled."""

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    path.write_bytes(pickle.dumps(Payload(), protocol=2))


@pytest.mark.parametrize("part", ["model", "adapter"])
def test_a_pickle_in_place_of_the_weights_is_not_run(tmp_path, checkpoint, part):
    """Weights in the old format of torch are read as plain tensors or not at all."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from normbt.errors import ModelError
    from normbt.loading import load_reward_model

    folder, marker = tmp_path / "model", tmp_path / "was-run"
    shutil.copytree(checkpoint, folder)
    if part == "adapter":
        base = AutoModelForSequenceClassification.from_pretrained(checkpoint)
        get_peft_model(base, LoraConfig(task_type="SEQ_CLS")).save_pretrained(folder)
    load_reward_model(folder)
    prefix = {"model": "model", "adapter": "adapter_model"}[part]
    (folder / f"{prefix}.safetensors").unlink()
    name = {"model": "pytorch_model.bin", "adapter": "adapter_model.bin"}[part]
    write_payload(folder / name, marker)
    with pytest.raises(ModelError, match="a pickle of more than plain tensors"):
        load_reward_model(folder)
    assert not marker.exists()


def test_training_does_not_run_a_pickle_in_place_of_the_weights(tmp_path, checkpoint, pairs_file, capsys):
    from normbt import cli

    folder, marker = tmp_path / "model", tmp_path / "was-run"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    write_payload(folder / "pytorch_model.bin", marker)
    argv = ["train", "--model_name_or_path", str(folder), "--dataset_name", str(pairs_file)]
    assert cli.main([*argv, "--output_dir", str(tmp_path / "rm"), "--max_steps", "1", "--report_to", "none"]) == 2
    assert "a pickle of more than plain tensors" in " ".join(capsys.readouterr().err.split())
    assert not marker.exists()
