"""Best of n in words and tables: what the choice of each method's models is worth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.evidence.experiments import table

from normbt.stats import PairedT, paired_t

BASELINE = "bt"
POOLS = {"gsm8k": "gsm8k", "pandalm": "PandaLM", "tulu": "Tülu", "built-in": "built-in"}


class Choices:
    """What templates ask of ``best-of-n.json``."""

    def __init__(self, file: Path) -> None:
        self.record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))

    def largest(self, pools: Mapping[str, tuple[float, int]]) -> str:
        """A row for each method: worth of its choice at the largest n of each pool, and its lead on BT.

        Args:
            pools: by name, a factor and the digits after the point.
        """
        header, rows = ["chosen by"], []
        for pool in pools:
            header += [f"{POOLS[pool]}, n = {max(self.sizes(pool))}", "less BT"]
        for rule in [*self.methods(), "longest", "oracle", "random"]:
            row = [rule]
            for pool, (scale, digits) in pools.items():
                n = 1 if rule == "random" else max(self.sizes(pool))
                row.append(f"{scale * np.mean(list(self.worth(pool, rule, n).values())):.{digits}f}")
                lead = self._lead(pool, rule, scale) if rule in self.methods() and rule != BASELINE else None
                row.append("" if lead is None else _interval(lead, digits))
            rows.append(row)
        return table(header, rows)

    def differing(self, side: str) -> list[str]:
        """Methods whose interval lies on one side of BT at the largest n: ``+`` or ``-``."""
        found = []
        for pool in self.record["pools"]:
            for rule in self.methods():
                if rule == BASELINE:
                    continue
                lead = self._lead(pool, rule, 1.0)
                if lead.low is not None and lead.high is not None and (lead.low > 0 if side == "+" else lead.high < 0):
                    found.append(f"{rule} on {POOLS[pool]}")
        return found

    def tests(self) -> int:
        """Number of intervals."""
        return len(self.record["pools"]) * (len(self.methods()) - 1)

    def methods(self) -> list[str]:
        """Whose models choose."""
        points = next(iter(self.record["pools"].values()))["points"]
        return list(dict.fromkeys(rule.partition("/")[0] for point in points if "/" in (rule := point["rule"])))

    def sizes(self, pool: str) -> list[int]:
        """The numbers n."""
        return sorted({point["n"] for point in self.record["pools"][pool]["points"]})

    def worth(self, pool: str, rule: str, n: int) -> dict[str, float]:
        """Mean worth of what a method's models choose at n, by seed; of a rule without a model, under ``""``."""
        return {
            point["rule"].partition("/")[2]: point["gold"]["value"]
            for point in self.record["pools"][pool]["points"]
            if point["rule"].partition("/")[0] == rule and point["n"] == n
        }

    def _lead(self, pool: str, method: str, scale: float) -> PairedT:
        n = max(self.sizes(pool))
        own, other = self.worth(pool, method, n), self.worth(pool, BASELINE, n)
        return paired_t([scale * (own[seed] - other[seed]) for seed in own])


def _interval(found: PairedT, digits: int) -> str:
    ends = "" if found.low is None else f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"{found.difference:+.{digits}f}{ends}"
