"""Draw packed-layout.png: two pairs padded, the same two packed, and who sees whom in the packed row.

    python docs/images/draw_layout.py

The packed row and the squares are read off the layout that `normbt.packing.build_packed` makes of the pairs.
"""

from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from normbt.packing import PackedLayout, TokenPair, build_packed, build_padded

PAIRS = [
    TokenPair([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 15, 16], 4),
    TokenPair([21, 22, 23, 24], [21, 22, 33, 34, 35, 36], 2),
]
PREFIX, CHOSEN, REJECTED, PADDING = "#9db8d9", "#8ccf9b", "#f2b27a", "#ededed"


def main() -> None:
    """Draw the three panels next to this file."""
    figure = pyplot.figure(figsize=(9.6, 4.7), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.05, 1], height_ratios=[2.4, 1])
    draw_padded(figure.add_subplot(grid[0, 0]))
    draw_packed(figure.add_subplot(grid[1, 0]))
    draw_visible(figure.add_subplot(grid[:, 1]))
    named = {"shared prefix": PREFIX, "chosen": CHOSEN, "rejected": REJECTED, "padding": PADDING}
    handles = [Patch(facecolor=color, edgecolor="#777777", label=name) for name, color in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(Path(__file__).with_name("packed-layout.png"), dpi=150)


def draw_padded(axes: Axes) -> None:
    """Four rows, the length of the longest."""
    rows = build_padded(PAIRS, pad_token_id=0).inputs
    labels = ["pair 1, chosen", "pair 2, chosen", "pair 1, rejected", "pair 2, rejected"]
    own = [CHOSEN, CHOSEN, REJECTED, REJECTED]
    for row, (mask, label) in enumerate(zip(rows["attention_mask"].tolist(), labels, strict=True)):
        prefix = PAIRS[row % 2].prefix_length
        for position, real in enumerate(mask):
            color = PADDING if not real else PREFIX if position < prefix else own[row]
            box(axes, position, row, color, str(position) if real else "")
        axes.text(-0.3, row + 0.5, label, ha="right", va="center", fontsize=9)
    finish(axes, "padded: a row for each sequence", columns=17, rows=4)


def draw_packed(axes: Axes) -> None:
    """One row, each token with the position it would have alone."""
    batch = build_packed(PAIRS)
    layout: PackedLayout = batch.inputs["pair_layout"]
    positions = batch.inputs["position_ids"][0].tolist()
    for place, (color, position) in enumerate(zip(colors(layout), positions, strict=True)):
        box(axes, place, 0, color, str(position))
    for pair, (start, end) in enumerate(pairwise(layout.cu_q.tolist()[::2]), start=1):
        axes.text((start + end) / 2, 1.6, f"pair {pair}", ha="center", va="center", fontsize=9)
    finish(axes, "packed: one row; numbers are positions", columns=17, rows=1.9)


def draw_visible(axes: Axes) -> None:
    """A square for each query and key that meet: each branch is causal over its prefix and itself."""
    layout: PackedLayout = build_packed(PAIRS).inputs["pair_layout"]
    tint = colors(layout)
    for queries, keys in zip(pairwise(layout.cu_q.tolist()), pairwise(layout.cu_k.tolist()), strict=True):
        gathered = layout.kv_index[slice(*keys)].tolist()
        visible = torch.ones(queries[1] - queries[0], len(gathered)).tril(len(gathered) - (queries[1] - queries[0]))
        for row, column in visible.nonzero().tolist():
            box(axes, gathered[column], queries[0] + row, tint[gathered[column]])
    for place, color in enumerate(tint):
        box(axes, -1.6, place, color)
        box(axes, place, -1.6, color)
    axes.text(layout.tokens / 2, -2.1, "keys", ha="center", va="bottom", fontsize=9)
    axes.text(-2.1, layout.tokens / 2, "queries", ha="right", va="center", rotation=90, fontsize=9)
    axes.add_patch(Rectangle((0, 0), layout.tokens, layout.tokens, fill=False, edgecolor="#777777"))
    axes.set(xlim=(-3.2, layout.tokens + 0.1), ylim=(layout.tokens + 0.1, -3.2), aspect="equal")
    axes.set_title("who sees whom in the packed row", fontsize=10)
    axes.axis("off")


def colors(layout: PackedLayout) -> list[str]:
    """One for each token of the row."""
    parts = (zip((PREFIX, CHOSEN, REJECTED), pair, strict=True) for pair in layout.pairs)
    return [color for pair in parts for color, length in pair for _ in range(length)]


def box(axes: Axes, x: float, y: float, color: str, text: str = "") -> None:
    """A token."""
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", linewidth=1.2))
    axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=8, color="#333333")


def finish(axes: Axes, title: str, *, columns: float, rows: float) -> None:
    """Square tokens, no axes, first row on top."""
    axes.text(0, -0.5, title, fontsize=10)
    axes.set(xlim=(-5.2, columns + 0.2), ylim=(rows, -1.2), aspect="equal")
    axes.axis("off")


if __name__ == "__main__":
    main()
