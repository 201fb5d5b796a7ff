"""How the time of a packed step grows: with more pairs, with longer pairs, and against the floating-point work.

    python benchmarks/step_growth.py
    python benchmarks/step_growth.py --largest 8192 --plot growth.png

Three series, forward and backward of NormBTTrainer's step with the micro-batches it chooses, timed from 1,024 tokens on
by doubling: more pairs of one length, the same number of longer and longer pairs, and one longer and longer pair. A
pair is half shared prefix, a quarter each answer.

Two numbers are fitted to each series. The exponent is the slope of log time over log tokens. The work ratio is time per
floating-point operation (`normbt.cost.pair_flops`: matrix products and causal attention over the unique tokens) at the
largest size over that at the smallest: about 1 where nothing grows but the work itself. More pairs must be linear; one
longer pair has attention's own square. Time is the process's own on the CPU, the least of some runs.
"""

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from matplotlib import pyplot

from inputs import SHAPES, load_tokenizer, packed_lengths, random_decoder, wait_for
from normbt.attention import pair_attention
from normbt.batches import StepBatches
from normbt.config import NormBTConfig
from normbt.cost import decoder_shape, pair_flops
from normbt.trainer import NormBTTrainer

SMALLEST = 1024
"""Tokens at which every series begins."""
PAIR = 256
"""Tokens of a pair in the series of more and more pairs."""
LONG_PAIRS = 4
"""Pairs in the series of the same number of longer pairs."""
ENOUGH_SECONDS = 20
"""A size that has taken so long is not run again."""


@dataclass(frozen=True)
class Point:
    """One measured step."""

    pairs: int
    tokens: int
    flops: int
    seconds: float


def main() -> None:
    """Parse the command line, time the series, print and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="small", help="shape of the decoder (default: small)")
    parser.add_argument("--largest", type=int, default=32_768, help="tokens of the largest step (default: 32768)")
    parser.add_argument(
        "--longest", type=int, default=16_384, help="tokens of the longest single pair (default: 16384)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="each time is the least of so many (default: 3)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--plot", type=Path, help="where to draw the series (a .png or .svg file)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    trainer = make_trainer(options)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {options.device}, {platform.machine()}, torch {torch.__version__}, one thread"
    )
    print(f"decoder {options.model}: {SHAPES[options.model][1]}, float32")
    sizes = [SMALLEST << doubling for doubling in range((options.largest // SMALLEST).bit_length())]
    series = {
        f"more pairs of {PAIR} tokens": [[PAIR] * (size // PAIR) for size in sizes],
        f"{LONG_PAIRS} longer and longer pairs": [[size // LONG_PAIRS] * LONG_PAIRS for size in sizes],
        "one longer and longer pair": [[size] for size in sizes if size <= options.longest],
    }
    measured(trainer, [PAIR] * LONG_PAIRS, options)  # a process's first steps are slower
    points = {}
    for title, steps in series.items():
        points[title] = [measured(trainer, step, options) for step in steps]
        print_series(title, points[title])
    if options.plot:
        draw(points, options.plot)
        print(f"\ndrawn to {options.plot}")


def make_trainer(options: argparse.Namespace) -> NormBTTrainer:
    """The trainer whose step is timed; its one training pair is never read."""
    tokenizer = load_tokenizer(None)
    config = NormBTConfig(
        output_dir=tempfile.mkdtemp(),
        gradient_checkpointing=False,
        mu_init=1.0,
        report_to="none",
        use_cpu=options.device == "cpu",
        bf16=options.device == "cuda",
    )
    pairs = Dataset.from_list([random_pair(8, 0)])
    return NormBTTrainer(
        random_decoder(options.model, tokenizer), config, train_dataset=pairs, processing_class=tokenizer
    )


def random_pair(tokens: int, seed: int) -> dict[str, Any]:
    """An encoded pair of so many unique tokens, half of them shared."""
    ids = np.random.default_rng(seed).integers(1000, 30_000, tokens)
    prefix, chosen, rejected = np.split(ids, [tokens // 2, tokens // 2 + tokens // 4])
    rejected[0] = chosen[0] + 1
    sides = {"chosen_ids": [*prefix, *chosen], "rejected_ids": [*prefix, *rejected]}
    return sides | {"prefix_length": len(prefix)}


def measured(trainer: NormBTTrainer, pair_tokens: Sequence[int], options: argparse.Namespace) -> Point:
    """Time the step of such pairs: the least of some runs, of fewer where one takes long."""
    pairs = [random_pair(tokens, seed) for seed, tokens in enumerate(pair_tokens)]
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    times: list[float] = []
    with pair_attention(trainer.model, pooled_only=True):
        while len(times) < options.repeats and sum(times) < ENOUGH_SECONDS:
            batches = StepBatches(trainer.step_plan.micro_batches(pairs))
            start = clock()
            trainer.training_step(trainer.model, batches, len(pairs))
            trainer.model.zero_grad()
            wait_for(options.device)
            times.append(clock() - start)
    shape = decoder_shape(trainer.model)
    lengths = packed_lengths(pairs)
    return Point(
        len(pairs), sum(each.tokens for each in lengths), sum(pair_flops(shape, *e) for e in lengths), min(times)
    )


def print_series(title: str, points: Sequence[Point]) -> None:
    """A row for each size, then the fits."""
    print(f"\n{title}\n{'pairs':>7}{'tokens':>9}{'seconds':>9}{'us/token':>10}{'Gflop':>8}{'Gflop/s':>9}")
    for point in points:
        print(
            f"{point.pairs:7}{point.tokens:9}{point.seconds:9.2f}{1e6 * point.seconds / point.tokens:10.0f}"
            f"{point.flops / 1e9:8.0f}{point.flops / point.seconds / 1e9:9.1f}"
        )
    first, last = points[0], points[-1]
    work_ratio = (last.seconds / last.flops) / (first.seconds / first.flops)
    print(
        f"time grows as tokens^{exponent(points, 'seconds'):.2f}, the work as tokens^{exponent(points, 'flops'):.2f}; "
        f"time per operation, last over first: {work_ratio:.2f}",
        flush=True,
    )


def exponent(points: Sequence[Point], quantity: str) -> float:
    """Slope of the logarithm of a quantity over that of the tokens."""
    tokens, values = np.array([[point.tokens, getattr(point, quantity)] for point in points], dtype=float).T
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def draw(series: dict[str, list[Point]], path: Path) -> None:
    """Two panels on logarithmic axes: time against tokens with the work of each series, and time against pairs."""
    figure, (by_tokens, by_pairs) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (title, points) in enumerate(series.items()):
        color = f"C{number}"
        tokens = [point.tokens for point in points]
        scale = points[0].seconds / points[0].flops
        by_tokens.plot(tokens, [point.seconds for point in points], "o-", color=color, label=title)
        by_tokens.plot(tokens, [scale * point.flops for point in points], "--", color=color, linewidth=1)
    by_tokens.plot([], [], "--", color="grey", linewidth=1, label="floating-point work, from the first point on")
    by_tokens.set(xlabel="unique tokens of the step", ylabel="seconds", title="Time against tokens")
    title, points = next(iter(series.items()))
    pairs = [point.pairs for point in points]
    per_pair = points[0].seconds / points[0].pairs
    by_pairs.plot(pairs, [point.seconds for point in points], "o-", color="C0", label=title)
    by_pairs.plot(pairs, [per_pair * count for count in pairs], "--", color="grey", linewidth=1, label="proportional")
    by_pairs.set(xlabel="pairs of the step", ylabel="seconds", title="Time against pairs")
    for axes in (by_tokens, by_pairs):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
