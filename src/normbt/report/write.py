"""Result folders to a report: find, read, draw, write."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from normbt.errors import ConfigError
from normbt.report.charts import Chart
from normbt.report.html import render_page, shown_tables
from normbt.report.plots import draw
from normbt.report.section import Limits
from normbt.report.sections import SECTIONS
from normbt.report.sources import find_sources
from normbt.results import write_text

REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"

MAX_PAIRS = 20_000
"""Pairs that the explorer shows unless told otherwise, over all runs: as many as leave room for texts."""

Progress = Callable[[str], None]


class Report(NamedTuple):
    """What was written.

    Attributes:
        page: the HTML file.
        plots: the PNG files.
        sections: titles of the parts, each with the number of results it was made of.
        pairs: pairs in the explorer, over all runs.
        pairs_total: pairs in the files.
        texts: pairs whose texts the page holds.
        page_bytes: size of the page.
        not_shown: result files that the report has no section for, with their kind.
    """

    page: Path
    plots: list[Path]
    sections: dict[str, int]
    pairs: int
    pairs_total: int
    texts: int
    page_bytes: int
    not_shown: list[tuple[Path, str]]


def by_kind(files: Sequence[tuple[Path, str]]) -> list[str]:
    """Result files in words, one sentence's part for each kind: a grid of runs has a hundred of one kind.

    Example:
        >>> by_kind([(Path("a/run.json"), "cell"), (Path("b/poem.json"), "poem"), (Path("c/run.json"), "cell")])
        ['2 files of kind cell, such as a/run.json', 'b/poem.json of kind poem']
    """
    kinds: dict[str, list[Path]] = {}
    for path, kind in files:
        kinds.setdefault(kind, []).append(path)
    return [
        f"{paths[0]} of kind {kind}" if len(paths) == 1 else f"{len(paths)} files of kind {kind}, such as {paths[0]}"
        for kind, paths in kinds.items()
    ]


def write_report(
    folders: Sequence[str | os.PathLike[str]],
    *,
    output_dir: str | os.PathLike[str] = "report",
    title: str | None = None,
    max_pairs: int = MAX_PAIRS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Draw the results in folders: one HTML file that loads nothing, and its charts as PNG files.

    Args:
        folders: what `normbt diagnose`, `evaluate`, `compare`, `train`, `experiment` or `demo` wrote, or folders
            of such folders.
        output_dir: folder of ``report.html`` and ``plots/``.
        title: of the page; None for one made of the folders' names.
        max_pairs: most pairs that the explorer shows, over all runs, which share them evenly; of a larger file a sample
            and the most telling ones.
        seed: of the sample.
        progress: told what is being done.

    Returns:
        What was written.

    Raises:
        ConfigError: ``max_pairs`` is too small, or the files cannot be written.
        DataError: a folder is missing or holds no result, or a file is damaged.
        StateError: the pairs are not those of their summary, or a file was written by a newer version.
    """
    if max_pairs < 1:
        raise ConfigError(f"max_pairs={max_pairs}: the explorer needs at least one pair. Give 1 or more.")
    tell = progress or (lambda doing: None)
    tell("looking for results")
    found = find_sources(folders, [mark for module in SECTIONS for mark in module.MARKS])
    sections, counts = [], {}
    for module in SECTIONS:
        sources = [source for mark in module.MARKS for source in found.sources.get(mark, [])]
        if not sources:
            continue
        tell(f"reading {', '.join(str(source.folder) for source in sources)}")
        limits = Limits(max_rows=max(1, max_pairs // len(sources)), seed=seed)
        section = module.build(sources, limits)
        sections.append(section)
        counts[section.title] = len(sources)
    notes = [f"Not shown, since this version has no section for it: {what}." for what in by_kind(found.unknown)]
    tell("making the page")
    names = ", ".join(Path(folder).resolve().name for folder in folders)
    page, texts = render_page(sections, title=title or f"Reward models: {names}", notes=notes, seed=seed)
    target = Path(output_dir) / REPORT_FILE
    write_text(target, page)
    charts: list[Chart] = [chart for section in sections for chart in section.charts]
    plots = []
    for chart in charts:
        tell(f"drawing {chart.name}")
        plots.append(draw(chart, Path(output_dir) / PLOTS_FOLDER))
    tables = shown_tables(sections)
    return Report(
        page=target,
        plots=plots,
        sections=counts,
        pairs=sum(table.rows for table in tables),
        pairs_total=sum(table.total for table in tables),
        texts=texts.kept,
        page_bytes=target.stat().st_size,
        not_shown=found.unknown,
    )
