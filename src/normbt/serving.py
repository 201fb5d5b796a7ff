"""Compare a server with the model it should serve: the scores it gives of ten texts, and what it does wrong."""

import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normbt.errors import ConfigError, DataError
from normbt.results import EXPECTED_FILE, ExpectedScores, read_expected_scores

TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference that rounding explains, as a share of the largest expected score, by the dtype of the server."""

_TIMEOUT = 60.0
Post = Callable[[str, dict[str, Any]], Any]


@dataclass(frozen=True)
class Comparison:
    """A server's score of one text beside the expected one."""

    name: str
    expected: float
    served: float
    agrees: bool


@dataclass(frozen=True)
class Verdict:
    """What a server does.

    Attributes:
        endpoint: the path that answered.
        model: the model as the server names it; empty if it does not say.
        tolerance: largest difference allowed, in reward units.
        comparisons: one for each text.
        diagnosis: what the server does instead, in words; None when all agree.
    """

    endpoint: str
    model: str
    tolerance: float
    comparisons: tuple[Comparison, ...]
    diagnosis: str | None

    @property
    def agrees(self) -> bool:
        """Whether every text got its expected score."""
        return all(comparison.agrees for comparison in self.comparisons)


def verify_server(url: str, checkpoint: str | Path | None = None, *, dtype: str | None = None) -> Verdict:
    """Ask a server for the scores of the built-in texts and compare them with those the model gave when it was saved.

    The server is asked as a user would ask it, without options, at ``/classify`` or else ``/pooling`` (vLLM's). Where
    the scores differ it is asked again in other ways, to find out what it does.

    Args:
        url: address of the server, such as ``http://localhost:8000``.
        checkpoint: folder with ``expected_scores.json``; None takes the folder that the server says it serves.
        dtype: what the server computes in: ``float32``, ``float16`` or ``bfloat16``; None for that of the checkpoint.

    Returns:
        The verdict.

    Raises:
        ConfigError: the server cannot be reached, refuses, or answers in a form that is not known.
        DataError: there are no expected scores.
    """
    if dtype is not None and dtype not in TOLERANCES:
        raise ConfigError(f"dtype must be one of {', '.join(TOLERANCES)}, found {dtype!r}.")
    server = _Server(url.rstrip("/"))
    model, root = server.model()
    folder = Path(checkpoint) if checkpoint is not None else root
    if folder is None or (checkpoint is None and not (folder / EXPECTED_FILE).is_file()):
        raise ConfigError(
            f"{url} does not serve a folder of this machine with {EXPECTED_FILE}: name it with --checkpoint DIR."
        )
    expected = read_expected_scores(folder)
    known = [score["score"] for score in expected["scores"]]
    tolerance = TOLERANCES[dtype or _known_dtype(expected)] * max(max(map(abs, known)), 1e-6)
    served = server.scores(expected)
    comparisons = tuple(
        Comparison(score["name"], score["score"], value, _close(value, score["score"], tolerance))
        for score, value in zip(expected["scores"], served, strict=True)
    )
    diagnosis = None
    if not all(comparison.agrees for comparison in comparisons):
        diagnosis = diagnose(expected, served, tolerance)
        if diagnosis is None:
            diagnosis = _ask_again(server, expected, tolerance)
    return Verdict(server.endpoint, model, tolerance, comparisons, diagnosis)


def diagnose(expected: ExpectedScores, served: Sequence[float], tolerance: float) -> str | None:
    """What a server does to give these scores; None when nothing that is known explains all of them.

    Args:
        expected: the model's own scores, and what they would be under known mistakes.
        served: the server's, in the same order.
        tolerance: largest difference that counts as equal, in reward units.

    Returns:
        One sentence with the remedy.
    """
    right = [score["score"] for score in expected["scores"]]
    readings = {"": right}
    for name in _common_misreadings(expected):
        readings[name] = [score["misreadings"][name] for score in expected["scores"]]
    for name, scores in readings.items():
        if name and _all_close(served, scores, tolerance):
            return f"The server reads each text {name}{_REMEDIES.get(name, '')}."
    # An activation squeezes differences: at most a quarter of them is left of it.
    for name, scores in readings.items():
        squeezed = [_sigmoid(value) for value in scores]
        if _all_close(served, squeezed, min(tolerance, 0.05)):
            also = f", and reads each text {name}{_REMEDIES.get(name, '')}" if name else ""
            return f"The server applies a sigmoid to the score{also}. {_RAW}"
    if all(value == 1.0 for value in served):
        return f"The server applies a softmax over one label, which is always 1. {_RAW}"
    if _all_close(served, [-value for value in right], tolerance):
        return "The server gives the scores with the opposite sign."
    return None


