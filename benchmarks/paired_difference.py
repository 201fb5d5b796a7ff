"""Two evaluations of the same pairs, side by side: exact McNemar tests by category, with Holm's correction.

    python benchmarks/paired_difference.py runs/real/bt-rewardbench runs/real/normbt-rewardbench

Arguments are folders that `normbt evaluate` wrote. The first is called A, the second B.
"""

import argparse

import numpy as np

from normbt.results import EvaluationPair, read_evaluation
from normbt.stats import holm, mcnemar_exact


def main() -> None:
    """Print one line for each category."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="folder of one evaluation")
    parser.add_argument("b", help="folder of the other")
    arguments = parser.parse_args()
    first, second = (_by_id(arguments.a), _by_id(arguments.b))
    if first.keys() != second.keys():
        parser.error("the two evaluations hold different pairs")

    categories = sorted({str(pair["category"]) for pair in first.values()})
    rows = [_count(category, first, second) for category in categories]
    corrected = holm([p for *_, p in rows])
    print(
        f"{'category':12} {'pairs':>6} {'A right':>8} {'B right':>8} {'only A':>7} {'only B':>7} {'p':>8} {'Holm':>8}"
    )
    for (category, pairs, a, b, only_a, only_b, p), adjusted in zip(rows, np.asarray(corrected), strict=True):
        print(
            f"{category:12} {pairs:6,} {a / pairs:8.1%} {b / pairs:8.1%} {only_a:7} {only_b:7} {p:8.4f} {adjusted:8.4f}"
        )


def _by_id(folder: str) -> dict[str, EvaluationPair]:
    return {pair["id"]: pair for pair in read_evaluation(folder)[1]}


def _count(
    category: str, first: dict[str, EvaluationPair], second: dict[str, EvaluationPair]
) -> tuple[str, int, int, int, int, int, float]:
    ids = [pair_id for pair_id, pair in first.items() if pair["category"] == category]
    right = [(first[pair_id]["correct"], second[pair_id]["correct"]) for pair_id in ids]
    only_a, only_b = right.count((True, False)), right.count((False, True))
    both = right.count((True, True))
    return category, len(ids), both + only_a, both + only_b, only_a, only_b, mcnemar_exact(only_a, only_b)


if __name__ == "__main__":
    main()
