"""The picture of the demo: accuracy by category with intervals, and which categories get the gradient."""

from pathlib import Path

from normbt.results import read_json

BT_COLOUR, NORMBT_COLOUR = "#8c8c8c", "#1f6fb4"


def plot_demo(folder: str | Path, *, path: str | Path | None = None) -> Path:
    """Draw the picture of a finished demo.

    Args:
        folder: the demo's output folder, which holds ``demo.json``.
        path: the PNG file; None for ``demo.png`` in that folder.

    Returns:
        Where the picture is.

    Raises:
        DataError: there is no ``demo.json``, or it is not a demo's.
    """
    # Imported here: drawing is optional, and its import takes a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summary = read_json(Path(folder) / "demo.json", kind="demo")
    rows = summary["comparison"]
    target = Path(path) if path is not None else Path(folder) / "demo.png"
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, gradient = figure.subplots(1, 2, width_ratios=(5, 4))

    places = range(len(rows))
    for offset, method, label, colour in (
        (-0.2, "bt", "BT", BT_COLOUR),
        (0.2, "normbt", "NormBT", NORMBT_COLOUR),
    ):
        values = [100 * row[method] for row in rows]
        below = [100 * (row[method] - row[f"{method}_low"]) for row in rows]
        above = [100 * (row[f"{method}_high"] - row[method]) for row in rows]
        at = [place + offset for place in places]
        accuracy.bar(at, values, width=0.38, color=colour, label=label)
        accuracy.errorbar(at, values, yerr=[below, above], fmt="none", ecolor="black", elinewidth=1, capsize=3)
        for x, value in zip(at, values, strict=True):
            accuracy.text(x, 2, f"{value:.0f}", ha="center", va="bottom", color="white", fontsize=9)
    accuracy.axhline(50, color="black", linewidth=0.8, linestyle=":", zorder=0)
    accuracy.text(len(rows) - 0.55, 50.6, "chance", fontsize=8, va="bottom", ha="left")
    accuracy.set_xticks(list(places), [row["category"] for row in rows])
    accuracy.set_xlim(-0.6, len(rows) - 0.1)
    accuracy.set_ylim(0, 100)
    accuracy.set_ylabel("pairs ranked right (%), 95 % Wilson interval")
    accuracy.set_title("Accuracy on held-out pairs")

    categories = rows[:-1]
    places = range(len(categories))
    gradient.bar(
        [place - 0.2 for place in places],
        [100 * row["gradient_share_bt"] for row in categories],
        width=0.38,
        color=BT_COLOUR,
        label="BT",
    )
    gradient.bar(
        [place + 0.2 for place in places],
        [100 * row["gradient_share_normbt"] for row in categories],
        width=0.38,
        color=NORMBT_COLOUR,
        label="with NormBT weights",
    )
    gradient.set_xticks(list(places), [f"{row['category']}\ndistance {row['distance']:.2f}" for row in categories])
    gradient.set_ylabel("share of the head's gradient (%)")
    gradient.set_title("Who gets the gradient (BT model, same pairs)")
    for axes in (accuracy, gradient):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, ncols=2)
    figure.suptitle(
        f"BT and NormBT on {summary['train_pairs']:,} generated pairs, one seed ({summary['seed']})", fontsize=11
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    return target
