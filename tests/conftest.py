"""What holds for every test: no network, no model hub, few threads, fixed seeds.

The environment is set here, before anything imports torch or datasets. pytest loads this file for the doctests under
`src` too, since `tests` is one of its test paths.
"""

import json
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_HUB_HOME = tempfile.mkdtemp(prefix="normbt-tests-")

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=_HUB_HOME,  # caches of tests neither read nor fill the user's
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", ""),  # CPU unless the caller names a device
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits for the first

_LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", "0.0.0.0"}
_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex

collect_ignore = ["openrlhf_on_cpu.py"]
"""A program that opt-in tests start. Looking for doctests in it imports it, which makes this process OpenRLHF's."""


def _refuse_remote(sock: socket.socket, address: object) -> None:
    if sock.family == socket.AF_UNIX:
        return
    host = address[0] if isinstance(address, tuple) else address
    if host not in _LOCAL_HOSTS:
        raise RuntimeError(f"a test tried to connect to {address!r}; tests use no network")


def _guarded_connect(sock: socket.socket, address: object) -> None:
    _refuse_remote(sock, address)
    _connect(sock, address)  # type: ignore[arg-type] - the signature of the C method is wider than its stub


def _guarded_connect_ex(sock: socket.socket, address: object) -> int:
    _refuse_remote(sock, address)
    return _connect_ex(sock, address)  # type: ignore[arg-type] - as above


def pytest_configure(config: pytest.Config) -> None:
    """Close the network for the whole session: imports, collection and doctests too, not only test bodies."""
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign] - replaced on purpose
    socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign] - replaced on purpose


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the sockets back and remove the caches."""
    socket.socket.connect = _connect  # type: ignore[method-assign] - put back
    socket.socket.connect_ex = _connect_ex  # type: ignore[method-assign] - put back
    shutil.rmtree(_HUB_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state, without importing what the test does not use."""
    random.seed(0)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal reward model with its tokenizer, saved as a user would have it; tests only read it."""
    return _save_checkpoint(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def encoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT reward model with its tokenizer."""
    return _save_checkpoint(tmp_path_factory.mktemp("models") / "bert", "bert")


def _save_checkpoint(folder: Path, kind: str) -> Path:
    # Imported here: most tests need no model, and Transformers takes seconds.
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    import tiny

    vocabulary = {"<pad>": tiny.PAD, "<bos>": tiny.BOS, "<eos>": tiny.EOS, "<unk>": 3, "<cls>": 4}
    vocabulary |= {f"w{index}": index for index in range(tiny.FIRST_WORD, tiny.VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    tiny.tiny_model(kind).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Sixteen preference pairs of words that the tiny tokenizer knows, in a JSONL file."""
    return write_word_pairs(tmp_path / "pairs.jsonl", 16)


@pytest.fixture
def many_pairs(tmp_path: Path) -> Path:
    """Forty of them, enough for shares of a training set."""
    return write_word_pairs(tmp_path / "many.jsonl", 40)


def write_word_pairs(path: Path, count: int, **further: Sequence[Any]) -> Path:
    """Write pairs of words; each further column takes its values in turn."""
    generator = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{generator.randrange(5, 64)}" for _ in range(count))

    rows = [
        {"prompt": words(4) + " ", "chosen": words(5), "rejected": words(6)}
        | {name: values[number % len(values)] for name, values in further.items()}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
