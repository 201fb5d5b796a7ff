"""Two diagnoses of the same pairs side by side, as Markdown tables: what docs/diagnosis-run.md shows.

python benchmarks/diagnosis_tables.py runs/diagnosis/start runs/diagnosis/trained
"""

import sys

from normbt.results import DiagnosisSummary, Estimate, read_diagnosis


def estimate(found: Estimate) -> str:
    """A value with its interval."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def table(header: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def show(start: DiagnosisSummary, trained: DiagnosisSummary) -> None:
    """Print every table."""
    both = (start, trained)
    rows = []
    for kind, label in (("distance", "distance"), ("distance_relative", "relative"), ("distance_cosine", "cosine")):
        rows.append([label, *(estimate(one["correlations"][kind]["pearson"]) for one in both)])
        rows.append([f"{label}, Spearman", *(estimate(one["correlations"][kind]["spearman"]) for one in both)])
    backbone = (estimate(one["correlations_backbone"]["distance"]["pearson"]) for one in both)
    rows.append(["distance, backbone's norm", *backbone])
    table(["gradient norm and", "start", "trained"], rows)

    for name, one in (("start", start), ("trained", trained)):
        rows = [
            [f"{found['error_low']:.3f} to {found['error_high']:.3f}", str(found["pairs"]), estimate(found["slope"])]
            for found in one["error_bins"]
        ]
        table([f"error, {name}", "pairs", "exponent p"], rows)

    rows = []
    for place in range(10):
        deciles = [one["share_by_decile"][place] for one in both]
        rows.append(
            [str(place + 1), *(f"{found[key]:.1%}" for found in deciles for key in ("share_bt", "share_normbt"))]
        )
    rows.append(
        ["effective pairs"]
        + [f"{one[key]:.0f}" for one in both for key in ("effective_pairs_bt", "effective_pairs_normbt")]
    )
    table(["decile of distance", "start: BT", "NormBT", "trained: BT", "NormBT"], rows)

    for name, one in (("start", start), ("trained", trained)):
        rows = [
            [
                category,
                str(found["pairs"]),
                f"{found['median_distance']:.3f}",
                f"{found['median_gradient_norm']:.3f}",
                f"{found['mean_error']:.3f}",
                f"{found['share_bt']:.1%}",
                f"{found['share_normbt']:.1%}",
                f"{found['misranked'] / found['pairs']:.0%}",
            ]
            for category, found in one["per_category"].items()
        ]
        header = ["pairs", "median distance", "median norm", "mean error", "share BT", "NormBT", "misranked"]
        table([f"category, {name}", *header], rows)

    rows = []
    for label, value in (
        ("misranked", lambda one: f"{one['quiet_mistakes']['misranked']}"),
        ("quiet under BT", lambda one: f"{one['quiet_mistakes']['quiet_bt']}"),
        ("quiet under NormBT", lambda one: f"{one['quiet_mistakes']['quiet_normbt']}"),
        ("mu", lambda one: f"{one['mu']:.3f}"),
        ("k of norm = k · distance", lambda one: f"{one['proportional_fit']['k']:.2f}"),
        ("variance it explains", lambda one: f"{one['proportional_fit']['r_squared']:.1%}"),
        ("head's norm against distance", lambda one: f"{one['product_form']['max_relative_deviation']:.1e}"),
        ("weights at the bound", lambda one: f"{one['clipped']}"),
        ("truncated", lambda one: f"{one['truncated']}"),
        ("method", lambda one: one["method"]["used"]),
    ):
        rows.append([label, *(value(one) for one in both)])
    table(["", "start", "trained"], rows)


if __name__ == "__main__":
    first, second = (read_diagnosis(folder)[0] for folder in sys.argv[1:3])
    show(first, second)
