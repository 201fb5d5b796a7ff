import ast
import errno
import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normbt.errors import ConfigError, DataError, StateError
from normbt.results import (
    PAIRS_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    provenance,
    read_diagnosis,
    read_evaluation,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from normbt.results import files as files_module
from normbt.results import origin as origin_module

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(rows=st.lists(st.dictionaries(st.text(max_size=8), json_values, max_size=4), max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("results")
    written = write_jsonl(folder / "rows.jsonl", (row for row in rows))
    assert written.rows == len(rows)
    assert written.nulls == 0
    assert written.sha256 == hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest()
    assert list(read_jsonl(folder / "rows.jsonl")) == rows
    write_json(folder / "record.json", {"rows": rows})
    assert read_json(folder / "record.json") == {"rows": rows}


def test_text_stays_readable_and_numpy_scalars_are_numbers(tmp_path):
    write_json(tmp_path / "a.json", {"text": "größer als 数", "n": np.int64(3), "x": np.float32(0.5), "b": np.True_})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "größer als 数" in text
    assert json.loads(text) == {"text": "größer als 数", "n": 3, "x": 0.5, "b": True}


def test_non_finite_numbers_become_null_and_are_counted_and_named(tmp_path, caplog):
    written = write_json(tmp_path / "a.json", {"x": 1.0, "deep": [{"y": math.nan}, np.float64(-math.inf)]})
    assert written.nulls == 2
    assert read_json(tmp_path / "a.json") == {"x": 1.0, "deep": [{"y": None}, None]}
    assert "2 numbers were NaN or infinite and are written as null (first: deep[0].y)" in caplog.text
    caplog.clear()
    assert write_jsonl(tmp_path / "b.jsonl", [{"x": 1.0}, {"x": math.inf}, {"x": math.nan}]).nulls == 2
    assert "(first: line 2, x)" in caplog.text


@pytest.mark.parametrize("value", [{1, 2}, object(), Path("x"), 1j, np.zeros(2)])
def test_what_json_cannot_hold_is_a_type_error_that_names_the_field(tmp_path, value):
    with pytest.raises(TypeError, match=r"scores\[1\]"):
        write_json(tmp_path / "a.json", {"scores": [0, value]})
    with pytest.raises(TypeError, match="not a string"):
        write_json(tmp_path / "a.json", {"scores": {1: 2}})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_file_and_no_remains(tmp_path, monkeypatch):
    target = tmp_path / "rows.jsonl"
    write_jsonl(target, [{"old": True}])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", full)
    with pytest.raises(ConfigError, match=r"Cannot write .*rows\.jsonl: No space left on device.*other output folder"):
        write_jsonl(target, [{"new": True}])
    assert list(read_jsonl(target)) == [{"old": True}]
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_job_leaves_the_earlier_file_and_no_remains(tmp_path):
    target = tmp_path / "rows.jsonl"
    write_jsonl(target, [{"old": True}])

    def rows():
        yield {"new": True}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(target, rows())
    assert list(read_jsonl(target)) == [{"old": True}]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"Cannot write .*file/deep/a\.json.*another output folder"):
        write_json(tmp_path / "file" / "deep" / "a.json", {})


def test_a_newer_format_is_refused_in_words(tmp_path):
    write_json(tmp_path / "a.json", {"schema_version": SCHEMA_VERSION + 1, "kind": "evaluation"})
    with pytest.raises(StateError, match=f"format {SCHEMA_VERSION + 1}.*up to {SCHEMA_VERSION}.*Upgrade normbt"):
        read_json(tmp_path / "a.json", kind="evaluation")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', r"a\.json line 2: not valid JSON"),
        (b"[1, 2]", "wanted a JSON object, found list"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"schema_version": 1, "kind": "diagnosis"}', "wanted a result of kind 'evaluation', found kind 'diagnosis'"),
        (b"{}", "found kind None"),
        (None, "No such file or directory"),
    ],
)
def test_bad_records_say_what_is_wrong_and_where(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "a.json", kind="evaluation")


def test_bad_lines_are_named_by_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        list(read_jsonl(path))
    path.write_text('{"a": 1}\n3\n')
    with pytest.raises(DataError, match="line 2: wanted a JSON object, found int"):
        list(read_jsonl(path))


def test_an_evaluation_whose_pairs_were_changed_is_refused(tmp_path):
    written = write_jsonl(tmp_path / PAIRS_FILE, [{"id": "a"}, {"id": "ü"}])
    summary = {"schema_version": SCHEMA_VERSION, "kind": "evaluation", "pairs_sha256": written.sha256}
    write_json(tmp_path / SUMMARY_FILE, summary)
    assert read_evaluation(tmp_path) == (summary, [{"id": "a"}, {"id": "ü"}])
    write_jsonl(tmp_path / PAIRS_FILE, [{"id": "a"}])
    with pytest.raises(StateError, match=r"is not the file that .*summary\.json describes.*Evaluate again"):
        read_evaluation(tmp_path)


