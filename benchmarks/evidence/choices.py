"""Tables of best of n: what the choice of each method's models is worth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.evidence.experiments import table

from normbt.stats import paired_t


class Choices:
    """What templates ask of ``best-of-n.json``."""

    def __init__(self, file: Path) -> None:
        self.record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))

    def values(self, pool: str, scale: float = 1.0, digits: int = 2) -> str:
        """A row for each method: worth of the chosen answer by n, mean over the seeds' models."""
        points = self.record["pools"][pool]["points"]
        sizes = sorted({point["n"] for point in points})
        rows = []
        for rule in dict.fromkeys(point["rule"].partition("/")[0] for point in points):
            found = [
                [
                    point["gold"]["value"]
                    for point in points
                    if point["rule"].partition("/")[0] == rule and point["n"] == n
                ]
                for n in sizes
            ]
            rows.append([rule, *(f"{scale * np.mean(values):.{digits}f}" if values else "" for values in found)])
        return table(["chosen by", *(f"n = {size}" for size in sizes)], rows)

    def gain(self, pool: str, method: str, *, against: str = "bt", scale: float = 1.0, digits: int = 1) -> str:
        """Worth at the largest n, less that of another method: mean over paired seeds with a 95 % t interval."""
        points = self.record["pools"][pool]["points"]
        largest = max(point["n"] for point in points)
        worth = {point["rule"]: point["gold"]["value"] for point in points if point["n"] == largest}
        seeds = [rule.partition("/")[2] for rule in worth if rule.startswith(f"{method}/")]
        found = paired_t([scale * (worth[f"{method}/{seed}"] - worth[f"{against}/{seed}"]) for seed in seeds])
        ends = "" if found.low is None else f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
        return f"{found.difference:+.{digits}f}{ends}"
