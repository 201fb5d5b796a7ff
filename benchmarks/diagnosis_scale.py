"""Memory of a diagnosis of many pairs: the end of the job and its table, on made-up records of real size.

The records are written in parts, as the measuring half of the job writes them; then everything that comes after the
model runs: weights, `pairs.jsonl`, statistics with intervals, `summary.json`, the table, and reading all pairs back.
The measuring half holds one chunk of 64 pairs at a time, whatever their number.

    python benchmarks/diagnosis_scale.py --pairs 100000
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from normbt.bias import prediction_error
from normbt.diagnose import CHUNK_PAIRS, render_diagnosis
from normbt.diagnose.finish import finish
from normbt.results import DiagnosisPair, InferenceSettings, Parts, read_diagnosis

TEXT = [f"word{number}" for number in np.random.default_rng(1).integers(0, 2_000, size=100_000).tolist()]


def records(first: int, count: int, words: int, generator: np.random.Generator) -> Iterator[DiagnosisPair]:
    """Pairs whose gradient norm goes with the distance, as those of a model do."""
    for number in range(first, first + count):
        margin, distance = float(generator.normal()), float(generator.lognormal())
        backbone = 2.5 * distance * float(generator.lognormal(sigma=0.2))
        norm = float(np.hypot(distance, backbone))
        error = float(prediction_error(margin))
        prompt, chosen, rejected = (
            " ".join(TEXT[start : start + length])
            for start, length in zip(
                generator.integers(0, len(TEXT) - words, size=3), (words // 3, words, words), strict=True
            )
        )
        yield DiagnosisPair(
            id=f"row-{number}",
            source=None,
            category=("chat", "chat_hard", "safety", "reasoning")[number % 4],
            subset=None,
            cluster_id=f"prompt-{number // 3}",
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            reward_chosen=margin,
            reward_rejected=0.0,
            margin_reward=margin,
            error=error,
            misranked=margin <= 0,
            tie=False,
            distance=distance,
            distance_relative=distance / 8,
            distance_cosine=distance**2 / 128,
            weight=None,
            gradient_norm=norm,
            gradient_norm_head=distance,
            gradient_norm_backbone=backbone,
            update_bt=error * norm,
            update_normbt=None,
            n_tokens_chosen=2 * words,
            n_tokens_rejected=2 * words,
            similarity=0.5,
            truncated=False,
        )


def resident() -> str:
    """Largest resident memory so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def main() -> None:
    """Write the parts, finish the job, and print time and memory of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=150, help="words of an answer")
    parser.add_argument("--resamples", type=int, default=2_000)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    settings: dict[str, Any] = {
        "eps": 1e-6,
        "max_weight": 10.0,
        "resamples": arguments.resamples,
        "confidence": 0.95,
        "seed": 0,
        "method": "auto",
    }
    header = {
        "method": "ghost",
        "reason": "made up",
        "self_check": None,
        "gradient_tokens": 1,
        "parameters": 1,
        "batching": "padded",
    }
    inference = InferenceSettings(
        dtype="float32",
        device="cpu",
        attention=None,
        max_length=1,
        batch_tokens=1,
        batching="",
        template="none",
        untrained_head=False,
    )
    print(f"{'step':<28} {'seconds':>8}  largest resident memory")
    print(f"{'imports':<28} {'':>8}  {resident()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = Parts(folder / "pairs.jsonl", {})
        parts.begin()
        started = time.perf_counter()
        starts = range(0, arguments.pairs, CHUNK_PAIRS)
        for number, start in enumerate(starts):
            count = min(CHUNK_PAIRS, arguments.pairs - start)
            parts.write(number, {"pairs": count, **header}, records(start, count, arguments.words, generator))
        size = sum(path.stat().st_size for path in parts.folder.iterdir()) / 2**20
        print(f"{'made-up parts':<28} {time.perf_counter() - started:>8.0f}  {resident()}  ({size:,.0f} MiB of files)")
        started = time.perf_counter()
        summary = finish(
            folder,
            parts,
            len(starts),
            model="made up",
            total_pairs=arguments.pairs,
            seed=None,
            settings=settings,
            inference=inference,
            run={},
            data=[],
        )
        print(f"{'weights, files, statistics':<28} {time.perf_counter() - started:>8.0f}  {resident()}")
        started = time.perf_counter()
        Console(file=io.StringIO()).print(render_diagnosis(summary))
        read = sum(1 for _ in read_diagnosis(folder)[1])
        print(f"{'table, all pairs read back':<28} {time.perf_counter() - started:>8.0f}  {resident()}")
    assert read == arguments.pairs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{arguments.pairs:,} pairs: {peak:.2f} GiB of 2 allowed, {'kept' if peak < 2 else 'BROKEN'}")


if __name__ == "__main__":
    main()
