"""Where a result comes from: versions, commit, command, settings, data."""

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

DATA_REPORT_FILE = "data_report.json"
"""What a training run leaves beside its model: what became of every row, and where the run comes from."""

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
