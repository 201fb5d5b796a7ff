"""The exported model in plain Transformers and behind a server: the same scores; every known mistake by its name."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from normbt import cli
from normbt.expected import TEXTS, write_expected_scores
from normbt.results import EXPECTED_FILE, read_expected_scores
from normbt.serving import Verdict, diagnose, verify_server
from test_train import train
from test_trainer import word_pairs
from tiny import tiny_model


@pytest.fixture(scope="module")
def served(tmp_path_factory, checkpoint) -> Path:
    """What `normbt train` leaves behind, of a model whose tokenizer has no chat template."""
    folder = tmp_path_factory.mktemp("served")
    rows = [{"prompt": f"w{i} ", "chosen": f"w{i + 5} w9", "rejected": f"w{i + 7}"} for i in range(5, 21)]
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert train(checkpoint, folder / "rm", "--dataset_name", str(pairs), steps=2) == 0
    return folder / "rm"


@pytest.fixture(scope="module")
def chatting(tmp_path_factory) -> Path:
    """A reward model with a byte-level tokenizer, a chat template that writes BOS, and pad = EOS made fit."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from normbt.encoding import prepare_tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: index + 2 for index, letter in enumerate(letters)}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    prepare_tokenizer(tokenizer, conversational=True)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    size = len(tokenizer)
    model = tiny_model("llama", vocab_size=size, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("chatting")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_expected_scores(folder, model, tokenizer)
    return folder


def test_train_writes_ten_expected_scores_beside_the_model(served):
    record = read_expected_scores(served)
    assert [score["name"] for score in record["scores"]] == [name for name, _, _ in TEXTS]
    assert len(record["scores"]) == 10
    assert len({round(score["score"], 6) for score in record["scores"]}) > 5, "texts that cannot be told apart"


@pytest.mark.parametrize("model", ["served", "chatting"])
def test_a_pipeline_gives_our_scores(model, request):
    """Alone and padded in a batch, with the activation switched off and, since the export says so, by default."""
    folder = request.getfixturevalue(model)
    record = read_expected_scores(folder)
    scored = [score for score in record["scores"] if score["text"] is not None]
    assert len(scored) == 10 if model == "chatting" else len(scored) > 5
    tokens = {"add_special_tokens": scored[0]["add_special_tokens"]}
    classify = pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu")
    for options in ({"function_to_apply": "none"}, {"function_to_apply": "none", "batch_size": 10}):
        given = classify([score["text"] for score in scored], **options, **tokens)
        for score, answer in zip(scored, given, strict=True):
            assert answer["score"] == pytest.approx(score["score"], abs=1e-5), score["name"]
    if model == "served":
        assert classify(scored[0]["text"], **tokens)[0]["score"] == pytest.approx(scored[0]["score"], abs=1e-5)


def test_plain_transformers_gives_our_scores(served):
    reloaded = AutoModelForSequenceClassification.from_pretrained(served).eval()
    for score in read_expected_scores(served)["scores"]:
        with torch.no_grad():
            logits = reloaded(input_ids=torch.tensor([score["token_ids"]])).logits
        assert logits.item() == pytest.approx(score["score"], abs=1e-5)


def test_an_adapter_gives_the_same_scores_merged_and_unmerged(tmp_path, checkpoint):
    from peft import AutoPeftModelForSequenceClassification, LoraConfig

    from normbt.config import NormBTConfig
    from normbt.trainer import NormBTTrainer
    from test_trainer import settings

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    config = NormBTConfig(**settings(tmp_path / "run", max_steps=3, learning_rate=0.1))
    trainer = NormBTTrainer(
        str(checkpoint), config, train_dataset=word_pairs(16), processing_class=tokenizer, peft_config=lora
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    write_expected_scores(tmp_path / "adapter", trainer.model, tokenizer)
    unmerged = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1).eval()
    unmerged_scores = rescored(unmerged, tmp_path / "adapter")
    merged: Any = unmerged.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    for scores in (unmerged_scores, rescored(reloaded, tmp_path / "adapter")):
        for score, value in zip(read_expected_scores(tmp_path / "adapter")["scores"], scores, strict=True):
            assert value == pytest.approx(score["score"], abs=1e-5), score["name"]


@torch.no_grad()
def rescored(model: Any, folder: Path) -> list[float]:
    sequences = [score["token_ids"] for score in read_expected_scores(folder)["scores"]]
    return [model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences]


def test_nothing_that_is_saved_holds_weights_outside_safetensors(served):
    """Of the pickles that Transformers writes, none is the model: optimizer, scheduler, random state and arguments."""
    pickles = {path.name for path in served.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")}
    assert pickles <= {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert (served / "model.safetensors").is_file()


# --- servers ----------------------------------------------------------------------------------------------------------

Reads = Callable[[dict[str, Any], list[int]], list[int]]


class StandIn:
    """A server that speaks vLLM's APIs with a model in this process; its mistakes are arguments."""

    def __init__(
        self,
        folder: Path,
        *,
        activation: Callable[[float], float] = float,
        reads: Reads = lambda sent, ids: ids,
        paths: tuple[str, ...] = ("/classify", "/pooling"),
        respelled: bool = False,
        root: str | None = None,
    ) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.activation, self.reads, self.paths, self.respelled = activation, reads, paths, respelled
        self.root = root or str(folder)
        self.asked: list[dict[str, Any]] = []

    def answer(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(sent)
        ids = sent["input"]
        if isinstance(ids, str):
            text = ids.upper() if self.respelled else ids
            ids = self.tokenizer(text, add_special_tokens=sent.get("add_special_tokens", True))["input_ids"]
        with torch.no_grad():
            score = self.model(input_ids=torch.tensor([self.reads(sent, ids)])).logits.item()
        value = score if sent.get("use_activation") is False else self.activation(score)
        if path == "/classify":
            entry = {"index": 0, "label": "LABEL_0", "probs": [value], "num_classes": 1}
        else:
            assert sent["task"] == "classify"
            entry = {"index": 0, "object": "pooling", "data": [value]}
        return {"id": "x", "object": "list", "model": "rm", "data": [entry], "usage": {}}


@contextmanager
def running(stand_in: "StandIn | Recorded | None", *, status: int = 200, body: bytes | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            root = stand_in.root if stand_in else "nowhere"
            self.reply(200, {"object": "list", "data": [{"id": "rm", "object": "model", "root": root}]})

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if stand_in is None:
                self.reply(status, body or b"")
            elif self.path not in stand_in.paths:
                self.reply(404, {"detail": "Not Found"})
            else:
                self.reply(200, stand_in.answer(self.path, sent))

        def reply(self, code: int, answer: dict[str, Any] | bytes) -> None:
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("paths", [("/classify",), ("/pooling",)])
@pytest.mark.parametrize("model", ["served", "chatting"])
def test_a_server_that_is_right(model, paths, request, capsys):
    folder = request.getfixturevalue(model)
    stand_in = StandIn(folder, paths=paths)
    with running(stand_in) as url:
        assert cli.main(["verify-server", url]) == 0
    printed = capsys.readouterr().out
    assert f"{paths[0]} gives the raw scores of the model" in printed
    assert printed.count(" ok ") == 10
    assert all("use_activation" not in sent for sent in stand_in.asked), "asked otherwise than a user would"


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "sigmoid": ({"activation": sigmoid}, "applies a sigmoid"),
    "softmax": ({"activation": lambda value: 1.0}, "applies a softmax"),
    "token before": ({"reads": lambda sent, ids: ids[:-1]}, "reads each text without the last token"),
    "first token": ({"reads": lambda sent, ids: ids[:1]}, "pools the first token"),
    "second bos": ({"reads": lambda sent, ids: [0, *ids]}, "with a second BOS"),
    "both": (
        {"activation": sigmoid, "reads": lambda sent, ids: ids[:-1]},
        "a sigmoid to the score, and reads each text",
    ),
    "tokenizer": ({"respelled": True}, "makes other tokens of the texts"),
    "sign": ({"activation": lambda value: -value}, "opposite sign"),
    "head": ({"activation": lambda value: 0.25}, "nearly the same score"),
    "other": ({"activation": lambda value: value * value + 3}, "No known mistake"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_server_that_is_wrong_is_told_what_it_does(chatting, mistake, capsys):
    changes, words = WRONG[mistake]
    with running(StandIn(chatting, **changes)) as url:
        assert cli.main(["verify-server", url, "--checkpoint", str(chatting)]) == 1
    printed = capsys.readouterr().out
    assert words in printed.replace("\n", " ")
    assert "DIFFERS" in printed


def test_a_server_of_another_model_of_one_text_is_no_known_mistake(chatting):
    record = read_expected_scores(chatting)
    right = [score["score"] for score in record["scores"]]
    assert diagnose(record, [right[0] + 1, *right[1:]], "float32") is None


def test_rounding_is_allowed_by_dtype(chatting):
    def rounded(value: float) -> float:
        return float(torch.tensor(value).bfloat16())

    with running(StandIn(chatting, activation=rounded)) as url:
        assert not verify_server(url, chatting).agrees
        assert verify_server(url, chatting, dtype="bfloat16").agrees


class Recorded:
    """A server that gives each of ten texts the score it was told to; the texts are their numbers."""

    paths = ("/classify",)

    def __init__(self, folder: Path, served: list[float]) -> None:
        self.root, self.served = str(folder), served

    def answer(self, path: str, sent: dict[str, Any]) -> dict[str, Any]:
        number = sent["input"] if isinstance(sent["input"], str) else sent["input"][0]
        return {"data": [{"probs": [self.served[int(number)]]}]}


def verdict_of(folder: Path, right: list[float], served: list[float], dtype: str, **misread: list[float]) -> Verdict:
    record = {"schema_version": 1, "kind": "expected_scores", "dtype": "float32", "conversational": False}
    scores = [
        {"name": f"text {i}", "prompt": "", "response": "", "text": str(i), "add_special_tokens": True,
         "token_ids": [i], "score": score, "misreadings": {name: scores[i] for name, scores in misread.items()}}
        for i, score in enumerate(right)
    ]  # fmt: skip
    (folder / EXPECTED_FILE).write_text(json.dumps(record | {"scores": scores, "provenance": {}}))
    with running(Recorded(folder, served)) as url:
        return verify_server(url, dtype=dtype)


AROUND_FIVE = [5 + 0.04 * index for index in range(10)]  # BT leaves the offset free


def test_scores_with_an_offset_do_not_hide_a_server_that_is_wrong(tmp_path):
    for served, words in (
        ([5.18] * 10, "nearly the same score"),
        (AROUND_FIVE[::-1], "No known mistake"),
        ([*AROUND_FIVE[:9], 5.18], "No known mistake"),
    ):
        verdict = verdict_of(tmp_path, AROUND_FIVE, served, "bfloat16")
        assert not verdict.agrees
        assert words in verdict.diagnosis
    assert [comparison.agrees for comparison in verdict.comparisons] == [True] * 9 + [False]
    rounded = [float(torch.tensor(score).bfloat16()) for score in AROUND_FIVE]
    assert verdict_of(tmp_path, AROUND_FIVE, rounded, "bfloat16").agrees
    shifted = [score + 0.1 for score in rounded]  # an error that all share
    assert verdict_of(tmp_path, AROUND_FIVE, shifted, "bfloat16").agrees


def test_agreement_that_shows_nothing_is_no_agreement(tmp_path):
    close = [5 + 0.01 * index for index in range(10)]
    verdict = verdict_of(tmp_path, close, close, "bfloat16")
    assert all(comparison.agrees for comparison in verdict.comparisons)
    assert not verdict.agrees
    assert "cannot be told at this precision: the expected scores are within 0.09" in verdict.diagnosis
    assert verdict_of(tmp_path, close, close, "float32").agrees
    assert not verdict_of(tmp_path, [1.0] * 10, [1.0] * 10, "float32").agrees


def test_scores_nearer_to_a_known_mistake_are_no_agreement(tmp_path):
    right = [2.0 * index - 9 for index in range(10)]
    mistaken = [score + (-1) ** index * 0.3 for index, score in enumerate(right)]
    near = [score + 0.4 * (other - score) for score, other in zip(right, mistaken, strict=True)]
    far = [score + 0.6 * (other - score) for score, other in zip(right, mistaken, strict=True)]
    assert verdict_of(tmp_path, right, near, "bfloat16", late=mistaken).agrees
    verdict = verdict_of(tmp_path, right, far, "bfloat16", late=mistaken)
    assert all(comparison.agrees for comparison in verdict.comparisons)
    assert not verdict.agrees
    assert "whether the server is right or reads each text late" in verdict.diagnosis
    harmless = [score + 1e-3 for score in right]  # bfloat16 cannot even write the difference
    assert verdict_of(tmp_path, right, harmless, "bfloat16", late=harmless).agrees


def test_what_cannot_be_told_is_status_1(tmp_path, capsys):
    verdict_of(tmp_path, [1.0] * 10, [1.0] * 10, "float32")  # writes the record
    with running(Recorded(tmp_path, [1.0] * 10)) as url:
        assert cli.main(["verify-server", url]) == 1
    assert "does not show that it is right" in capsys.readouterr().out.replace("\n", " ")


def refusals(chatting: Path, tmp_path: Path) -> dict[str, tuple[Any, list[str], str]]:
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / EXPECTED_FILE).write_text('{"schema_version": 1, "kind": "expected_scores", "scores": [{}]}')
    here = ["--checkpoint", str(chatting)]
    return {
        "down": (None, here, "cannot be reached"),
        "no address": ("localhost:80", here, "cannot be reached"),
        "no json": (running(None, body=b"<html>"), here, "does not answer in JSON"),
        "an error": (running(None, status=500, body=b"boom"), here, "status 500 boom"),
        "many numbers": (running(None, body=b'{"data": [{"data": [[0.1], [0.2]]}]}'), here, "--runner pooling"),
        "unknown folder": (running(StandIn(chatting, root="org/name")), [], "name it with --checkpoint"),
        "no file": (running(StandIn(chatting)), ["--checkpoint", str(empty)], "no such file"),
        "damaged": (running(StandIn(chatting)), ["--checkpoint", str(damaged)], "not the expected scores"),
        "dtype": (running(StandIn(chatting)), [*here, "--dtype", "int8"], "dtype must be one of"),
    }


def test_what_cannot_be_asked_is_one_message_and_status_2(chatting, tmp_path, capsys):
    for case, (server, argv, message) in refusals(chatting, tmp_path).items():
        if server is None:
            with running(None) as url:
                pass  # nobody listens there any more
            status = cli.main(["verify-server", url, *argv])
        elif isinstance(server, str):
            status = cli.main(["verify-server", server, *argv])
        else:
            with server as url:
                status = cli.main(["verify-server", url, *argv])
        printed = capsys.readouterr().err
        assert (status, message in printed.replace("\n", " ")) == (2, True), (case, printed)
