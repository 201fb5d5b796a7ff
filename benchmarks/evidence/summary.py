"""Summaries of the sweeps: one JSON file each, one line for each cell, from which tables and plots are made."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("torch", "transformers", "numpy", "scipy")


class Cell(TypedDict, total=False):
    """The runs of one method in one condition.

    ``condition`` names what the sweep varies. ``outcomes`` are shares right in ``[0, 1]`` by outcome, one number for
    each seed, in the order of the sweep's ``seeds``. ``mu`` is the running mean after the first and after the last
    step, mean over the seeds.
    """

    condition: dict[str, Any]
    arm: str
    learning_rate: float
    outcomes: dict[str, list[float]]
    mu: list[float]


class Sweep(TypedDict):
    """One sweep; ``search`` holds, for each arm and condition, the mean validation accuracy at each learning rate."""

    settings: dict[str, Any]
    seeds: list[int]
    search: list[dict[str, Any]]
    cells: list[Cell]
    comparisons: list[dict[str, Any]]


def environment() -> dict[str, Any]:
    """What the sweeps ran on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    name = "unknown processor"
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    hardware = f"one core of {os.cpu_count()} ({name}), no GPU"
    return {"hardware": hardware, "python": platform.python_version(), "packages": packages}


def outcomes(correct: NDArray[np.bool_], masks: Mapping[str, NDArray[np.bool_]]) -> dict[str, list[float]]:
    """Share right of every seed on each set of pairs.

    Args:
        correct: shape ``(seeds, pairs)``.
        masks: the sets by name, each of shape ``(pairs,)``.
    """
    return {name: [round(float(one), 4) for one in correct[:, mask].mean(axis=1)] for name, mask in masks.items()}


def deciles(distance: NDArray[np.floating], count: int = 10) -> NDArray[np.int64]:
    """Bin of each pair by its distance, nearest first, all of one size within a pair."""
    rank = np.argsort(np.argsort(distance, kind="stable"), kind="stable")
    return rank * count // len(distance)


def write_sweep(path: Path, name: str, sweep: Mapping[str, Any], *, about: Mapping[str, Any]) -> None:
    """Put one sweep in a summary file, in place of the one of that name."""
    known = json.loads(path.read_text()) if path.is_file() else {"sweeps": {}}
    known = {**about, **environment(), "sweeps": {**known["sweeps"], name: dict(sweep)}}
    known["sweeps"] = dict(sorted(known["sweeps"].items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_lines(known, depth=4) + "\n")


def read_sweep(path: Path, name: str) -> Sweep:
    """One sweep of a summary file."""
    return read_sweeps(path)[name]


def read_sweeps(path: Path) -> dict[str, Sweep]:
    """All sweeps of a summary file, by name."""
    return json.loads(path.read_text())["sweeps"]


def read_about(path: Path) -> dict[str, Any]:
    """What a summary file says of itself: command, hardware, versions."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "sweeps"}


def cells_of(sweep: Sweep, arm: str | None = None, **condition: Any) -> list[Cell]:
    """Cells of an arm, or of all, whose condition agrees with the given one."""
    return [
        cell
        for cell in sweep["cells"]
        if (arm is None or cell["arm"] == arm)
        and all(cell["condition"].get(key) == value for key, value in condition.items())
    ]


def cell_of(sweep: Sweep, arm: str, **condition: Any) -> Cell:
    """The one cell of an arm and a condition."""
    found = cells_of(sweep, arm, **condition)
    if len(found) != 1:
        raise LookupError(f"wanted one cell of {arm} with {condition}, found {len(found)}")
    return found[0]


def as_lines(value: Any, depth: int, indent: str = "") -> str:
    """JSON with one line for each entry down to a depth, and everything below it on that line."""
    inner = indent + " "
    if depth == 0 or not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(key)}: {as_lines(one, depth - 1, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if not isinstance(value[0], dict | list):
        return json.dumps(value, ensure_ascii=False)
    rows: Sequence[str] = [inner + as_lines(one, 0, inner) for one in value]
    return "[\n" + ",\n".join(rows) + f"\n{indent}]"