_RAW = 'Start vLLM with --pooler-config \'{"use_activation": false}\', or send "use_activation": false.'
_REMEDIES = {
    "without the last token": ": EOS is missing, or it pools the token before (a pad token equal to EOS does that)",
    "the first token alone": ": it pools the first token (pooling type CLS); use LAST",
    "with a second BOS token": ": the text has one already; send add_special_tokens=false",
}


def _ask_again(server: "_Server", expected: ExpectedScores, tolerance: float) -> str:
    """Send token ids instead of texts: is it the tokenizer or the model?"""
    right = [score["score"] for score in expected["scores"]]
    served = server.scores(expected, as_tokens=True)
    if _all_close(served, right, tolerance):
        return (
            "The scores of token ids agree: the server makes other tokens of the texts (another tokenizer, or options)."
        )
    of_tokens = diagnose(expected, served, tolerance)
    if of_tokens is not None:
        return f"{of_tokens} That is so for token ids; of the texts it makes other tokens besides."
    spread = max(right) - min(right)
    if max(served) - min(served) < 1e-3 * spread:
        return "The server gives every text nearly the same score: its head is not this model's."
    return "No known mistake explains the scores: another model, another head, or lower precision than assumed."


class _Server:
    """A server that speaks vLLM's classify or pooling API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.endpoint = ""
        self._model = ""

    def model(self) -> tuple[str, Path | None]:
        """The name of the served model, and the folder it says it is in."""
        try:
            answer = self._request("/v1/models", None)
        except _Refused:  # not a server that lists its models
            return "", None
        models = answer.get("data") if isinstance(answer, dict) else None
        first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
        self._model = str(first.get("id") or "")
        root = first.get("root") or first.get("id")
        return self._model, Path(str(root)) if root else None

    def scores(self, expected: ExpectedScores, *, as_tokens: bool = False) -> list[float]:
        """The server's score of every text."""
        return [self._score(dict(score), as_tokens) for score in expected["scores"]]

    def _score(self, text: dict[str, Any], as_tokens: bool) -> float:
        sent: dict[str, Any] = {"model": self._model} if self._model else {}
        if as_tokens or text["text"] is None:
            sent["input"] = text["token_ids"]
        else:
            sent |= {"input": text["text"], "add_special_tokens": text["add_special_tokens"]}
        paths = [self.endpoint] if self.endpoint else ["/classify", "/pooling"]
        refusals = []
        for path in paths:
            try:
                answer = self._request(path, sent | ({"task": "classify"} if path == "/pooling" else {}))
            except _Refused as refused:
                refusals.append(f"{path}: {refused}")
                continue
            self.endpoint = path
            return _number(answer, f"{self.url}{path}")
        raise ConfigError(f"{self.url} does not score {text['name']!r} ({'; '.join(refusals)}). Is it a reward model?")

    def _request(self, path: str, sent: dict[str, Any] | None) -> Any:
        data = None if sent is None else json.dumps(sent).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise _Refused(f"status {error.code} {error.read()[:300].decode('utf-8', 'replace')}".strip()) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.url}{path} does not answer in JSON. Is it a server of a model?") from error
        except (OSError, ValueError) as error:  # not reachable, too slow, or no address
            reason = getattr(error, "reason", error)
            raise ConfigError(
                f"{self.url} cannot be reached ({reason}). Is the server up, and the address right?"
            ) from error


class _Refused(Exception):
    """The server is there and says no."""


def _number(answer: Any, where: str) -> float:
    """The one number in an answer: `probs` of the classify API, `data` of the pooling API."""
    try:
        [entry] = answer["data"]
        values = entry["probs"] if "probs" in entry else entry["data"]
        while isinstance(values, list):
            [values] = values
        return float(values)
    except (KeyError, TypeError, ValueError) as problem:
        shown = json.dumps(answer)[:200]
        raise ConfigError(
            f"{where} does not give one number for a text, but {shown}. A reward model has one label and pools one "
            "token: start vLLM with --runner pooling --convert classify."
        ) from problem


def _known_dtype(expected: ExpectedScores) -> str:
    if expected["dtype"] not in TOLERANCES:
        raise DataError(f"the expected scores are of dtype {expected['dtype']!r}; pass --dtype of the server.")
    return expected["dtype"]


def _common_misreadings(expected: ExpectedScores) -> list[str]:
    first, *others = (score["misreadings"] for score in expected["scores"])
    return [name for name in first if all(name in other for other in others)]


def _all_close(values: Sequence[float], others: Sequence[float], tolerance: float) -> bool:
    return all(_close(one, other, tolerance) for one, other in zip(values, others, strict=True))


def _close(value: float, other: float, tolerance: float) -> bool:
    return math.isfinite(value) and abs(value - other) <= tolerance


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700 else 0.0
