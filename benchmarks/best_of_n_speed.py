"""How fast and how exact are best-of-n curves, beside the obvious ways to compute them?

    python benchmarks/best_of_n_speed.py [--candidates 12600] [--prompts 20]

One pool of random scores with ties; curves at n = 1, 2, 4, ... Each way gives the same curves: the estimator, the same
sum with log-gamma weights one candidate at a time, and the mean over random subsets. Printed are seconds, ratios, and
the largest error against weights in exact fractions.
"""

import argparse
import math
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from normbt.best_of_n.estimator import expected_choice, rank_weights

Numbers = NDArray[np.float64]
SUBSETS = 1_000


def main() -> None:
    """Time the ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=12_600, help="of each prompt (default: 12,600)")
    parser.add_argument("--prompts", type=int, default=20, help="prompts to time (default: 20)")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    pools = generator.normal(size=(options.prompts, 2, options.candidates))
    pools[:, 0] = pools[:, 0].round(2)  # ties, as bfloat16 gives them
    sizes = [2**power for power in range((options.candidates // 2).bit_length())]

    def sampled(scores: Numbers, values: Numbers, sizes: list[int]) -> Numbers:
        return np.array([by_subsets(scores, values, n, generator) for n in sizes])

    ways: dict[str, Callable[[Numbers, Numbers, list[int]], Numbers]] = {
        "expected_choice": expected_choice,
        "log-gamma, one by one": by_log_gamma,
        f"{SUBSETS:,} random subsets": sampled,
    }
    print(f"{options.candidates:,} candidates, n = {', '.join(map(str, sizes))}; seconds a prompt")
    first = None
    for name, way in ways.items():
        used = pools if name == "expected_choice" else pools[:1]
        started = time.perf_counter()
        curves = [way(scores, values, sizes) for scores, values in used]
        seconds = (time.perf_counter() - started) / len(used)
        first = first or (seconds, curves[0])
        error = np.abs(curves[0] - first[1]).max()
        print(f"  {name:<24} {seconds:8.4f}  {seconds / first[0]:8.1f} times; differs by at most {error:.1e}")

    print("largest relative error of the weights of ranks spread over the pool:")
    for n in (2, sizes[-1]):
        print(f"  n = {n:<6,} recurrence {error_of(recurrence, options.candidates, n):.1e}, "
              f"log-gamma {error_of(log_gamma, options.candidates, n):.1e}")  # fmt: skip


def by_log_gamma(scores: Numbers, values: Numbers, sizes: list[int]) -> Numbers:
    """The published sum: sort, then one weight for each candidate; ties as they happen to be sorted."""
    order = np.argsort(scores)
    result = []
    for n in sizes:
        ranked = enumerate(values[order].tolist(), start=1)
        result.append(sum(log_gamma(len(scores), n, rank) * value for rank, value in ranked if rank >= n))
    return np.array(result)


def by_subsets(scores: Numbers, values: Numbers, n: int, generator: np.random.Generator) -> float:
    """Mean over random subsets."""
    picked = 0.0
    for _ in range(SUBSETS):
        subset = generator.choice(len(scores), size=n, replace=False)
        picked += values[subset[scores[subset].argmax()]]
    return picked / SUBSETS


def recurrence(count: int, n: int, rank: int) -> float:
    """The weight that is used."""
    return float(rank_weights(count, [n])[0, rank - 1])


def log_gamma(count: int, n: int, rank: int) -> float:
    """The weight by logarithms of factorials."""
    lg = math.lgamma
    below = lg(rank) - lg(n) - lg(rank - n + 1)
    return math.exp(below - (lg(count + 1) - lg(n + 1) - lg(count - n + 1)))


def error_of(weight: Callable[[int, int, int], float], count: int, n: int) -> float:
    """Largest relative error against fractions, where a double can hold the weight."""
    whole, worst = math.comb(count, n), 0.0
    for rank in np.linspace(n, count, 9).astype(int).tolist():
        exact = Fraction(math.comb(rank - 1, n - 1), whole)
        if exact > Fraction(1, 10**290):
            worst = max(worst, abs(float(Fraction(weight(count, n, rank)) / exact - 1)))
    return worst


if __name__ == "__main__":
    main()
