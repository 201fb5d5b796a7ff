"""The page: one HTML file that loads nothing, from sections, charts and pair tables."""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normbt import __version__
from normbt.report.charts import Bars, Chart, Scatter, Spans, error_reach, fit_line
from normbt.report.explorer import PackedTexts, PairTable, pack_columns, pack_texts
from normbt.report.section import Section

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("core.js", "charts.js", "diff.js", "explorer.js", "main.js")

MAX_BYTES = 5_000_000
"""Largest page. What tables and charts leave of it is for texts."""

SPARE_BYTES = 100_000
"""Kept free for what is not counted beforehand: the words and tables of the page."""

BYTES_PER_RECORD = 7
"""Of the number that leads from a pair to its texts."""


def render_page(sections: Sequence[Section], *, title: str, notes: Sequence[str], seed: int) -> tuple[str, PackedTexts]:
    """Make the page.

    Args:
        sections: the parts, in order.
        title: of the page.
        notes: what the reader must know about the report as a whole; the sections bring their own.
        seed: of the sample of pairs, to be named.

    Returns:
        The HTML, and the texts that found a place.
    """
    # Imported here: only a report needs it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    tables = shown_tables(sections)
    blocks = [base64.b64encode(pack_columns(table)).decode() for table in tables]
    charts = [chart for section in sections for chart in section.charts]
    described = [_describe(chart, tables) for chart in charts]
    metas = [_meta(table) for table in tables]
    frame: dict[str, Any] = {"charts": described, "tables": metas}
    used = sum((len(_json(frame).encode()), *map(len, blocks), *(path.stat().st_size for path in PAGE.iterdir())))
    used += SPARE_BYTES + BYTES_PER_RECORD * sum(table.rows for table in tables)
    with_texts = [table for table in tables if table.has_texts]
    # Base64 makes four characters of three bytes.
    texts = pack_texts(with_texts, max_bytes=max((MAX_BYTES - used) * 3 // 4, 0))
    record_of = {id(table): records for table, records in zip(with_texts, texts.records, strict=True)}
    for table, meta in zip(tables, metas, strict=True):
        meta["record"] = record_of.get(id(table), np.full(table.rows, -1)).tolist()
    frame["texts"] = {"kept": texts.kept, "wanted": texts.wanted}

    style, script = (PAGE / "report.css").read_text("utf-8"), _script()
    places = {id(chart): index for index, chart in enumerate(charts)}
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    page = environment.get_template("report.html.jinja").render(
        title=title,
        lede=_lede(sections),
        version=__version__,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        sections=sections,
        charts={s.name: [(chart, places[id(chart)], _hint(chart)) for chart in s.charts] for s in sections},
        tables=blocks,
        texts=base64.b64encode(texts.compressed).decode() if texts.kept else "",
        payload=_json(frame),
        pair_notes=_pair_notes(tables, texts, seed),
        notes=[*(note for section in sections for note in section.notes), *notes],
        origins=[_origin(section, run, origin) for section in sections for run, origin in section.origins.items()],
    )
    # A lone half of a surrogate pair, which JSON can carry, is no character and cannot be written.
    return page.encode("utf-8", "replace").decode("utf-8"), texts


def shown_tables(sections: Sequence[Section]) -> list[PairTable]:
    """The tables of the explorer: those of the first part that brings any."""
    return list(next((section.pairs for section in sections if section.pairs), ()))


def _script() -> str:
    body = "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS)
    return f"(() => {{\n'use strict';\n{body}}})();\n"


def _csp_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(record: Any) -> str:
    """JSON that can stand in a script element: no ``<`` ends or opens anything there."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _meta(table: PairTable) -> dict[str, Any]:
    return {
        "run": table.run,
        "path": str(table.path),
        "total": table.total,
        "sampled": table.sampled,
        "hasTexts": table.has_texts,
        "columns": [dataclasses.asdict(column) for column in table.columns],
    }


def _describe(chart: Chart, tables: Sequence[PairTable]) -> dict[str, Any]:
    """A chart as the page's script reads it; points are rows of a table, not copies of them."""
    if not isinstance(chart, Scatter):
        return dataclasses.asdict(chart)
    place = {id(table): index for index, table in enumerate(tables)}
    panels = []
    for panel in chart.panels:
        rows = panel.rows()
        x, y = (panel.table.numbers(name)[rows] for name in (chart.x_column, chart.y_column))
        panels.append(
            {
                "title": panel.title,
                "note": panel.note,
                "table": place[id(panel.table)],
                "where": panel.where,
                "line": fit_line(x, y, panel.slope),
            }
        )
    plain = {field.name: getattr(chart, field.name) for field in dataclasses.fields(chart) if field.name != "panels"}
    plain |= {"x": dataclasses.asdict(chart.x), "y": dataclasses.asdict(chart.y)}
    return {**plain, "panels": panels, "reach": error_reach(chart)}


def _hint(chart: Chart) -> str:
    """What a chart does on a click."""
    if isinstance(chart, Scatter):
        return "Click a dot to read the pair; drag a box to list the pairs in it."
    return "Click to list the pairs." if isinstance(chart, Bars | Spans) and any(chart.filters) else ""


def _lede(sections: Sequence[Section]) -> str:
    runs = list(dict.fromkeys(run for section in sections for run in section.runs))
    return f"{'Run' if len(runs) == 1 else 'Runs'}: {', '.join(runs)}. Everything here is drawn from result files."


def _pair_notes(tables: Sequence[PairTable], texts: PackedTexts, seed: int) -> list[str]:
    notes = []
    for table in tables:
        run = f"{table.run}: " if len(tables) > 1 else ""
        if table.rows == table.total:
            notes.append(f"{run}All {table.total:,} pairs of the file.")
        else:
            notes.append(
                f"{run}{table.rows:,} of {table.total:,} pairs: {table.sampled:,} drawn at random (seed {seed}), and "
                f"{table.rows - table.sampled:,} more because they are telling ({table.ranking}). The charts draw the "
                "random ones; the statistics are those of all pairs."
            )
    if not texts.wanted:
        return [" ".join([*notes, "The result files hold no texts. A diagnosis does."])]
    if texts.kept == texts.wanted:
        held = f"The texts of all {texts.wanted:,} are here."
    else:
        ranking = next(table.ranking for table in tables if table.has_texts)
        held = (
            f"The texts of {texts.kept:,} of {texts.wanted:,} fit the page: {ranking}, until it was full. Search reads "
            "these."
        )
    if texts.cut:
        held += f" {texts.cut:,} texts of more than 20,000 characters are cut, and say so."
    return [" ".join([*notes, held])]


def _origin(section: Section, run: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    fields = [(name, _plain(" ".join(value) if name == "command" else value)) for name, value in origin.items()]
    return {"title": f"{section.title}: {run}", "fields": [(name, text) for name, text in fields if text]}


def _plain(value: Any) -> str:
    """A value of a record as text; what is not there, zero or empty is left out of records inside it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, "", 0, [], {}))
    if isinstance(value, list):
        return "; ".join(map(_plain, value))
    return "" if value is None else str(value)
