"""An experiment for people: its plan before it runs, and its scores by method after."""

from collections.abc import Iterable, Iterator

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from normbt.experiment.cells import final_cells, search_cells
from normbt.experiment.job import HEADLINE
from normbt.experiment.recipe import Recipe
from normbt.results import ExperimentCell, ExperimentSummary

_NAMES_SHOWN = 6


def render_plan(recipe: Recipe) -> RenderableType:
    """What an experiment will train: its methods with their settings, and how many runs that makes.

    Args:
        recipe: the experiment.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    table = Table(title=escape(f"{recipe.name}: the methods"), title_justify="left")
    table.add_column("method")
    table.add_column("settings")
    for name, settings in recipe.methods.items():
        mark = " (baseline)" if name == recipe.baseline else ""
        table.add_row(escape(f"{name}{mark}"), escape(", ".join(f"{key} {value}" for key, value in settings.items())))
    final, searched = len(list(final_cells(recipe, {}))), len(list(search_cells(recipe)))
    search = (
        f" Before them {searched} runs to choose among the learning rates {_listed(recipe.learning_rates)} on "
        "validation pairs; the chosen ones count among the runs."
        if searched
        else ""
    )
    return Group(
        table,
        escape(
            f"{final} runs: {len(recipe.methods)} methods x {len(recipe.seeds)} seeds ({_listed(recipe.seeds)}) x "
            f"{len(recipe.training_sets)} training sets ({_listed(recipe.training_sets)}).{search}"
        ),
        escape(f"Suites: {_listed(recipe.suites)}. Primary outcomes: {_listed(recipe.primary)}.{_diagnosis(recipe)}"),
    )


def _diagnosis(recipe: Recipe) -> str:
    if not recipe.diagnose:
        return ""
    return f" The models of seed {recipe.seeds[0]} are diagnosed on {recipe.diagnose:,} held-out pairs."


def render_experiment(summary: ExperimentSummary) -> RenderableType:
    """Scores of every method for each training set and suite, what the comparisons found, and what is missing.

    Args:
        summary: content of ``experiment.json``.

    Returns:
        Something a ``rich.console.Console`` prints.
    """
    parts: list[RenderableType] = list(_tables(summary))
    for one in summary["comparisons"]:
        parts.append(f"\n[bold]{escape(one['training_set'])}: {escape(one['suite'])}[/], seeds {_listed(one['seeds'])}")
        parts += map(escape, one["findings"])
    if missing := summary["missing"]:
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        parts.append(f"[yellow]Not done yet:[/] {escape(_listed(missing[:_NAMES_SHOWN]) + more)}.")
    return Group(*parts)


def _tables(summary: ExperimentSummary) -> Iterator[Table]:
    for training_set in summary["training_sets"]:
        cells = [cell for cell in summary["cells"] if cell["training_set"] == training_set]
        for suite in summary["recipe"]["suites"] if cells else ():
            yield _table(f"{training_set}: {suite}", suite, cells)


def _table(title: str, suite: str, cells: list[ExperimentCell]) -> Table:
    """Mean over seeds, with the standard deviation where there are several."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("method")
    outcomes = list(cells[0]["scores"][suite])
    for outcome in outcomes:
        table.add_column(escape(outcome), justify="right", style="bold" if outcome == HEADLINE else None)
    table.add_column("seeds", justify="right")
    table.add_column("learning rate", justify="right")
    for method in dict.fromkeys(cell["method"] for cell in cells):
        runs = [cell for cell in cells if cell["method"] == method]
        scores = ([run["scores"][suite][outcome] for run in runs] for outcome in outcomes)
        rate = runs[0]["learning_rate"]
        shown = "" if rate is None else f"{rate:g}"
        table.add_row(escape(method), *map(_mean, scores), _listed(run["seed"] for run in runs), shown)
    return table


def _mean(values: list[float]) -> str:
    spread = f" ±{100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
