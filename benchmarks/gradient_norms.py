"""What exact gradient norms of pairs cost: one backward per pair, the ghost method, and a plain training backward.

    python benchmarks/gradient_norms.py
    python benchmarks/gradient_norms.py --models wide --lengths 128 512 --device cuda

All three get the same pairs in the same run: random ones of one length, without padding, half of each sequence shared.
`plain` is one forward and backward of the batch, as in training, which gives no norms; `exact` and `ghost` are
`normbt.pair_gradient_norms` over all parameters. Their results are compared before anything is timed.

Time is the process's own on the CPU with one thread, and by the clock on CUDA: the least of some runs, taken in turns.
Memory is the peak of live tensors beyond the model's weights. The script exits with 1 when `ghost` takes more than 1.2
times the plain backward at any size, or not less than it at hidden size 1280.
"""

import argparse
import gc
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from inputs import SHAPES, load_tokenizer, random_decoder, wait_for
from normbt import pair_gradient_norms
from normbt.head import HeadCapture

MODELS = ("small", "wide")
LENGTHS = (64, 128, 512)
LIMIT = 1.2
"""Time of `ghost` over that of `plain`, at most; below 1 at the wide model."""


def main() -> None:
    """Parse the command line, measure every model at every length, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=MODELS, help="shapes of the decoder")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="tokens of each sequence")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of the batch (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="each time is the least of so many (default: 3)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    tokenizer = load_tokenizer(None)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {options.device}, {platform.machine()}, torch {torch.__version__}, one thread, "
        f"{options.pairs} pairs, float32"
    )
    print(f"{'model':>6}{'hidden':>8}{'tokens':>8}{'plain s':>9}{'exact':>8}{'ghost':>8}", end="")
    print(f"{'plain MiB':>12}{'exact':>8}{'ghost':>8}{'largest difference':>21}")
    too_slow = False
    for name in options.models:
        model = random_decoder(name, tokenizer).to(options.device)
        for tokens in options.lengths:
            batch = random_batch(model, tokens, options)
            difference = largest_difference(model, batch)
            methods = contestants(model, batch)
            seconds = least_seconds(methods, options)
            peaks = {method: peak_bytes(run, options) for method, run in methods.items()}
            ratio = {method: seconds[method] / seconds["plain"] for method in methods}
            mebibytes = {method: peaks[method] / 2**20 for method in methods}
            hidden = model.config.hidden_size
            print(
                f"{name:>6}{hidden:8}{tokens:8}{seconds['plain']:9.2f}{ratio['exact']:7.2f}x{ratio['ghost']:7.2f}x"
                f"{mebibytes['plain']:12.0f}{mebibytes['exact']:8.0f}{mebibytes['ghost']:8.0f}{difference:21.1e}",
                flush=True,
            )
            too_slow |= ratio["ghost"] > LIMIT or (hidden >= 1280 and ratio["ghost"] >= 1)
    print(f"ghost within {LIMIT} of plain everywhere, and below it at hidden size 1280: {not too_slow}")
    sys.exit(too_slow)


def random_batch(model: PreTrainedModel, tokens: int, options: argparse.Namespace) -> dict[str, Tensor]:
    """Pairs of random tokens, all chosen first, then all rejected; the first half of a pair's sequences is the same."""
    torch.manual_seed(tokens)
    ids = torch.randint(1000, model.config.vocab_size, (2 * options.pairs, tokens), device=options.device)
    ids[options.pairs :, : tokens // 2] = ids[: options.pairs, : tokens // 2]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def contestants(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    """What is measured, by name."""
    capture = HeadCapture(model)

    def plain() -> None:
        with capture.installed() as captured:
            model(**batch)
            chosen, rejected = captured.rewards.chunk(2)
        (chosen - rejected).sum().backward()
        model.zero_grad()

    def norms(method: str) -> Callable[[], None]:
        def run() -> None:
            pair_gradient_norms(model, batch, method=method)

        return run

    return {"plain": plain, "exact": norms("exact"), "ghost": norms("ghost")}


def largest_difference(model: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    """Largest relative difference of the two methods, over the pairs."""
    exact, ghost = (pair_gradient_norms(model, batch, method=method) for method in ("exact", "ghost"))
    return float(((ghost - exact) / exact).abs().max())


def least_seconds(methods: dict[str, Callable[[], None]], options: argparse.Namespace) -> dict[str, float]:
    """The least time of each, after one run that warms up."""
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in methods}
    methods["plain"]()
    for _ in range(options.repeats):
        for name, run in methods.items():
            wait_for(options.device)
            start = clock()
            run()
            wait_for(options.device)
            times[name].append(clock() - start)
    return {name: min(values) for name, values in times.items()}


def peak_bytes(run: Callable[[], None], options: argparse.Namespace) -> int:
    """Most bytes in live tensors at any moment, beyond what is live before."""
    gc.collect()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


if __name__ == "__main__":
    main()
