"""What is read, refused and counted, for every shape and every way a file can be damaged."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normbt.errors import DataError
from normbt.pairs import DataReport, LiveReport, read_pairs
from normbt.pairs.sources import SPLIT_WORDS, choose_split

PLAIN = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": "Größe?", "chosen": "日本 🌱", "rejected": "שלום"},
]
USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yo"), ("assistant", "No"))
)
REAL = Path(__file__).parents[2] / "shared" / "data"


def write_lines(path: Path, rows: list) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def texts(dataset) -> list[tuple]:
    return [(row.get("prompt"), row["chosen"], row["rejected"]) for row in dataset]


EXPECTED = [("2+2?", "4", "5"), ("Größe?", "日本 🌱", "שלום")]


def _json_array(folder: Path) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps(PLAIN, indent=1), encoding="utf-8")
    return path


def _json_columns(folder: Path) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps({name: [row[name] for row in PLAIN] for name in PLAIN[0]}, indent=1), encoding="utf-8")
    return path


def _csv(folder: Path) -> Path:
    path = folder / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, PLAIN[0])
        writer.writeheader()
        writer.writerows(PLAIN)
    return path


def _parquet(folder: Path) -> Path:
    Dataset.from_list(PLAIN).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def _gz(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


WRITERS = {
    "jsonl": lambda folder: write_lines(folder / "a.jsonl", PLAIN),
    "jsonl.gz": lambda folder: write_lines(folder / "a.jsonl.gz", PLAIN),
    "rows in .json": lambda folder: write_lines(folder / "a.json", PLAIN),
    "array": _json_array,
    "array.gz": lambda folder: _gz(_json_array(folder)),
    "columns": _json_columns,
    "csv": _csv,
    "csv.gz": lambda folder: _gz(_csv(folder)),
    "parquet": _parquet,
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", WRITERS)
def test_every_file_format_gives_the_same_pairs(tmp_path, form, streaming):
    dataset, report = read_pairs(str(WRITERS[form](tmp_path)), streaming=streaming)
    assert texts(dataset) == EXPECTED
    assert (report.read, report.kept, report.form) == (2, 2, "plain text with a prompt")


SHAPES = {
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, ([USER], [GOOD], [BAD])),
    "text answers": ({"prompt": [USER], "chosen": "Yo", "rejected": "No"}, ([USER], [GOOD], [BAD])),
    "text prompt": ({"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]}, ([USER], [GOOD], [BAD])),
    "complete conversations": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, (None, [USER, GOOD], [USER, BAD])),
    "prompt repeated": ({"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, ([USER], [GOOD], [BAD])),
    "complete texts": ({"chosen": "Q: Hi A: Yo", "rejected": "Q: Hi A: No"}, (None, "Q: Hi A: Yo", "Q: Hi A: No")),
    "empty prompt": ({"prompt": "", "chosen": "Yo", "rejected": "No"}, ("", "Yo", "No")),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_a_pair(tmp_path, shape, streaming):
    row, expected = SHAPES[shape]
    dataset, report = read_pairs(str(write_lines(tmp_path / "a.jsonl", [row])), streaming=streaming)
    assert texts(dataset) == [expected]
    assert report.empty_prompts == (shape == "empty prompt")


def test_one_conversation_makes_conversations_of_all(tmp_path):
    dataset, report = read_pairs(str(write_lines(tmp_path / "a.jsonl", [PLAIN[0], SHAPES["messages"][0]])))
    assert dataset[0]["prompt"] == [{"role": "user", "content": "2+2?"}]
    assert dataset[0]["chosen"] == [{"role": "assistant", "content": "4"}]
    assert report.form == "conversations with a prompt"


def test_plain_text_becomes_conversations_when_asked(tmp_path):
    dataset, _ = read_pairs(str(write_lines(tmp_path / "a.jsonl", PLAIN)), conversational=True)
    assert dataset[0]["rejected"] == [{"role": "assistant", "content": "5"}]


BAD_ROWS = {
    '{"prompt": "a", "chosen": ': "broken JSON at column",
    "[1]": "must be an object, found list",
    '{"prompt": "a", "chosen": "b"}': 'no "rejected" (columns: prompt, chosen)',
    '{"prompt": "a", "chosen": 3, "rejected": "b"}': '"chosen" must be text or a list of messages, found int',
    '{"prompt": null, "chosen": "a", "rejected": "b"}': '"prompt" is null',
    '{"prompt": "a", "chosen": [], "rejected": "b"}': "empty list",
    '{"prompt": "a", "chosen": [{"from": "gpt", "value": "x"}], "rejected": "b"}': 'no "role" (keys: from, value)',
    '{"prompt": "a", "chosen": [{"role": "user", "content": "x"}], "rejected": "b"}': "begins like a complete",
    '{"prompt": "a", "chosen": [{"role": "assistant", "content": 1}], "rejected": "b"}': "content of type int",
    '{"prompt": "a", "chosen": [{"role": "tool", "content": "x"}], "rejected": "b"}': "must end with a message of the",
    '{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}': "lone surrogate",
    '{"prompt": "a", "chosen": "c", "rejected": "b", "margin": null}': '"margin" must be a number, found null',
    '{"prompt": "a", "chosen": "c", "rejected": "b", "margin": NaN}': '"margin" must be finite',
    '{"prompt": "a", "chosen": "c", "rejected": "b", "margin": "1"}': '"margin" must be a number, found str',
    '{"prompt": "a", "chosen": "c", "rejected": "b", "margin": true}': '"margin" must be a number, found bool',
    '{"prompt": "a", "chosen": "c", "rejected": "b", "id": [1]}': '"id" must be text',
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_malformed_rows_are_counted_with_line_and_reason(tmp_path, line):
    _, report = read_pairs(str(write_lines(tmp_path / "a.jsonl", [PLAIN[0], line, PLAIN[1]])))
    assert (report.read, report.kept, report.malformed) == (3, 2, 1)
    [(number, reason)] = report.reasons
    assert number == 2
    assert BAD_ROWS[line] in reason


def test_counts_add_up_and_the_first_five_reasons_are_kept(tmp_path):
    rows = [
        *(["{"] * 7),
        {"prompt": "a", "chosen": " \n", "rejected": "b"},
        {"prompt": "a", "chosen": "b ", "rejected": "\tb"},
        *PLAIN,
    ]
    _, report = read_pairs(str(write_lines(tmp_path / "a.jsonl", rows)))
    assert (report.read, report.kept, report.malformed, report.empty, report.identical) == (11, 2, 7, 1, 1)
    assert [number for number, _ in report.reasons] == [1, 2, 3, 4, 5]
    assert "and 2 more malformed rows" in report.summary()
    assert json.loads(json.dumps(report.to_dict()))["reasons"][0]["row"] == 1


def _damaged(folder: Path, kind: str) -> Path:
    path = folder / "a.jsonl"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "blank":
        path.write_bytes(b"\n \n")
    elif kind == "truncated":
        whole = gzip.compress("".join(json.dumps({**PLAIN[0], "n": n}) + "\n" for n in range(5000)).encode())
        path = folder / "a.jsonl.gz"
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "not gzip":
        path = folder / "a.jsonl.gz"
        path.write_bytes(b"plain")
    elif kind == "json":
        path = folder / "a.json"
        path.write_text('[{"chosen": "a", "rejected": "b"},\n{"chosen": "a" "rejected"}]')
    elif kind == "json end":
        path = folder / "a.json"
        path.write_text('[\n{"chosen": "a", "rejected": "b"},\n')
    elif kind == "columns":
        path = folder / "a.json"
        path.write_text('{"chosen": ["a", "b"], "rejected": ["c"]}')
    elif kind == "utf8":
        path = folder / "a.csv"
        path.write_bytes(b"chosen,rejected\na,b\n\xff,c\n")
    elif kind == "quote":
        path = folder / "a.csv"
        path.write_text('chosen,rejected\na,"b\n')
    elif kind == "parquet":
        path = folder / "a.parquet"
        path.write_bytes(b"PAR1 nothing")
    elif kind == "missing column":
        path = folder / "a.csv"
        path.write_text("prompt,chosen,answer\na,b,c\n")
    elif kind == "missing column in rows":
        write_lines(path, [{"prompt": "a", "good": "b"}])
    elif kind == "all dropped":
        write_lines(path, [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    elif kind == "format":
        path = folder / "a.txt"
        path.write_text("x")
    elif kind == "other name":
        write_lines(path, [{"question": "a", "chosen": "b", "rejected": "c"}])
    return path


DAMAGES = {
    "empty": "is empty",
    "blank": "holds no row",
    "truncated": r"truncated, it ends after row \d+",
    "not gzip": "not a valid gzip",
    "json": "broken JSON on line 2",
    "json end": "broken JSON on line 3",
    "columns": "differ in length",
    "utf8": "not valid UTF-8, after row 2",
    "quote": "broken CSV",
    "parquet": "not a readable Parquet",
    "missing column": "no column rejected. Columns found: prompt, chosen, answer",
    "missing column in rows": r'no "chosen" \(columns: prompt, good\)',
    "all dropped": "no usable pair.*1 identical",
    "format": "not a format that is read here",
    "other name": 'rename it to "prompt"',
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_give_one_clear_error(tmp_path, kind, streaming):
    with pytest.raises(DataError, match=f"(?s){DAMAGES[kind]}"):
        list(read_pairs(str(_damaged(tmp_path, kind)), streaming=streaming)[0])


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path):
    write_lines(tmp_path / "pairs.jsonl", PLAIN)
    with pytest.raises(DataError, match=r"no such file. Did you mean pairs\.jsonl"):
        read_pairs(str(tmp_path / "pair.jsonl"))


def test_an_unreachable_hub_is_one_clear_error():
    with pytest.raises(DataError, match="nobody/nothing"):
        read_pairs("nobody/nothing")


def test_a_line_of_invalid_utf8_is_one_malformed_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(PLAIN[0]).encode() + b'\n{"chosen": "\xff"}\n')
    _, report = read_pairs(str(path))
    assert report.reasons[0][0] == 2
    assert "UTF-8" in report.reasons[0][1]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["margin", "prompt"])
def test_a_margin_or_prompt_in_some_rows_only_is_an_error(tmp_path, column, streaming):
    rows = [{"prompt": str(n), "chosen": "a", "rejected": "b", "margin": 1.0} for n in range(3)]
    del rows[2][column]
    match = f'began with a "{column}"' if streaming else f'2 of 3 pairs have "{column}".*row 3'
    with pytest.raises(DataError, match=match):
        list(read_pairs(str(write_lines(tmp_path / "a.jsonl", rows)), streaming=streaming)[0])


def test_ids_are_made_kept_or_refused(tmp_path):
    rows = [PLAIN[0], {**PLAIN[1], "id": "x"}, {**PLAIN[0], "id": 7}, {**PLAIN[0], "id": 7, "subset": "hard"}]
    dataset, _ = read_pairs(str(write_lines(tmp_path / "a.jsonl", rows)))
    assert dataset["id"][:] == ["row-1", "x", "7", "hard/7"]
    with pytest.raises(DataError, match='row 3: the id "x" was used before'):
        read_pairs(str(write_lines(tmp_path / "b.jsonl", [*rows[:2], rows[1]])))


def test_margin_and_further_columns_survive_with_their_types(tmp_path):
    rows = [
        {**PLAIN[0], "margin": 1, "subset": "s", "rank": 3, "mixed": 1, "tags": [{"a": 1}], "late": None},
        {
            **PLAIN[1],
            "margin": 0.5,
            "subset": "s",
            "rank": 4,
            "mixed": "x",
            "tags": [{"b": "x"}],
            "late": True,
            "new": 2,
        },
    ]
    dataset, _ = read_pairs(str(write_lines(tmp_path / "a.jsonl", rows)))
    assert dataset["margin"][:] == [1.0, 0.5]
    assert dataset["mixed"][:] == ["1", "x"]
    assert dataset["tags"][:] == [[{"a": 1}], [{"b": "x"}]]
    assert dataset["rank"][:] == [3, 4]
    assert (dataset[0]["new"], dataset[1]["new"], dataset[1]["late"]) == (None, 2, True)


def test_tool_calls_survive(tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    rows = [
        {"prompt": [USER], "chosen": [call], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    ]
    dataset, report = read_pairs(str(write_lines(tmp_path / "a.jsonl", rows)))
    assert dataset[0]["chosen"] == [call]
    assert dataset[1]["chosen"] == [GOOD]
    assert report.kept == 2


def test_the_split_column_of_a_file_selects_rows(tmp_path):
    rows = [{**PLAIN[0], "split": "train"}, {**PLAIN[1], "split": "test"}, {**PLAIN[1], "split": "test"}]
    path = str(write_lines(tmp_path / "a.jsonl", rows))
    for split, kept, other in (("train", 1, 2), ("test", 2, 1), (None, 3, 0)):
        _, report = read_pairs(path, split=split)
        assert (report.kept, report.other_split) == (kept, other)
    with pytest.raises(DataError, match="none of its 3 rows is of the split"):
        read_pairs(path, split="dev")


def test_folders_are_read_by_the_split_in_the_file_name(tmp_path):
    write_lines(tmp_path / "my-train-01.jsonl", PLAIN)
    write_lines(tmp_path / "train_02.jsonl.gz", PLAIN[:1])
    write_lines(tmp_path / "test.jsonl", PLAIN[:1])
    (tmp_path / "README.md").write_text("notes")
    dataset, report = read_pairs(str(tmp_path))
    assert report.kept == 3
    assert dataset["id"][:] == ["my-train-01.jsonl/row-1", "my-train-01.jsonl/row-2", "train_02.jsonl.gz/row-1"]
    assert read_pairs(str(tmp_path), split="test")[1].kept == 1
    with pytest.raises(DataError, match=r"It has: (train, test|test, train)"):
        read_pairs(str(tmp_path), split="validation")


def test_saved_datasets_and_loaded_ones(tmp_path):
    pairs = Dataset.from_list(PLAIN)
    pairs.save_to_disk(tmp_path / "one")
    DatasetDict({"train": pairs, "test": pairs.select([0])}).save_to_disk(tmp_path / "two")
    assert texts(read_pairs(str(tmp_path / "one"))[0]) == EXPECTED
    assert texts(read_pairs(str(tmp_path / "two"), split="test")[0]) == EXPECTED[:1]
    assert texts(read_pairs(pairs)[0]) == EXPECTED


def test_choice_of_a_split():
    assert choose_split("x", ["test", "train"], None) == "train"
    assert choose_split("x", ["filtered"], None) == "filtered"
    assert choose_split("x", ["a", "b"], "b[:10]") == "b[:10]"
    with pytest.raises(DataError, match=r"name the split to read\. It has: a, b"):
        choose_split("x", ["a", "b"], None)
    assert set(SPLIT_WORDS) == {"train", "validation", "test"}


def test_several_sources_are_joined_and_colliding_ids_told_apart(tmp_path):
    one = write_lines(tmp_path / "one.jsonl", PLAIN)
    two = write_lines(tmp_path / "two.jsonl", [SHAPES["complete conversations"][0], "{"])
    dataset, report = read_pairs([str(one), str(two)])
    assert dataset["id"][:] == ["one/row-1", "one/row-2", "two/row-1"]
    assert dataset[0]["chosen"][0] == {"role": "user", "content": "2+2?"}
    assert "prompt" not in dataset.column_names
    assert (report.read, report.kept, report.malformed) == (4, 3, 1)
    assert "two.jsonl" in report.reasons[0][1]
    with_margin = write_lines(tmp_path / "three.jsonl", [{**PLAIN[0], "margin": 1}])
    with pytest.raises(DataError, match=r"three\.jsonl have a margin"):
        read_pairs([str(one), str(with_margin)])


def test_streams_check_as_they_go(tmp_path):
    path = str(write_lines(tmp_path / "a.jsonl", [PLAIN[0], "{", PLAIN[1]]))
    dataset, report = read_pairs(path, streaming=True)
    assert isinstance(dataset, IterableDataset)
    assert isinstance(report, LiveReport)
    assert report.read == 0
    assert texts(dataset) == EXPECTED
    assert report.now == DataReport(
        path, report.digest, "plain text with a prompt", read=3, kept=2, malformed=1, reasons=report.reasons
    )
    rows = Dataset.from_list([*PLAIN, {"prompt": "a", "chosen": "b", "rejected": "b"}]).to_iterable_dataset()
    dataset, report = read_pairs(rows)
    assert texts(dataset) == EXPECTED
    assert (report.read, report.kept, report.identical) == (3, 2, 1)


def test_second_reading_comes_from_the_cache_and_a_changed_file_does_not(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", PLAIN)
    first, report = read_pairs(str(path))
    with monkeypatch.context() as patched:
        patched.setattr("normbt.pairs.read.check_rows", None)  # reading again would call it
        second, again = read_pairs(str(path))
    assert again == report
    assert (second._fingerprint, second[:]) == (first._fingerprint, first[:])
    write_lines(path, PLAIN[:1])
    assert read_pairs(str(path))[1].kept == 1


def test_long_json_items_cross_the_chunks_of_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("normbt.pairs.files._CHUNK", 7)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(PLAIN, indent=2, ensure_ascii=False), encoding="utf-8")
    assert texts(read_pairs(str(path), streaming=True)[0]) == EXPECTED


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=8))
def test_every_row_is_kept_or_counted_once(tmp_path, answers):
    rows = [{"prompt": "p", "chosen": "good", "rejected": "bad"}]
    rows += [{"prompt": "p", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    dataset, report = read_pairs(str(write_lines(tmp_path / "a.jsonl", rows)))
    assert report.read == len(rows) == report.kept + report.empty + report.identical + report.malformed
    expected = [row for row in rows if row["chosen"].strip() and row["rejected"].strip()]
    expected = [row for row in expected if row["chosen"].strip() != row["rejected"].strip()]
    assert [(row["chosen"], row["rejected"]) for row in dataset] == [
        (row["chosen"], row["rejected"]) for row in expected
    ]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data are not here")
def test_real_data_has_the_documented_counts():
    counts = {"quixbugs": 80, "hhh_alignment": 221, "tulu_human_eval": 667, "rewardbench": 2985}
    for name, count in counts.items():
        _, report = read_pairs(str(REAL / f"{name}.jsonl.gz"))
        assert (report.read, report.kept) == (count, count)
    _, report = read_pairs(str(REAL / "ultrafeedback_1k.jsonl.gz"), split="train")
    assert (report.kept, report.other_split) == (1088, 101)


def test_two_rated_conversations_are_a_preference_with_a_margin(tmp_path):
    """The columns of llm-blender/Unified-Feedback."""

    def rated(first, second):
        return {
            "conv_A": [USER, GOOD],
            "conv_B": [USER, BAD],
            "conv_A_rating": first,
            "conv_B_rating": second,
            "source": "s",
        }

    rows = [rated(4, 1.5), rated(0, 1), rated(2, 2.0), rated(None, 1), rated(float("nan"), 1)]
    pairs, report = read_pairs(write_lines(tmp_path / "a.jsonl", rows))
    assert texts(pairs) == [(None, [USER, GOOD], [USER, BAD]), (None, [USER, BAD], [USER, GOOD])]
    assert pairs["margin"][:] == [2.5, 1.0]
    assert set(pairs.column_names) == {"id", "chosen", "rejected", "margin", "source"}
    assert (report.read, report.kept, report.tied, report.malformed) == (5, 2, 1, 2)
    assert "1 rated equal and dropped" in report.summary()
    assert read_pairs(Dataset.from_list(rows[:2]))[0]["margin"][:] == [2.5, 1.0]
