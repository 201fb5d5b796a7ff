"""From the folder of an experiment to a committed summary, and from that to tables.

    python -m benchmarks.evidence.experiments runs/evidence-minilm

writes ``docs/results/NAME.json``: settings, searches, the scores of every model, the comparisons, accuracy by distance.
What is missing of the grid is named in it. With ``--diagnose N`` the first seed's models are diagnosed on N pairs of
RewardBench.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.evidence.summary import as_lines, deciles, environment

from normbt.diagnose import diagnose
from normbt.results import EXPERIMENT_FILE, SUMMARY_FILE, read_diagnosis, read_evaluation, read_json
from normbt.stats import paired_t

BINS = 10
"""Parts of the pairs by distance."""
TOGETHER = "held-out pairs"
"""Name of the suites of plain pairs taken together: tenths of one of 300 would hold 30."""


def collect(folder: Path) -> dict[str, Any]:
    """Everything the tables need of an experiment, which may be incomplete."""
    found: Any = read_json(folder / EXPERIMENT_FILE, kind="experiment")
    recipe, cells = found["recipe"], found["cells"]
    return {
        "name": found["name"],
        "command": f"normbt experiment {found['name']}",
        **environment(),
        "commit": found["provenance"]["commit"],
        "recipe": recipe,
        "pairs": {name: record["pairs"] for name, record in found["training_sets"].items()},
        "kept": _kept(folder, cells),
        "missing": found["missing"],
        "search": found["search"],
        "cells": [
            {key: cell[key] for key in ("method", "learning_rate", "seed", "seconds", "scores")} for cell in cells
        ],
        "sizes": _sizes(folder, cells),
        "comparisons": {one["suite"]: _comparison(folder / one["folder"]) for one in found["comparisons"]},
        "by_distance": _bins(folder, recipe, cells),
        "diagnosis": {
            method: _diagnosis(file.parent)
            for method in recipe["methods"]
            for file in folder.glob(f"diagnosis/{method}/{SUMMARY_FILE}")
        },
    }


def diagnose_first_seed(folder: Path, pairs: int) -> None:
    """Diagnose the model of the first seed of every method on a sample of RewardBench, the same for all."""
    found: Any = read_json(folder / EXPERIMENT_FILE, kind="experiment")
    recipe = found["recipe"]
    for cell in found["cells"]:
        target = folder / "diagnosis" / cell["method"]
        if cell["seed"] == recipe["seeds"][0] and not (target / SUMMARY_FILE).exists():
            print(cell["method"], "diagnosis", flush=True)
            diagnose(
                folder / cell["folder"] / "model",
                data=recipe["suites"]["rewardbench"]["data"],
                output_dir=target,
                max_pairs=pairs,
                **recipe["evaluation"],
            )


def _diagnosis(folder: Path) -> dict[str, Any]:
    summary, _ = read_diagnosis(folder)
    return {
        "pairs": summary["sampled_pairs"],
        "method": summary["method"],
        "r": summary["correlations"]["distance"],
        "per_category": {
            name: {key: part[key] for key in ("pairs", "median_distance", "median_gradient_norm")}
            for name, part in summary["per_category"].items()
        },
    }


def _kept(folder: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    record: Any = json.loads((folder / cells[0]["folder"] / "model" / "data_report.json").read_text(encoding="utf-8"))
    train = record["sets"]["train"]
    return {key: train[key] for key in ("read", "kept", "identical", "overlong")}


def _sizes(folder: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    first = folder / cells[0]["folder"]
    return {suite: len(read_evaluation(first / suite)[1]) for suite in cells[0]["scores"]}


def _comparison(folder: Path) -> dict[str, Any]:
    record: Any = read_json(folder / "comparison.json", kind="comparison")
    wanted = ("method", "outcome", "kind", "difference", "low", "high", "p_value", "p_holm", "verdict", "detectable")
    differences = [{key: row[key] for key in wanted} for row in record["differences"]]
    seeds = [
        {key: row[key] for key in ("method", "outcome", "difference", "low", "high")} for row in record["seed_tests"]
    ]
    return {"clusters": record["clusters"], "differences": differences, "seed_tests": seeds}


def _bins(folder: Path, recipe: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy of every model by the distance that the baseline of its seed sees: the bins of a seed are all one's."""
    groups: dict[str, list[str]] = {}
    for suite, one in recipe["suites"].items():
        groups.setdefault(TOGETHER if one["suite"] == "pairs" else suite, []).append(suite)
    found: dict[str, Any] = {}
    for group, suites in groups.items():
        places: dict[int, Any] = {}
        for cell in sorted(cells, key=lambda cell: cell["method"] != recipe["baseline"]):  # the baseline first
            records = [row for suite in suites for row in read_evaluation(folder / cell["folder"] / suite)[1]]
            if cell["method"] == recipe["baseline"]:
                places[cell["seed"]] = deciles(np.array([row["distance"] for row in records], dtype=float), BINS)
            if cell["seed"] not in places:
                continue
            correct, place = np.array([row["correct"] for row in records]), places[cell["seed"]]
            shares = {str(cell["seed"]): [round(float(correct[place == bin_].mean()), 4) for bin_ in range(BINS)]}
            found.setdefault(group, {}).setdefault(cell["method"], {}).update(shares)
    return found