def test_a_diagnosis_whose_pairs_were_changed_is_refused_and_the_others_are_read_one_by_one(tmp_path):
    written = write_jsonl(tmp_path / PAIRS_FILE, [{"id": "a"}, {"id": "ü"}])
    summary = {"schema_version": SCHEMA_VERSION, "kind": "diagnosis", "pairs_sha256": written.sha256}
    write_json(tmp_path / SUMMARY_FILE, summary)
    read, pairs = read_diagnosis(tmp_path)
    assert read == summary
    assert next(pairs) == {"id": "a"}
    assert list(pairs) == [{"id": "ü"}]
    write_jsonl(tmp_path / PAIRS_FILE, [{"id": "a"}])
    with pytest.raises(StateError, match=r"is not the file that .*summary\.json describes.*Diagnose again"):
        read_diagnosis(tmp_path)
    (tmp_path / PAIRS_FILE).unlink()
    with pytest.raises(DataError, match=r"Cannot read .*pairs\.jsonl"):
        read_diagnosis(tmp_path)


def test_provenance_hides_secrets_and_names_versions(monkeypatch):
    command = [
        "normbt",
        "train",
        "--hub_token",
        "hf_abc",
        "--push_to_hub_token=hf_def",
        "--seed",
        "3",
        "--api-key",
        "k",
    ]
    monkeypatch.setattr(sys, "argv", command)
    data = [{"source": "x.jsonl", "digest": "d", "read": 3, "kept": 2}]
    record = provenance(config={"hub_token": "hf_abc", "token": None, "max_length": 5}, seed=3, data=data)
    assert "hf_" not in json.dumps(record)
    assert record["command"][-5:] == ["--push_to_hub_token=***", "--seed", "3", "--api-key", "***"]
    assert record["config"] == {"hub_token": "***", "token": None, "max_length": 5}
    assert record["data"] == data
    assert record["packages"]["torch"] is not None
    assert record["python"] == sys.version.split()[0]
    assert record["created"].endswith("+00:00")


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("train.hub_token=hf_abc", "train.hub_token=***"),
        ("--set=train.hub_token=hf_abc", "--set=train.hub_token=***"),
        ("train={seed: 1, hub_token: 'hf_abc def', x: 2}", "train={seed: 1, hub_token:***"),
        ('train={"hub_token": "hf_abc"}', 'train={"hub_token":***'),
        ("--password=hf_abc hf_def", "--password=***"),
        ("train.eos_token=</s>", "train.eos_token=</s>"),
        ("train.max_length=512", "train.max_length=512"),
    ],
)
def test_a_secret_inside_an_argument_is_hidden(monkeypatch, argument, shown):
    monkeypatch.setattr(sys, "argv", ["normbt", "experiment", "r.yaml", "--set", argument, "--seed", "3"])
    assert provenance(config={})["command"][3:] == ["--set", shown, "--seed", "3"]


def test_secrets_are_hidden_at_any_depth_and_nothing_else_is():
    settings = {
        "train": {"hub_token": "hf_abc", "eos_token": "</s>", "token": None},
        "methods": {"per-token": {"weighting": "none", "proxies": [{"api_key": "hf_def"}, 1]}},
        "tokens": (1, 2),
        "push_token": ["hf_ghi"],
    }
    assert provenance(config=settings)["config"] == {
        "train": {"hub_token": "***", "eos_token": "</s>", "token": None},
        "methods": {"per-token": {"weighting": "none", "proxies": [{"api_key": "***"}, 1]}},
        "tokens": (1, 2),
        "push_token": ["***"],
    }
    assert settings["train"]["hub_token"] == "hf_abc"


def test_the_commit_is_that_of_a_checkout_and_only_of_a_checkout(tmp_path, monkeypatch):
    source = tmp_path / "repository" / "results.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    monkeypatch.setattr(origin_module, "__file__", str(source))

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false", "-c", "core.hooksPath="]
        subprocess.run(["git", "-C", str(source.parent), *who, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "empty")
    assert origin_module._commit() is None  # inside a repository, not part of it
    git("add", "results.py")
    git("commit", "-m", "add")
    clean = origin_module._commit()
    assert clean is not None
    assert len(clean) == 40
    source.write_text("x = 2\n")
    assert origin_module._commit() == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert origin_module._commit() is None  # no git on this machine


def test_reading_results_needs_no_torch():
    code = (
        "import sys, normbt.results as results\n"
        "import normbt.stats, normbt.suites, normbt.compare\n"
        "results.provenance(config={})\n"
        "assert not {'torch', 'transformers', 'datasets', 'trl'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# The document

PROJECT = Path(__file__).parents[1]


def declared_fields(path, *, only=None):
    """Fields of the classes of a file that become records: typed dicts, or the classes named."""
    fields = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and (
            node.name == only or (only is None and any(ast.unparse(base) == "TypedDict" for base in node.bases))
        ):
            fields[node.name] = [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
    return fields


def documented_fields(text):
    """First column of the table that follows each mention of a class in parentheses, by class."""
    parts = re.split(r"\(`(\w+)`\)", text)
    names, bodies = parts[1::2], parts[2::2]
    return {name: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE) for name, body in zip(names, bodies, strict=True)}


def test_every_field_of_every_file_is_documented_and_nothing_else():
    package = PROJECT / "src" / "normbt"
    declared = {}
    for path in sorted((package / "results").glob("*.py")):
        declared |= declared_fields(path)
    assert len(declared) == 45
    declared |= declared_fields(package / "pairs" / "report.py", only="DataReport")
    declared |= declared_fields(package / "train.py", only="TrainingDataReport")
    declared |= declared_fields(package / "checkpoint.py", only="TrainingState")
    documented = documented_fields((PROJECT / "docs" / "results-format.md").read_text(encoding="utf-8"))
    assert documented == declared
