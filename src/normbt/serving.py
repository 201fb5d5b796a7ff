"""Compare a server with the model it should serve: the scores it gives of ten texts, and what it does wrong."""

import json
import math
import statistics
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from normbt.errors import ConfigError, DataError
from normbt.results import EXPECTED_FILE, ExpectedScores, read_expected_scores

TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""What rounding explains, by the dtype of the server: of a score as a share of the largest expected one, of the
differences between texts as a share of their spread."""

ROUNDING = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
"""What rounding does to a difference however small the spread is, as a share of the largest expected score: two units
in the last place of 16 bits, the order of summation in 32."""

_TELLING = 0.25
"""Share of the spread up to which a tolerance tells a server that is right from one that says the same of all texts."""

_TIMEOUT = 60.0
Post = Callable[[str, dict[str, Any]], Any]


class Tolerance(NamedTuple):
    """How far a server that is right may be from the expected scores, in reward units.

    Attributes:
        score: of any text.
        difference: of any text once the error that all texts share is taken off. BT leaves the offset of rewards free:
            what a model says is in the differences, and a small share of scores around 5 may be more than all of them.
    """

    score: float
    difference: float


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
        tolerance: what was allowed.
        comparisons: one for each text.
        diagnosis: what the server does instead, or why agreement does not show that it is right, in words; None when
            it is right.
    """

    endpoint: str
    model: str
    tolerance: Tolerance
    comparisons: tuple[Comparison, ...]
    diagnosis: str | None

    @property
    def agrees(self) -> bool:
        """Whether every text got its expected score, and a server that is wrong would not have been taken for right."""
        return self.diagnosis is None and all(comparison.agrees for comparison in self.comparisons)


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
    dtype = dtype or _known_dtype(expected)
    tolerance = tolerances(expected, dtype)
    served = server.scores(expected)
    right = _right(expected)
    comparisons = tuple(
        Comparison(score["name"], score["score"], value, agrees)
        for score, value, agrees in zip(expected["scores"], served, _agreement(served, right, tolerance), strict=True)
    )
    if all(comparison.agrees for comparison in comparisons):
        diagnosis = _undecided(expected, served, dtype)
    else:
        diagnosis = diagnose(expected, served, dtype) or _ask_again(server, expected, dtype)
    return Verdict(server.endpoint, model, tolerance, comparisons, diagnosis)


def tolerances(expected: ExpectedScores, dtype: str) -> Tolerance:
    """What a server that computes in this dtype is allowed.

    Args:
        expected: the model's own scores.
        dtype: a key of :data:`TOLERANCES`.
    """
    right = _right(expected)
    return Tolerance(
        TOLERANCES[dtype] * max(*map(abs, right), 1e-6),
        max(TOLERANCES[dtype] * _spread(right), _rounding(right, dtype)),
    )


def diagnose(expected: ExpectedScores, served: Sequence[float], dtype: str) -> str | None:
    """What a server does to give these scores; None when nothing that is known explains all of them.

    Args:
        expected: the model's own scores, and what they would be under known mistakes.
        served: the server's, in the same order.
        dtype: what the server computes in, a key of :data:`TOLERANCES`.

    Returns:
        One sentence with the remedy.
    """
    right, misreadings, tolerance = _right(expected), _misreadings(expected), tolerances(expected, dtype)
    for name, scores in sorted(misreadings.items(), key=lambda reading: math.dist(served, reading[1])):
        if all(_agreement(served, scores, tolerance)):
            return f"The server reads each text {name}{_REMEDIES.get(name, '')}."
    # An activation squeezes differences: at most a quarter of them is left of it.
    for name, scores in {"": right, **misreadings}.items():
        squeezed = [_sigmoid(value) for value in scores]
        if all(_agreement(served, squeezed, Tolerance(min(tolerance.score, 0.05), math.inf))):
            also = f", and reads each text {name}{_REMEDIES.get(name, '')}" if name else ""
            return f"The server applies a sigmoid to the score{also}. {_RAW}"
    if all(value == 1.0 for value in served):
        return f"The server applies a softmax over one label, which is always 1. {_RAW}"
    if all(_agreement(served, [-value for value in right], tolerance)):
        return "The server gives the scores with the opposite sign."
    return None


_RAW = 'Start vLLM with --pooler-config \'{"use_activation": false}\', or send "use_activation": false.'
_REMEDIES = {
    "without the last token": ": EOS is missing, or it pools the token before (a pad token equal to EOS does that)",
    "the first token alone": ": it pools the first token (pooling type CLS); use LAST",
    "with a second BOS token": ": the text has one already; send add_special_tokens=false",
}


def _undecided(expected: ExpectedScores, served: Sequence[float], dtype: str) -> str | None:
    """Why scores that agree do not show that the server is right; None when they do."""
    right = _right(expected)
    spread, difference = _spread(right), tolerances(expected, dtype).difference
    if difference > _TELLING * spread:
        return (
            f"It cannot be told at this precision: the expected scores are within {spread:.2g} of each other, and "
            f"differences that {dtype} explains reach {difference:.2g}.{_FINER if dtype != 'float32' else ''}"
        )
    for name, scores in _misreadings(expected).items():
        # A mistake that changes no score by more than rounding does is no mistake of the scores.
        harmless = max(abs(one - other) for one, other in zip(scores, right, strict=True)) <= _rounding(right, dtype)
        if not harmless and math.dist(served, scores) <= math.dist(served, right):
            return (
                f"It cannot be told at this precision whether the server is right or reads each text {name}"
                f"{_REMEDIES.get(name, '')}; its scores are at least as near to those.{_FINER}"
            )
    return None


_FINER = " Start it in float32 and ask again with --dtype float32."


def _ask_again(server: "_Server", expected: ExpectedScores, dtype: str) -> str:
    """Send token ids instead of texts: is it the tokenizer or the model?"""
    right = _right(expected)
    served = server.scores(expected, as_tokens=True)
    if all(_agreement(served, right, tolerances(expected, dtype))):
        return (
            "The scores of token ids agree: the server makes other tokens of the texts (another tokenizer, or options)."
        )
    of_tokens = diagnose(expected, served, dtype)
    if of_tokens is not None:
        return f"{of_tokens} That is so for token ids; of the texts it makes other tokens besides."
    if _spread(served) < 1e-3 * _spread(right):
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


def _right(expected: ExpectedScores) -> list[float]:
    return [score["score"] for score in expected["scores"]]


def _misreadings(expected: ExpectedScores) -> dict[str, list[float]]:
    """The scores of each mistake that can be made of every text."""
    every = [score["misreadings"] for score in expected["scores"]]
    return {name: [scores[name] for scores in every] for name in every[0] if all(name in scores for scores in every)}


def _agreement(served: Sequence[float], scores: Sequence[float], tolerance: Tolerance) -> list[bool]:
    """Which of the served scores are those: near them, and as far from each other."""
    errors = [value - score for value, score in zip(served, scores, strict=True)]
    shared = statistics.median([error for error in errors if math.isfinite(error)] or [0.0])
    return [
        math.isfinite(error) and abs(error) <= tolerance.score and abs(error - shared) <= tolerance.difference
        for error in errors
    ]


def _spread(scores: Sequence[float]) -> float:
    return max(scores) - min(scores)


def _rounding(right: Sequence[float], dtype: str) -> float:
    return ROUNDING[dtype] * max(*map(abs, right), 1e-6)


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700 else 0.0
