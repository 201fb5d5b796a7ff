"""The raw scores of ten built-in texts, written beside a model, so that any server can be compared with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from normbt.encoding.sequences import Encoder
from normbt.errors import ModelError
from normbt.head import find_head, unwrap
from normbt.loading import max_positions
from normbt.results import EXPECTED_FILE, SCHEMA_VERSION, ExpectedScore, ExpectedScores, provenance, write_json
from normbt.scoring import score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS: tuple[tuple[str, str, str], ...] = (
    ("plain", "What is the capital of France?", "The capital of France is Paris."),
    ("wrong", "What is the capital of France?", "The capital of France is Lyon."),
    ("almost empty", "Say nothing.", "."),
    ("no prompt", "", "A sentence that answers nobody."),
    ("unicode", "Übersetze „naïve“: 你好, мир, שלום", "Hello, world 🙂 — e\u0301 and é differ in bytes."),
    ("white space", "List two colours.\n", "  - red\n\t- blue\n\n"),
    ("code", "Reverse a list in Python.", "def reverse(xs):\n    return xs[::-1]  # O(n)"),
    ("markup", 'Is "<b>" a tag?', '<b>Yes</b> & "no": {{ 1 }} \\n </s>'),
    ("numbers", "17 * 23 = ?", "17 * 23 = 17 * 20 + 17 * 3 = 340 + 51 = 391."),
    ("long", "Tell me about rivers.", "Rivers carry water from the mountains to the sea. " * 40),
)
"""Name, prompt and response of each text."""

_WITHOUT_LAST = "without the last token"
_FIRST_ONLY = "the first token alone"
_SECOND_BOS = "with a second BOS token"


def expected_scores(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, max_length: int | None = None
) -> ExpectedScores:
    """Raw scores of the built-in texts, and what they would be under the mistakes that servers make.

    Args:
        model: a reward model on its device; its mode is restored. Not one that is sharded over processes.
        tokenizer: its tokenizer. With a chat template the texts are conversations.
        max_length: longest sequence; texts that are longer lose their end. None for what the model can read.

    Returns:
        The record. Where sending the text would not give the same token ids, ``text`` is None.

    Raises:
        ModelError: the model has no usable head, or a score is not finite.
    """
    find_head(model)
    conversational = bool(tokenizer.chat_template)
    encoder = Encoder(tokenizer)
    longest = min(length for length in (max_length, max_positions(unwrap(model)), 1 << 16) if length is not None)
    limit = longest - 1  # a misreading has one BOS more
    rows = [_row(encoder, *text, conversational=conversational, limit=limit) for text in TEXTS]
    readings: list[tuple[ExpectedScore, str | None, list[int]]] = []
    for row in rows:
        readings += [(row, None, row["token_ids"])]
        readings += [(row, name, ids) for name, ids in _misreadings(tokenizer, row["token_ids"]).items()]
    scores = score(model, [ids for _, _, ids in readings])
    if scores.non_finite:
        raise ModelError(f"{scores.non_finite} of {len(readings)} built-in sequences get a score that is not finite.")
    for (row, name, _), value in zip(readings, scores.rewards.tolist(), strict=True):
        if name is None:
            row["score"] = value
        else:
            row["misreadings"][name] = value
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "expected_scores",
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "conversational": conversational,
        "scores": rows,
        "provenance": provenance(config={"max_length": max_length}),
    }


def write_expected_scores(
    folder: str | Path, model: nn.Module, tokenizer: "PreTrainedTokenizerBase", *, max_length: int | None = None
) -> Path:
    """Write ``expected_scores.json`` beside a model.

    Args:
        folder: where the model was saved.
        model: as in :func:`expected_scores`.
        tokenizer: its tokenizer.
        max_length: as there.

    Returns:
        The file.

    Raises:
        ConfigError: it cannot be written.
        ModelError: as in :func:`expected_scores`.
    """
    with torch.random.fork_rng(devices=[]):
        record = expected_scores(model, tokenizer, max_length=max_length)
    path = Path(folder) / EXPECTED_FILE
    write_json(path, dict(record))
    return path


def _row(encoder: Encoder, name: str, prompt: str, response: str, *, conversational: bool, limit: int) -> ExpectedScore:
    tokenizer = encoder.tokenizer
    if conversational:
        messages = [{"role": "user", "content": prompt}] if prompt else []
        messages.append({"role": "assistant", "content": response})
        [encoded] = encoder.conversations([messages])
        if encoded.problem is not None:  # a template that wants a user first
            messages = [{"role": "user", "content": prompt or "?"}, messages[-1]]
            [encoded] = encoder.conversations([messages])
        if encoded.problem is not None:
            raise ModelError(f"the built-in text {name!r} cannot be scored: {encoded.problem}.")
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        text += str(tokenizer.eos_token) if encoded.eos_appended else ""
    else:
        [encoded] = encoder.texts([prompt + response])
        text = prompt + response
        if tokenizer.eos_token is not None and encoder.eos_id not in encoder.affixes.closing:
            text += str(tokenizer.eos_token)
    ids = encoded.ids[:limit]
    again = tokenizer(text, add_special_tokens=not conversational, verbose=False)["input_ids"]
    return {
        "name": name,
        "prompt": prompt,
        "response": response,
        "text": text if list(again) == ids else None,
        "add_special_tokens": not conversational,
        "token_ids": ids,
        "score": 0.0,
        "misreadings": {},
    }


def _misreadings(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> dict[str, list[int]]:
    """Sequences whose score a server gives when it reads another token, or another sequence, than it should."""
    readings = {_FIRST_ONLY: list(ids[:1])}
    if len(ids) > 1:
        readings[_WITHOUT_LAST] = list(ids[:-1])
    if tokenizer.bos_token_id is not None:
        readings[_SECOND_BOS] = [int(tokenizer.bos_token_id), *ids]  # type: ignore[arg-type] - one token
    return readings
