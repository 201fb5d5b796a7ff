"""Where a result comes from: versions, commit, command, settings, data."""

import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

DATA_REPORT_FILE = "data_report.json"
"""What a training run leaves beside its model: what became of every row, and where the run comes from."""

HIDDEN = "***"
"""What stands in place of a secret."""

_NAMED = re.compile(r"([\w.-]+)[\"']?\s*[=:]")
"""A name before its value: ``--hub_token=``, ``train.hub_token=``, ``{hub_token:``."""

_OF_A_TOKENIZER = frozenset({"bos", "eos", "pad", "unk", "sep", "cls", "mask"})
"""What goes before ``_token`` in the name of a setting that is no secret, and that a result hangs on."""

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


def provenance(
    *, config: Mapping[str, Any], seed: int | None = None, data: Sequence[Mapping[str, Any]] = ()
) -> Provenance:
    """Collect where a result comes from, without importing any of the packages it names.

    Args:
        config: the settings of the run, at any depth; those that hold secrets become ``"***"``, as they do in the
            command (:func:`hide_secrets`).
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
        config=hide_secrets(config),
        data=[dict(record) for record in data],
    )


def hide_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of settings with ``"***"`` in place of every secret, in mappings inside mappings and lists too.

    A secret is a value whose name ends in ``token`` (but for a tokenizer's, as ``eos_token``), ``password``, ``secret``
    or ``api_key``. None stays None, and a mapping is looked into whatever its name: a method may be ``per-token``.

    Args:
        settings: by name.

    Returns:
        The copy; the settings are not changed.

    Example:
        >>> hide_secrets({"train": {"hub_token": "hf_abc", "seed": 0}})
        {'train': {'hub_token': '***', 'seed': 0}}
    """
    return {name: _hidden(value, secret=_is_secret(str(name))) for name, value in settings.items()}


def _hidden(value: Any, *, secret: bool) -> Any:
    if isinstance(value, Mapping):
        return hide_secrets(value)
    if isinstance(value, list | tuple):
        items = [_hidden(one, secret=secret) for one in value]
        return tuple(items) if isinstance(value, tuple) else items
    return HIDDEN if secret and value is not None else value


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
    """Whether a setting holds a secret, by the last part of its name; ``train.hub_token`` is one."""
    words = name.lower().rpartition(".")[2].lstrip("-").replace("-", "_").split("_")
    if words[-1] == "token":
        return _OF_A_TOKENIZER.isdisjoint(words[-2:-1])
    return words[-1] in {"password", "secret"} or words[-2:] == ["api", "key"]


def _hide_secret_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line without its secrets; what follows one in the same argument goes with it."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        ends = (found.end() for found in _NAMED.finditer(argument) if _is_secret(found[1]))
        if hide_next and not argument.startswith("--"):
            shown.append(HIDDEN)
        elif end := next(ends, None):
            shown.append(argument[:end] + HIDDEN)
        else:
            shown.append(argument)
        hide_next = argument.startswith("--") and "=" not in argument and _is_secret(argument)
    return shown
