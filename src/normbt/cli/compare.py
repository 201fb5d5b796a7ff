"""`normbt compare`."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from normbt.cli.options import Confidence, Resamples
from normbt.cli.terminal import messages, page


class Format(StrEnum):
    """What is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"
    JSON = "json"


class Kind(StrEnum):
    """Further outcomes."""

    SUBSETS = "subsets"
    CATEGORIES = "categories"
    SOURCES = "sources"


def compare(
    methods: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]FOLDER...",
            help="Folders of `normbt evaluate`. A plain folder is a method of its own; NAME=FOLDER, given once for "
            "each seed or with a pattern (bt='runs/bt-*'), makes several runs one method. The first is the baseline.",
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The method that the others are compared with. Default: the first.")
    ] = None,
    primary: Annotated[
        list[str] | None,
        typer.Option(
            "--primary",
            help="An outcome that the comparison is about (again for another; score is the headline). "
            "Default: score, and Reasoning for RewardBench.",
        ),
    ] = None,
    by: Annotated[list[Kind] | None, typer.Option("--by", help="Compare these too (again for another kind).")] = None,
    alpha: Annotated[float, typer.Option("--alpha", help="Level of the tests, after Holm's adjustment.")] = 0.05,
    confidence: Confidence = 0.95,
    power: Annotated[
        float, typer.Option("--power", help="Probability at which a detectable difference is found.")
    ] = 0.8,
    resamples: Resamples = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the resampling.")] = 0,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Write comparison.json, comparison.md and comparison.tex here.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="What to print.")] = Format.TABLE,
) -> None:
    """Compare evaluations of the same pairs: paired tests and intervals, over seeds where there are several. No model.

    Example: normbt compare bt='runs/bt-*' normbt='runs/normbt-*' --output_dir comparison
    """
    with messages.status("comparing"):
        from normbt.compare import compare as run_comparison
        from normbt.compare import latex, markdown, parse_methods, render_comparison

        found = run_comparison(
            parse_methods(methods),
            baseline=baseline,
            primary=primary or (),
            by=[kind.value for kind in by or ()],
            alpha=alpha,
            confidence=confidence,
            power=power,
            resamples=resamples,
            seed=seed,
            output_dir=output_dir,
        )
    if format is Format.TABLE:
        page.print(render_comparison(found))
    elif format is Format.JSON:
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(markdown(found) if format is Format.MARKDOWN else latex(found))
    if output_dir is not None:
        messages.print(f"Result files in {escape(str(output_dir))}")
