"""The files a job writes: every field with its type, and the only functions that write and read them.

A file appears whole or not at all: it is written beside its final name, flushed to the disk and renamed. Numbers that
JSON cannot hold (NaN, infinities) become ``null``, are counted, and are named in a warning. ``docs/results-format.md``
describes every field declared here, and a test compares the two.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from normbt.errors import ConfigError, DataError, StateError

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
"""Version of the file formats below; raised by one whenever the meaning of an existing field changes."""

PAIRS_FILE = "pairs.jsonl"
SUMMARY_FILE = "summary.json"
LEADERBOARD_FILE = "leaderboard.json"

RECORDED_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "tokenizers", "numpy", "scipy")


class Provenance(TypedDict):
    """Where a result comes from: enough to run it again."""

    created: str
    command: list[str]
    normbt: str | None
    commit: str | None
    python: str
    platform: str
    packages: dict[str, str | None]
    seed: int | None
    config: dict[str, Any]
    data: list[dict[str, Any]]


class EvaluationPair(TypedDict):
    """One line of an evaluation's ``pairs.jsonl``."""

    id: str
    source: str | None
    category: str | None
    subset: str | None
    cluster_id: str
    score_chosen: float | None
    score_rejected: float | None
    correct: bool
    tie: bool
    distance: float | None
    n_tokens_chosen: int
    n_tokens_rejected: int
    truncated: bool
    n_characters_chosen: int
    n_characters_rejected: int


class Score(TypedDict):
    """An accuracy (or a weighted mean of accuracies) over a group of pairs, with its intervals and counts."""

    value: float
    low: float
    high: float
    wilson_low: float | None
    wilson_high: float | None
    length_only: float
    pairs: int
    clusters: int
    correct: int
    ties: int
    non_finite: int
    truncated: int


class Coverage(TypedDict):
    """How much of the official benchmark the data held."""

    missing_subsets: list[str]
    incomplete_subsets: dict[str, list[int]]


class InferenceSettings(TypedDict):
    """What decides the exact value of a score, apart from the weights."""

    dtype: str
    device: str
    attention: str | None
    max_length: int
    batch_tokens: int
    batching: str
    template: str
    untrained_head: bool


class EvaluationSummary(TypedDict):
    """An evaluation's ``summary.json``."""

    schema_version: int
    kind: str
    model: str
    suite: str
    tie_policy: str
    headline: str
    score: Score
    accuracy: Score
    sections: dict[str, Score]
    categories: dict[str, Score]
    subsets: dict[str, Score]
    sources: dict[str, Score]
    coverage: Coverage | None
    confidence: float
    resamples: int
    inference: InferenceSettings
    pairs_sha256: str
    provenance: Provenance


class LeaderboardMetadata(TypedDict):
    """The fields of ``leaderboard.json`` that are not subsets; every other key is a subset with its accuracy."""

    model: str
    model_type: str


