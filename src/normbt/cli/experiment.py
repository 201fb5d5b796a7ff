"""`normbt experiment`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from normbt.cli.terminal import messages, output, page


def experiment(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with normbt.")
    ],
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder of the experiment. Default: experiments/NAME.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value, such as train.max_length=512. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Runs to do now, as TRAINING_SET/METHOD/seed-N. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry_run", help="Read and check the recipe, list its runs, and stop.")
    ] = False,
) -> None:
    """Train, evaluate, diagnose and compare a grid of methods and seeds; what was cut short is continued.

    Example: normbt experiment recipe.yaml --set "seeds=[0, 1, 2]"
    """
    with messages.status("loading"):
        from normbt.experiment import read_recipe, run_experiment
        from normbt.experiment.table import render_experiment, render_plan
        from normbt.report import write_report

    wanted = read_recipe(recipe, overrides=overrides or [])
    if dry_run:
        page.print(render_plan(wanted))
        return
    folder = output_dir or Path("experiments", wanted.name)
    summary = run_experiment(wanted, folder, only=only or [], tell=lambda text: output.print(escape(text)))
    page.print(render_experiment(summary))
    with messages.status("making the report"):
        diagnoses = [folder / diagnosis for diagnosis in summary["diagnoses"]]
        report = write_report([folder, *diagnoses], output_dir=folder / "report", title=wanted.name)
    output.print(f"Result files in {escape(str(folder))}, report: {escape(str(report.page))}")