class Experiment:
    """What templates ask of the summary of an experiment."""

    def __init__(self, file: Path) -> None:
        self.record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        self.methods = list(dict.fromkeys(cell["method"] for cell in self.record["cells"]))
        self.seeds = sorted({cell["seed"] for cell in self.record["cells"]})

    def rates(self) -> str:
        """A row for each method: validation accuracy at each learning rate, and the one chosen."""
        rates = [f"{rate:g}" for rate in self.record["recipe"]["learning_rates"]]
        rows = []
        for one in self.record["search"]:
            found = {f"{float(rate):g}": value for rate, value in one["accuracies"].items()}
            chance = "" if one["p_value"] is None else f"{one['p_value']:.2f}"
            rows.append([one["method"], *(f"{100 * found[rate]:.1f}" for rate in rates), f"{one['chosen']:g}", chance])
        return table(["method", *rates, "chosen", "p"], rows)

    def by_chance(self) -> list[str]:
        """Methods whose learning rate chance may have chosen."""
        return [one["method"] for one in self.record["search"] if (one["p_value"] or 0.0) > 0.05]

    def absent(self) -> list[str]:
        """Methods of the recipe that were not trained."""
        return [method for method in self.record["recipe"]["methods"] if method not in self.methods]

    def held_out(self) -> str:
        """How many pairs the suites of plain pairs have together."""
        suites = self.record["recipe"]["suites"]
        return str(sum(size for name, size in self.record["sizes"].items() if suites[name]["suite"] == "pairs"))

    def accuracies(self, outcomes: Mapping[str, str]) -> str:
        """A row for each method: mean over its seeds of each outcome, ``SUITE`` or ``SUITE/SECTION``, in per cent."""
        rows = []
        for method in self.methods:
            cells = [cell for cell in self.record["cells"] if cell["method"] == method]
            values = [np.mean([_score(cell["scores"], outcome) for cell in cells]) for outcome in outcomes]
            rows.append([method, str(len(cells)), *(f"{100 * value:.1f}" for value in values)])
        return table(["method", "seeds", *outcomes.values()], rows)

    def differences(self, outcomes: Mapping[str, str]) -> str:
        """A row for each method and outcome: points more than the baseline, two intervals, and the verdict."""
        rows = []
        for method in self.methods:
            for outcome, label in outcomes.items():
                row = self._difference(method, outcome)
                if row is None:
                    continue
                over_seeds = self._seed_test(method, outcome)
                rows.append(
                    [
                        method,
                        label,
                        f"{100 * row['difference']:+.1f}",
                        _interval(row["low"], row["high"]),
                        f"{row['p_holm']:.3f}",
                        _interval(over_seeds["low"], over_seeds["high"]) if over_seeds else "",
                        f"{100 * row['detectable']:.1f}" if row["detectable"] else "",
                    ]
                )
        return table(["method", "outcome", "points", "seeds and pairs", "p, Holm", "seeds", "would be seen"], rows)

    def diagnoses(self) -> str:
        """A row for each diagnosed method: correlation of norm and distance, and medians by category."""
        found = self.record["diagnosis"]
        categories = list(next(iter(found.values()))["per_category"])
        rows = []
        for method, one in found.items():
            parts = [one["per_category"][name] for name in categories]
            shown = [f"{part['median_distance']:.3f} / {part['median_gradient_norm']:.2f}" for part in parts]
            rows.append([method, str(one["pairs"]), _estimate(one["r"]["pearson"]), *shown])
        return table(["method", "pairs", "r of norm and distance", *categories], rows)

    def correlation(self, method: str) -> str:
        """Correlation of gradient norm and distance for one method's model."""
        return _estimate(self.record["diagnosis"][method]["r"]["pearson"])

    def smallest(self, key: str) -> list[str]:
        """The category with the smallest median of each diagnosed model."""
        found = self.record["diagnosis"].values()
        return sorted({min(one["per_category"], key=lambda name: one["per_category"][name][key]) for one in found})

    def verdict(self, method: str, outcome: str) -> str:
        """Whether a difference is shown: over seeds and pairs after Holm's correction, and over the seeds alone."""
        row, seeds = self._difference(method, outcome), self._seed_test(method, outcome)
        if row is None or seeds is None:
            raise LookupError(f"{self.record['name']}: no comparison over seeds of {method} on {outcome}")
        sign = 1 if row["difference"] > 0 else -1
        if row["p_holm"] < 0.05 and sign * (seeds["low"] if sign > 0 else seeds["high"]) > 0:
            return "shown" if sign > 0 else "shown against"
        return "not shown"

    def both(self, direction: str) -> list[str]:
        """Methods that differ from the baseline in a primary outcome by both intervals, ``better`` or ``worse``."""
        wanted = {"better": "shown", "worse": "shown against"}[direction]
        baseline = self.record["recipe"]["baseline"]
        return [
            f"{method} on {outcome}"
            for method in self.methods
            for outcome in self.record["recipe"]["primary"]
            if method != baseline and self.verdict(method, outcome) == wanted
        ]

    def gain(self, method: str, outcome: str) -> str:
        """One difference from the baseline with its interval and corrected p-value."""
        row = self._difference(method, outcome)
        if row is None:
            raise LookupError(f"{self.record['name']}: no comparison of {method} on {outcome}")
        return f"{100 * row['difference']:+.1f} {_interval(row['low'], row['high'])}, p {row['p_holm']:.2f}"

    def by_distance(self, pairs: str) -> str:
        """A row for each method: accuracy in each tenth of the distance, and its lead on the baseline at both ends."""
        found, baseline = self.record["by_distance"][pairs], self.record["recipe"]["baseline"]
        header = ["method", "nearest", *[""] * (BINS - 2), "farthest", f"nearest, less {baseline}", "farthest"]
        rows = []
        for method, runs in found.items():
            row = [method, *(f"{100 * value:.1f}" for value in np.mean(list(runs.values()), axis=0))]
            lead = np.array([np.subtract(shares, found[baseline][seed]) for seed, shares in runs.items()])
            row += ["", ""] if method == baseline else [_over_seeds(lead[:, 0]), _over_seeds(lead[:, -1])]
            rows.append(row)
        return table(header, rows)

    def _difference(self, method: str, outcome: str) -> dict[str, Any] | None:
        suite, _, section = outcome.partition("/")
        rows = self.record["comparisons"].get(suite, {}).get("differences", [])
        rows = [row for row in rows if row["method"] == method]
        return next(
            (row for row in rows if (row["outcome"] == section or (not section and row["kind"] == "headline"))), None
        )

    def _seed_test(self, method: str, outcome: str) -> dict[str, Any] | None:
        named = self._difference(method, outcome)
        rows = self.record["comparisons"][outcome.partition("/")[0]]["seed_tests"]
        wanted = (method, named["outcome"] if named else None)
        found = next((row for row in rows if (row["method"], row["outcome"]) == wanted), None)
        return found if found and found["low"] is not None else None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _score(scores: Mapping[str, Mapping[str, float]], outcome: str) -> float:
    suite, _, section = outcome.partition("/")
    return scores[suite][section or "headline"]


def _estimate(one: Mapping[str, float]) -> str:
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _over_seeds(values: Any) -> str:
    if len(values) < 2:
        return f"{100 * float(values[0]):+.1f}"
    found = paired_t(list(map(float, values)))
    ends = "" if found.low is None or found.high is None else f" {_interval(found.low, found.high)}"
    return f"{100 * found.difference:+.1f}{ends}"


def main() -> None:
    """Write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the experiment")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--diagnose", type=int, metavar="N", help="first diagnose on N pairs of RewardBench")
    parser.add_argument("--name", help="of the summary (default: the recipe's)")
    options = parser.parse_args()
    if options.diagnose:
        diagnose_first_seed(options.folder, options.diagnose)
    summary = collect(options.folder)
    file = options.results / f"{options.name or summary['name']}.json"
    file.write_text(as_lines(summary, depth=3) + "\n", encoding="utf-8")
    print(f"{file}: {len(summary['cells'])} models, {len(summary['missing'])} missing")


if __name__ == "__main__":
    main()