class Written(NamedTuple):
    """What a writer did: lines written, non-finite numbers turned into ``null``, SHA-256 of the file."""

    rows: int
    nulls: int
    sha256: str


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any], *, sort_keys: bool = False) -> Written:
    """Write one record as an indented JSON file, whole or not at all.

    Args:
        path: the file; missing parent folders are made.
        record: what JSON can hold, NumPy scalars included; NaN and infinities become ``null`` and are counted.
        sort_keys: order the keys by name instead of keeping their order.

    Returns:
        The counts and the digest of what was written.

    Raises:
        ConfigError: the file cannot be written there; what stood there before is untouched.
        TypeError: the record holds something JSON cannot express; the message names the field.
    """
    strict, lost = _strict(record)
    text = json.dumps(strict, indent=4 if sort_keys else 2, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
    digest = _write_atomically(Path(path), [text + "\n"])
    _warn_about_nulls(path, len(lost), lost[:1])
    return Written(rows=1, nulls=len(lost), sha256=digest)


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> Written:
    """Write one JSON record per line, whole or not at all; ``rows`` may be a generator.

    Args:
        path: the file; missing parent folders are made.
        rows: the records, as in :func:`write_json`.

    Returns:
        The counts and the digest of what was written.

    Raises:
        ConfigError: the file cannot be written there; what stood there before is untouched.
        TypeError: a row holds something JSON cannot express; the message names the field.
    """
    count, nulls, first = 0, 0, []

    def lines() -> Iterator[str]:
        nonlocal count, nulls, first
        for row in rows:
            strict, lost = _strict(row)
            count += 1
            nulls += len(lost)
            first = first or [f"line {count}, {field}" for field in lost[:1]]
            yield json.dumps(strict, ensure_ascii=False, allow_nan=False) + "\n"

    digest = _write_atomically(Path(path), lines())
    _warn_about_nulls(path, nulls, first)
    return Written(rows=count, nulls=nulls, sha256=digest)


def read_json(path: str | os.PathLike[str], *, kind: str | None = None) -> dict[str, Any]:
    """Read a JSON record written by :func:`write_json` and check that this version understands it.

    Args:
        path: the file.
        kind: the ``kind`` the record must have, such as ``"evaluation"``; ``None`` accepts any.

    Returns:
        The record.

    Raises:
        DataError: the file is missing, is not a JSON object, or is of another kind.
        StateError: the file was written by a newer version of the program.
    """
    path = Path(path)
    try:
        record = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not valid JSON ({error.msg}). Write it again.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: wanted a JSON object, found {type(record).__name__}. Is this a result file?")
    version = record.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StateError(
            f"{path} uses result format {version}, this normbt reads formats up to {SCHEMA_VERSION}: "
            "it was written by a newer version. Upgrade normbt, or write the file again with this version."
        )
    if kind is not None and (version is None or record.get("kind") != kind):
        raise DataError(f"{path}: wanted a result of kind '{kind}', found kind {record.get('kind')!r}.")
    return record


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Read the records of a JSON-lines file one by one.

    Raises:
        DataError: the file is missing, or a line is not a JSON object (the message gives its number).
    """
    path = Path(path)
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {number}: not valid JSON ({error.msg}). Write the file again.") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number}: wanted a JSON object, found {type(row).__name__}.")
        yield row


def read_evaluation(folder: str | os.PathLike[str]) -> tuple[EvaluationSummary, list[EvaluationPair]]:
    """Read the summary and the pairs of one evaluation, and check that they belong together.

    Raises:
        DataError: a file is missing or is not what its name says.
        StateError: the pairs are not those the summary was made from, or the format is newer than this program.
    """
    folder = Path(folder)
    summary = read_json(folder / SUMMARY_FILE, kind="evaluation")
    pairs_path = folder / PAIRS_FILE
    found = hashlib.sha256(_read_text(pairs_path).encode()).hexdigest()
    if found != summary["pairs_sha256"]:
        raise StateError(
            f"{pairs_path} is not the file that {folder / SUMMARY_FILE} describes (SHA-256 {found[:12]}…, wanted "
            f"{summary['pairs_sha256'][:12]}…): an evaluation was cut short or a file was edited. Evaluate again."
        )
    return summary, list(read_jsonl(pairs_path))  # type: ignore[return-value]  # the digest vouches for the shape


def provenance(
    *, config: Mapping[str, Any], seed: int | None = None, data: Sequence[Mapping[str, Any]] = ()
) -> Provenance:
    """Collect where a result comes from, without importing any of the packages it names.

    Args:
        config: the settings of the run; values of settings that hold secrets are replaced by ``"***"``.
        seed: the seed everything random was drawn from.
        data: one record per data set that was read: source, digest, and what was kept and dropped.

    Returns:
        Versions, commit, command line, settings and data of this run.

    Example:
        >>> record = provenance(config={"beta": 0.9, "hub_token": "hf_abc"}, seed=0)
        >>> record["config"], record["seed"]
        ({'beta': 0.9, 'hub_token': '***'}, 0)
    """
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_hide_secret_arguments(sys.argv),
        normbt=_version("normbt"),
        commit=_commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _version(name) for name in RECORDED_PACKAGES},
        seed=seed,
        config={key: "***" if value is not None and _is_secret(str(key)) else value for key, value in config.items()},
        data=[dict(record) for record in data],
    )


def _strict(record: Any, field: str = "") -> tuple[Any, list[str]]:
    """Copy of ``record`` in plain JSON types, and the names of the fields whose number was not finite."""
    if record is None or isinstance(record, str | bool | int):
        return record, []
    if isinstance(record, np.generic):
        return _strict(record.item(), field)
    if isinstance(record, float):
        return (record, []) if math.isfinite(record) else (None, [field])
    lost: list[str] = []
    if isinstance(record, Mapping):
        copy: dict[str, Any] = {}
        for key, value in record.items():
            if not isinstance(key, str):
                raise TypeError(f"field {field or 'record'!r}: key {key!r} is not a string")
            copy[key], more = _strict(value, f"{field}.{key}" if field else key)
            lost += more
        return copy, lost
    if isinstance(record, list | tuple):
        items: list[Any] = []
        for index, value in enumerate(record):
            item, more = _strict(value, f"{field}[{index}]")
            items.append(item)
            lost += more
        return items, lost
    raise TypeError(f"field {field or 'record'!r}: JSON cannot hold a {type(record).__name__}")


def _warn_about_nulls(path: str | os.PathLike[str], nulls: int, first: list[str]) -> None:
    if nulls:
        logger.warning("%s: %d numbers were NaN or infinite and are written as null (first: %s)", path, nulls, first[0])


def _write_atomically(path: Path, lines: Iterable[str]) -> str:
    """Write ``lines`` to ``path`` through a temporary file beside it; return the SHA-256 of the bytes."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            for line in lines:
                data = line.encode()
                digest.update(data)
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"Cannot write {path}: {error.strerror or error}. Files written earlier are as they were. "
            "Free some space or choose another output folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone after the rename; never there when the folder cannot be written
            temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def _read_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            yield from stream
    except OSError as error:
        raise DataError(
            f"Cannot read {path}: {error.strerror or error}. Is this the folder of a finished run?"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}). Is this a result file?") from error


def _read_text(path: Path) -> str:
    return "".join(_read_lines(path))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout this package runs from (with ``-dirty`` when edited); None when it is installed."""
    source = Path(__file__).resolve()
    # A virtual environment inside somebody's repository is not a checkout of normbt: the file must be tracked.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    return _git(source.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _is_secret(name: str) -> bool:
    words = name.lower().lstrip("-").replace("-", "_").split("_")
    return words[-1] in {"token", "password", "secret"} or words[-2:] == ["api", "key"]


def _hide_secret_arguments(arguments: Sequence[str]) -> list[str]:
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            shown.append("***")
        elif name.startswith("--") and equals and _is_secret(name):
            shown.append(f"{name}=***")
        else:
            shown.append(argument)
        hide_next = argument.startswith("--") and not equals and _is_secret(argument)
    return shown
