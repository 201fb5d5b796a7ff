"""Preference pairs of any kind, and how pairs of any kind become items."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from normbt.errors import DataError
from normbt.pairs import DataReport, read_pairs
from normbt.suites.base import Item, PairSuite
from normbt.suites.clusters import prompt_cluster, prompt_text

if TYPE_CHECKING:
    from datasets import Dataset


class Pairs(PairSuite):
    """Any preference pairs; ``category``, ``subset`` and ``source`` columns, where there are some, give scores too."""

    name = "pairs"
    files = ("pairs",)
    chat = False

    def read(self, source: str | Path, split: str | None) -> tuple[list[Item], DataReport]:
        """Pairs in any of the forms of :func:`normbt.pairs.read_pairs`."""

        def place(row: Mapping[str, Any]) -> tuple[str, str | None]:
            prompt = prompt_text(row)
            return prompt_cluster(prompt) if prompt else f"pair-{row['id']}", row.get("category")

        return pair_items(source, split, place)


def pair_items(
    source: str | Path,
    split: str | None,
    place: Callable[[Mapping[str, Any]], tuple[str, str | None]],
    *,
    needs: Sequence[str] = (),
    check: Callable[[Mapping[str, Sequence[str | None]]], None] | None = None,
) -> tuple[list[Item], DataReport]:
    """Items of preference pairs.

    Args:
        source: as in :func:`normbt.pairs.read_pairs`.
        split: as there.
        place: gives the cluster and the category of a pair.
        needs: columns that the suite cannot do without.
        check: looks at these columns before the items are made.

    Returns:
        The items and the report.

    Raises:
        DataError: the pairs cannot be read, or a column is missing.
    """
    read, report = read_pairs(source, split=split)
    assert isinstance(report, DataReport)  # a live one only comes with streaming=True
    rows = cast("Dataset", read)
    missing = [name for name in needs if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source}: this suite needs the columns {' and '.join(needs)}, found no {' and no '.join(missing)} "
            f"(columns: {', '.join(rows.column_names)}). For other preference pairs use --suite pairs."
        )
    if check is not None:
        check({name: rows[name][:] for name in needs})
    items = []
    for row in cast("Sequence[dict[str, Any]]", rows):
        cluster, category = place(row)
        items.append(
            Item(
                id=row["id"],
                prompt=row.get("prompt"),
                chosen=(row["chosen"],),
                rejected=(row["rejected"],),
                cluster_id=cluster,
                source=_text_or_none(row.get("source")),
                category=_text_or_none(category),
                subset=_text_or_none(row.get("subset")),
            )
        )
    return items, report


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)
