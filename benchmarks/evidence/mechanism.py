"""Where NormBT helps and where it harms, on built-in pairs: heads on fixed MiniLM features, many seeds.

    python -m benchmarks.evidence.features built-in --output runs/evidence/built-in.npz
    python -m benchmarks.evidence.mechanism --features runs/evidence/built-in.npz

One sweep for each question; `--sweeps noise batch-size` runs some of them again and keeps the others. The summary goes
to docs/results/mechanism.json; `python -m benchmarks.evidence.pages` makes tables and plots of it, without training.

Fixed before the first run: the primary outcome is the accuracy on all test pairs; the accuracy in the nearest and in
the farthest third of the pairs says where a difference comes from. "Near" and "far" mean the distance of the features
that all heads read, so that bins are the same for every run and step. Learning rates are chosen on validation pairs,
with seeds of their own, for every arm and, where a sweep says so, for every condition. Seeds 0 to 9 are the results.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.evidence import features as feature_files
from benchmarks.evidence.heads import Arm, Data, Optimizer, Training, orders, train
from benchmarks.evidence.statistics import compared_with
from benchmarks.evidence.summary import Cell, deciles, outcomes
from benchmarks.evidence.sweeps import run_sweeps
from numpy.typing import NDArray

from normbt.suites.plain import Pairs

SUMMARY = Path("docs/results/mechanism.json")

GRID: dict[str, Arm] = {
    "bt": Arm(),
    "normbt": Arm("normbt"),
    "relative": Arm("normbt", distance="relative"),
    "cosine": Arm("normbt", distance="cosine"),
    "raw": Arm("raw"),
    "batch": Arm("batch"),
    "margin-inside": Arm(margin="inside"),
    "margin-outside": Arm(margin="outside"),
    "smoothing": Arm(smoothing=0.1),
    "layer-norm": Arm(layer_norm=True),
    "clip": Arm(clip=0.1),
}
BOTH = {name: GRID[name] for name in ("bt", "normbt")}

RATES: dict[Optimizer, tuple[float, ...]] = {
    "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (0.1, 0.3, 1.0, 3.0),
    "momentum": (0.01, 0.03, 0.1, 0.3),
}
"""Where a search begins; it goes on beyond an end of the list while the best one is there."""

MORE_RATES = 4
"""How far beyond the list a search may go; a best one that is still at the end is marked."""


@dataclass(frozen=True)
class Bench:
    """The pairs, and how heads are trained on them.

    Attributes:
        train: pairs to train on.
        validation: pairs that learning rates are chosen on.
        test: pairs that outcomes are measured on.
        masks: sets of test pairs by name.
        nearness: place of each training pair when they are sorted by distance, nearest first.
        clusters: of each test pair.
        seeds: of the results.
        search_seeds: of the search.
        base: training where a sweep does not vary it.
        rates: where searches begin.
    """

    train: Data
    validation: Data
    test: Data
    masks: dict[str, NDArray[np.bool_]]
    nearness: NDArray[np.int64]
    clusters: list[str]
    seeds: Sequence[int] = tuple(range(10))
    search_seeds: Sequence[int] = (100, 101, 102)
    base: Training = field(default_factory=Training)
    rates: Mapping[Optimizer, Sequence[float]] = field(default_factory=lambda: dict(RATES))

    @property
    def near(self) -> NDArray[np.bool_]:
        """The nearer half of the training pairs."""
        return self.nearness < len(self.nearness) // 2


@dataclass
class Sheet:
    """A sweep while it grows."""

    settings: dict[str, Any]
    seeds: Sequence[int]
    search: list[dict[str, Any]] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)


def bench_of(path: Path) -> Bench:
    """The bench of built-in pairs: the mean state, each feature with mean 0 and deviation 1 over the training pairs."""
    pairs = feature_files.load(path)
    parts = {share: pairs.only(share) for share in ("train", "validation", "test")}
    shares = {share: part_data(part, parts["train"]) for share, part in parts.items()}
    distance = {share: start_distance(data) for share, data in shares.items()}
    masks = bins(distance["test"]) | {
        str(name): parts["test"].category == name for name in dict.fromkeys(parts["test"].category.tolist())
    }
    nearness = np.argsort(np.argsort(distance["train"], kind="stable"), kind="stable")
    return Bench(**shares, masks=masks, nearness=nearness, clusters=parts["test"].cluster.tolist())


def part_data(part: feature_files.Pairs, reference: feature_files.Pairs) -> Data:
    """Pairs as heads read them."""
    center = reference.mean.mean((0, 1), dtype=np.float64)
    # Features that never change (MiniLM has some) would divide by zero; they stay at it.
    scale = np.maximum(reference.mean.std((0, 1), dtype=np.float64), 1e-4)
    scaled = ((part.mean - center) / scale).astype(np.float32)
    tokens = part.tokens.mean(axis=1).astype(np.float32)
    return Data(torch.from_numpy(scaled), torch.from_numpy(tokens), torch.from_numpy(part.margin))


def start_distance(data: Data) -> NDArray[np.float32]:
    """Distance of the features of each pair."""
    return (data.features[:, 0] - data.features[:, 1]).norm(dim=1).numpy()


def bins(distance: NDArray[np.floating]) -> dict[str, NDArray[np.bool_]]:
    """All pairs, thirds and tenths by distance."""
    third, tenth = deciles(distance, 3), deciles(distance)
    return {
        "all": np.ones(len(distance), dtype=np.bool_),
        **{name: third == place for place, name in enumerate(("near", "middle", "far"))},
        **{f"decile-{place + 1}": tenth == place for place in range(10)},
    }


def chosen_rates(
    bench: Bench,
    arms: Mapping[str, Arm],
    training: Training,
    sheet: Sheet,
    data: Data | None = None,
    flips: NDArray[np.bool_] | None = None,
    **condition: Any,
) -> dict[str, float]:
    """The learning rate of each arm with the best mean accuracy on the validation pairs; of equal ones the smallest."""
    found: dict[str, dict[float, float]] = {name: {} for name in arms}
    wanted = {name: list(bench.rates[training.optimizer]) for name in arms}
    for _ in range(MORE_RATES + 1):
        for rate in sorted({rate for rates in wanted.values() for rate in rates}):
            tried = [name for name in arms if rate in wanted[name]]
            done = train(
                [arms[name] for name in tried],
                bench.train if data is None else data,
                replace(training, learning_rate=rate),
                bench.search_seeds,
                bench.validation,
                flips=flips,
            )
            for name, right in zip(tried, done.correct[-1], strict=True):
                found[name][rate] = float(right.mean())
        wanted = {name: _beyond(rates) for name, rates in found.items()}
        if not any(wanted.values()):
            break
    best = {name: _best(rates) for name, rates in found.items()}
    for name, rates in found.items():
        sheet.search.append(
            {
                "condition": condition,
                "arm": name,
                "rates": {str(rate): round(rates[rate], 5) for rate in sorted(rates)},
                "chosen": best[name],
                "at_edge": bool(_beyond(rates)),
            }
        )
    return best


def _best(rates: Mapping[float, float]) -> float:
    return min(rates, key=lambda rate: (-rates[rate], rate))


def _beyond(rates: Mapping[float, float]) -> list[float]:
    """The next learning rate outwards, where the best one is at an end: in steps of 1, 3, 10, 30, ..."""
    best = _best(rates)
    if best not in (min(rates), max(rates)):
        return []
    exponent = math.floor(math.log10(best) + 1e-9)
    small = best / 10**exponent < 2
    up, down = (3, 0.3) if small else (10, 1)
    return [float(f"{(up if best == max(rates) else down) * 10.0**exponent:.6g}")]


def add_cells(
    bench: Bench,
    arms: Mapping[str, Arm],
    rates: Mapping[str, float],
    training: Training,
    sheet: Sheet,
    *,
    data: Data | None = None,
    flips: NDArray[np.bool_] | None = None,
    watch: Sequence[int] = (),
    tenths: bool = False,
    **condition: Any,
) -> dict[str, NDArray[np.bool_]]:
    """Train the arms with all seeds, each at its learning rate, and write down what came out.

    Returns:
        Whether each test pair is ranked right at the end, ``(seeds, pairs)`` for each arm.
    """
    masks = {name: mask for name, mask in bench.masks.items() if tenths or not name.startswith("decile")}
    at_end: dict[str, NDArray[np.bool_]] = {}
    for rate in sorted(set(rates.values())):
        names = [name for name in arms if rates[name] == rate]
        done = train(
            [arms[name] for name in names],
            bench.train if data is None else data,
            replace(training, learning_rate=rate),
            bench.seeds,
            bench.test,
            flips=flips,
            watch=watch,
        )
        for place, name in enumerate(names):
            at_end[name] = done.correct[-1, place]
            for point, right in enumerate(done.correct[:, place]):
                step = {} if not watch else {"step": done.steps if point == len(watch) else watch[point]}
                cell = Cell(
                    condition={**condition, **step},
                    arm=name,
                    learning_rate=rate,
                    outcomes=outcomes(right, masks),
                )
                if arms[name].weighting == "normbt" and not watch:
                    first, last = done.mu[place, :, 0].mean(), done.mu[place, :, -1].mean()
                    cell["mu"] = [float(f"{first:.4g}"), float(f"{last:.4g}")]
                sheet.cells.append(cell)
    sheet.cells.sort(key=lambda cell: list(arms).index(cell["arm"]) if cell["arm"] in arms else -1)
    return {name: at_end[name] for name in arms}


def new_sheet(bench: Bench, **settings: Any) -> Sheet:
    """An empty sweep with its settings."""
    training = asdict(bench.base)
    del training["learning_rate"]
    pairs = {"train": len(bench.train.margin), "validation": len(bench.validation.margin)}
    return Sheet(
        {**training, **pairs, "test": len(bench.test.margin), "search_seeds": list(bench.search_seeds), **settings},
        list(bench.seeds),
    )


def steps_sweep(bench: Bench) -> Sheet:
    """Accuracy by distance against the number of steps."""
    sheet = new_sheet(bench, rates="chosen per arm")
    arms = {**BOTH, "relative": GRID["relative"]}
    rates = chosen_rates(bench, arms, bench.base, sheet)
    last = len(orders(len(bench.train.margin), bench.base, [0]))
    watch = sorted({round(last ** (place / 19)) for place in range(19)})
    add_cells(bench, arms, rates, bench.base, sheet, watch=watch)
    return sheet


def epochs_sweep(bench: Bench) -> Sheet:
    """Longer training: does NormBT only get there earlier?"""
    sheet = new_sheet(bench, rates="chosen per arm and number of epochs", epochs=[1, 5, 20])
    for epochs in (1, 5, 20):
        training = replace(bench.base, epochs=epochs)
        rates = chosen_rates(bench, BOTH, training, sheet, epochs=epochs)
        add_cells(bench, BOTH, rates, training, sheet, epochs=epochs)
    return sheet


def noise_sweep(bench: Bench) -> Sheet:
    """Flipped labels among near pairs, far pairs, or all; the rate counts over the pairs it is placed on."""
    sheet = new_sheet(bench, rates="chosen per arm, place and rate, on clean validation pairs")
    places = {"near": bench.near, "far": ~bench.near, "evenly": np.ones_like(bench.near)}
    for rate in (0.0, 0.1, 0.2, 0.3):
        for place, members in places.items():
            condition = {"placed": place if rate else "nowhere", "rate": rate}
            flips = [flipped(members, rate, seeds) for seeds in (bench.search_seeds, bench.seeds)]
            rates = chosen_rates(bench, BOTH, bench.base, sheet, flips=flips[0], **condition)
            add_cells(bench, BOTH, rates, bench.base, sheet, flips=flips[1], **condition)
            if not rate:
                break  # no pair is flipped, wherever that is
    return sheet


def flipped(members: NDArray[np.bool_], rate: float, seeds: Sequence[int]) -> NDArray[np.bool_]:
    """Which labels are turned round: a share of the members, and with a larger rate these and others."""
    found = np.zeros((len(seeds), len(members)), dtype=np.bool_)
    for row, seed in zip(found, seeds, strict=True):
        pool = np.flatnonzero(members)
        row[np.random.default_rng(seed).permutation(pool)[: round(rate * len(pool))]] = True
    return found


def optimizer_sweep(bench: Bench) -> Sheet:
    """Does the running mean matter, and why: three optimizers, at a tuned rate and at one fixed rate."""
    sheet = new_sheet(bench, rates="chosen per arm and optimizer; fixed: NormBT's for every arm")
    arms = {**BOTH, "raw": GRID["raw"], "batch": GRID["batch"], "ema-0": Arm("normbt", beta=0.0)}
    optimizers: tuple[Optimizer, ...] = ("adamw", "momentum", "sgd")
    for optimizer in optimizers:
        training = replace(bench.base, optimizer=optimizer)
        rates = chosen_rates(bench, arms, training, sheet, optimizer=optimizer)
        add_cells(bench, arms, rates, training, sheet, optimizer=optimizer, rate="tuned")
        same = dict.fromkeys(arms, rates["normbt"])
        add_cells(bench, arms, same, training, sheet, optimizer=optimizer, rate="fixed")
    return sheet


def bound_sweep(bench: Bench) -> Sheet:
    """The largest weight, from 1 to none."""
    sheet = new_sheet(bench, rates="chosen per arm")
    arms: dict[str, Arm] = {"bt": GRID["bt"]}
    for bound in (1.0, 2.0, 5.0, 10.0, 100.0, None):
        arms["none" if bound is None else f"{bound:g}"] = Arm("normbt", max_weight=bound)
    rates = chosen_rates(bench, arms, bench.base, sheet)
    add_cells(bench, arms, rates, bench.base, sheet)
    return sheet


def beta_sweep(bench: Bench) -> Sheet:
    """Beta of the running mean, under AdamW and SGD with momentum, at the rate that was chosen for beta 0.9."""
    sheet = new_sheet(bench, rates="chosen for beta 0.9, per optimizer")
    optimizers: tuple[Optimizer, ...] = ("adamw", "momentum")
    for optimizer in optimizers:
        training = replace(bench.base, optimizer=optimizer)
        rate = chosen_rates(bench, {"normbt": GRID["normbt"]}, training, sheet, optimizer=optimizer)["normbt"]
        arms = {f"{beta:g}": Arm("normbt", beta=beta) for beta in (0.0, 0.5, 0.9, 0.99, 0.999)}
        add_cells(bench, arms, dict.fromkeys(arms, rate), training, sheet, optimizer=optimizer)
    return sheet


def batch_sweep(bench: Bench, sizes: Sequence[int] = (4, 16, 64, 256)) -> Sheet:
    """Pairs in a batch, with equal epochs: a batch of 4 makes 64 times the steps of a batch of 256."""
    sheet = new_sheet(bench, rates="chosen per arm and batch size", batch=list(sizes), epochs=1)
    arms = {**BOTH, "batch": GRID["batch"]}
    for size in sizes:
        training = replace(bench.base, batch=size, epochs=1)
        smaller = replace(bench, rates={"adamw": [rate * (size / 64) ** 0.5 for rate in bench.rates["adamw"]]})
        rounded = replace(smaller, rates={"adamw": [_round_rate(rate) for rate in smaller.rates["adamw"]]})
        rates = chosen_rates(rounded, arms, training, sheet, batch=size)
        add_cells(bench, arms, rates, training, sheet, batch=size)
    return sheet


def _round_rate(rate: float) -> float:
    """The nearest of 1, 3, 10, 30, ... times a power of ten."""
    exponent = round(2 * math.log10(rate))
    return float(f"{(3 if exponent % 2 else 1) * 10.0 ** (exponent // 2):.6g}")


def balance_sweep(bench: Bench) -> Sheet:
    """Near pairs as 10 to 90 % of equally many training pairs; the test pairs stay as they are."""
    pairs = len(bench.train.margin) // 2
    sheet = new_sheet(bench, rates="chosen per arm and share", train=pairs)
    sides = [np.flatnonzero(bench.near), np.flatnonzero(~bench.near)]
    sides = [np.random.default_rng(0).permutation(side) for side in sides]
    for share in (0.1, 0.5, 0.9):
        near = round(share * pairs)
        data = bench.train.take(np.sort(np.concatenate([sides[0][:near], sides[1][: pairs - near]])))
        rates = chosen_rates(bench, BOTH, bench.base, sheet, data, near_share=share)
        add_cells(bench, BOTH, rates, bench.base, sheet, data=data, near_share=share)
    return sheet


def grid_sweep(bench: Bench) -> Sheet:
    """All methods against BT, corrected by Holm."""
    sheet = new_sheet(bench, rates="chosen per arm", arms={name: asdict(arm) for name, arm in GRID.items()})
    rates = chosen_rates(bench, GRID, bench.base, sheet)
    correct = add_cells(bench, GRID, rates, bench.base, sheet, tenths=True)
    for name in ("all", "near", "far"):
        mask = bench.masks[name]
        clusters = [cluster for cluster, kept in zip(bench.clusters, mask, strict=True) if kept]
        part = {arm: right[:, mask] for arm, right in correct.items()}
        for row in compared_with("bt", part, Pairs(), ["all"] * len(clusters), clusters):
            sheet.comparisons.append(row | {"score": name})
    return sheet


SWEEPS: dict[str, Callable[[Bench], Sheet]] = {
    "steps": steps_sweep,
    "epochs": epochs_sweep,
    "noise": noise_sweep,
    "optimizer": optimizer_sweep,
    "bound": bound_sweep,
    "beta": beta_sweep,
    "batch-size": batch_sweep,
    "balance": balance_sweep,
    "grid": grid_sweep,
}


if __name__ == "__main__":
    run_sweeps(
        __doc__,
        SWEEPS,
        lambda path: (bench_of(path),),
        summary=SUMMARY,
        command="python -m benchmarks.evidence.mechanism --features runs/evidence/built-in.npz",
    )
