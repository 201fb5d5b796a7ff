"""Can the weight be made better? Variants of NormBT on real pairs: heads on fixed MiniLM features, many seeds.

    python -m benchmarks.evidence.features real --data ../shared/data --output runs/evidence/real.npz
    python -m benchmarks.evidence.frozen --features runs/evidence/real.npz

Fixed before the first run:

- Primary outcomes: accuracy on the held-out pairs of the five training sources (their test splits; no prompt of theirs
  is trained on), and the mean of the four sections of RewardBench, complete.
- Secondary: RewardBench's Reasoning, and the held-out accuracy by tenth of the distance of the features.
- The learning rate of each arm is the best one of a grid on validation pairs (an eighth of the training prompts), mean
  of three seeds that are not among the results. Seeds 0 to 9 are the results.
- Each arm is compared with BT and with NormBT, corrected by Holm over the arms, for each outcome and baseline alone.
- An arm *wins* where the corrected p-value is below 0.05 with seeds and pairs as sources of chance. With seeds alone
  the question is only whether the same pairs would show it again.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from benchmarks.evidence import features as feature_files
from benchmarks.evidence.heads import Arm, train
from benchmarks.evidence.mechanism import Bench, Sheet, bins, chosen_rates, new_sheet, part_data, start_distance
from benchmarks.evidence.statistics import compared_with, scores_of
from benchmarks.evidence.summary import Cell, outcomes
from benchmarks.evidence.sweeps import run_sweeps
from numpy.typing import NDArray

from normbt.suites.base import PairSuite
from normbt.suites.plain import Pairs
from normbt.suites.rewardbench import RewardBench

SUMMARY = Path("docs/results/frozen.json")

ARMS: dict[str, Arm] = {
    "bt": Arm(),
    "normbt": Arm("normbt"),
    "power-0.5": Arm("normbt", power=0.5),
    "power-1.5": Arm("normbt", power=1.5),
    "relative": Arm("normbt", distance="relative"),
    "cosine": Arm("normbt", distance="cosine"),
    "anneal-in": Arm("normbt", anneal="in"),
    "anneal-out": Arm("normbt", anneal="out"),
    "bound-2": Arm("normbt", max_weight=2.0),
    "bound-5": Arm("normbt", max_weight=5.0),
    "gradient": Arm("normbt", gradient_norm=True),
    "per-length": Arm("normbt", per_length=True),
    "raw": Arm("raw"),
    "batch": Arm("batch"),
    "smoothing": Arm(smoothing=0.1),
    "layer-norm": Arm(layer_norm=True),
    "clip": Arm(clip=0.1),
}


SHARES = {"held-out": "test", "rewardbench": "rewardbench"}
SUITES: dict[str, PairSuite] = {"held-out": Pairs(), "rewardbench": RewardBench()}
ONE_RATE = 3e-3


def frozen_sweep(bench: Bench, parts: Mapping[str, feature_files.Pairs]) -> Sheet:
    """Train every arm, score it, and compare it with BT and NormBT.

    Args:
        bench: its test pairs are the held-out ones and then those of RewardBench.
        parts: the pairs by share, for their files and clusters.
    """
    sheet = _sheet(bench, parts, "chosen per arm")
    rates = chosen_rates(bench, ARMS, bench.base, sheet)
    right = _ranked(bench, rates)
    _add_cells(sheet, rates, right, bench, parts)
    for baseline in ("bt", "normbt"):
        for suite, share in SHARES.items():
            own = {name: _own(right[name], suite, len(parts["test"].subset)) for name in ARMS}
            part = parts[share]
            rows = compared_with(baseline, own, SUITES[suite], part.subset.tolist(), part.cluster.tolist())
            sheet.comparisons += [row | {"score": f"{suite}/{row['score']}"} for row in rows]
    return sheet


def one_rate_sweep(bench: Bench, parts: Mapping[str, feature_files.Pairs]) -> Sheet:
    """Every arm at one learning rate; added after the first results, because the rates that were chosen are noise."""
    sheet = _sheet(bench, parts, f"{ONE_RATE:g} for every arm")
    rates = dict.fromkeys(ARMS, ONE_RATE)
    _add_cells(sheet, rates, _ranked(bench, rates), bench, parts)
    return sheet


def _sheet(bench: Bench, parts: Mapping[str, feature_files.Pairs], rates: str) -> Sheet:
    return new_sheet(
        bench,
        rates=rates,
        arms={name: asdict(arm) for name, arm in ARMS.items()},
        max_length=feature_files.MAX_LENGTH,
        trained_on=_counts(parts["train"].subset),
        held_out=_counts(parts["test"].subset),
        rewardbench=len(parts["rewardbench"].subset),
    )


def _ranked(bench: Bench, rates: Mapping[str, float]) -> dict[str, NDArray[np.bool_]]:
    """Whether each test pair is ranked right, ``(seeds, pairs)`` for each arm at its learning rate."""
    right: dict[str, NDArray[np.bool_]] = {}
    for rate in sorted(set(rates.values())):
        names = [name for name in ARMS if rates[name] == rate]
        arms = [ARMS[name] for name in names]
        done = train(arms, bench.train, replace(bench.base, learning_rate=rate), bench.seeds, bench.test)
        right |= dict(zip(names, done.correct[-1], strict=True))
    return right


def _own(right: NDArray[np.bool_], suite: str, held_out: int) -> NDArray[np.bool_]:
    """The columns of one suite: the held-out pairs come first."""
    return right[:, :held_out] if suite == "held-out" else right[:, held_out:]


def _add_cells(
    sheet: Sheet,
    rates: Mapping[str, float],
    right: Mapping[str, NDArray[np.bool_]],
    bench: Bench,
    parts: Mapping[str, feature_files.Pairs],
) -> None:
    held_out = len(parts["test"].subset)
    masks = {f"held-out/{name}": mask for name, mask in bench.masks.items()}
    for name in ARMS:
        scores = scores_of(
            SUITES["rewardbench"], _own(right[name], "rewardbench", held_out), parts["rewardbench"].subset.tolist()
        )
        found = outcomes(_own(right[name], "held-out", held_out), masks) | {
            f"rewardbench/{score}": [round(float(one), 4) for one in values] for score, values in scores.items()
        }
        sheet.cells.append(Cell(condition={}, arm=name, learning_rate=rates[name], outcomes=found))


def bench_of(path: Path) -> tuple[Bench, dict[str, feature_files.Pairs]]:
    """The bench of real pairs; the features have mean 0 and deviation 1 over the training pairs."""
    pairs = feature_files.load(path)
    parts = {share: pairs.only(share) for share in ("train", "validation", "test", "rewardbench")}
    held_out = parts["test"]
    both = feature_files.Pairs(
        *(np.concatenate(columns) for columns in zip(held_out, parts["rewardbench"], strict=True))
    )
    masks = bins(start_distance(part_data(held_out, parts["train"])))
    masks |= {name: held_out.subset == name for name in dict.fromkeys(held_out.subset.tolist())}
    training = part_data(parts["train"], parts["train"])
    bench = Bench(
        train=training,
        validation=part_data(parts["validation"], parts["train"]),
        test=part_data(both, parts["train"]),
        masks=masks,
        nearness=np.argsort(np.argsort(start_distance(training), kind="stable"), kind="stable"),
        clusters=both.cluster.tolist(),
    )
    return bench, parts


def _counts(names: NDArray[np.str_]) -> dict[str, int]:
    return {str(name): int((names == name).sum()) for name in dict.fromkeys(names.tolist())}


SWEEPS = {"frozen": frozen_sweep, "one-rate": one_rate_sweep}


if __name__ == "__main__":
    run_sweeps(
        __doc__,
        SWEEPS,
        bench_of,
        summary=SUMMARY,
        command="python -m benchmarks.evidence.frozen --features runs/evidence/real.npz",
    )
