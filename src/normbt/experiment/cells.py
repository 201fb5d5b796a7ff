"""The runs of an experiment: which there are, where their files are, and with which settings each is trained."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from normbt.completeness import checkpoints_in
from normbt.errors import StateError
from normbt.experiment.recipe import MODEL, Recipe
from normbt.experiment.training_sets import PreparedSet
from normbt.results import CELL_FILE, CellRecord, hide_secrets, read_json

SETTINGS_FILE = "train.yaml"

_PATHS = ("dataset_name", "output_dir")
"""Settings that say where files are: an experiment's folder may be moved. Which pairs they hold, ``set.json`` says."""


@dataclass(frozen=True)
class Cell:
    """One model to train.

    Attributes:
        training_set: name of the pairs.
        method: name of the method.
        seed: of head, order and dropout.
        learning_rate: None where the settings of the recipe give it.
    """

    training_set: str
    method: str
    seed: int
    learning_rate: float | None = None

    @property
    def folder(self) -> Path:
        """Where its files are, below the folder of the experiment."""
        rate = [] if self.learning_rate is None else [f"learning-rate-{self.learning_rate:g}"]
        return Path("runs", self.training_set, self.method, *rate, f"seed-{self.seed}")


def search_cells(recipe: Recipe) -> Iterator[Cell]:
    """The runs among whose validation accuracies a learning rate is chosen; none where there is no search."""
    for training_set in recipe.training_sets:
        for method in recipe.methods:
            for rate in recipe.learning_rates:
                for seed in recipe.search_seeds:
                    yield Cell(training_set, method, seed, rate)


def possible_cells(recipe: Recipe) -> Iterator[Cell]:
    """Every run that there may be: those of the search, and the final ones at whichever learning rate is chosen."""
    rates = recipe.learning_rates or (None,)
    seeds = dict.fromkeys((*recipe.search_seeds, *recipe.seeds) if recipe.learning_rates else recipe.seeds)
    for names in itertools.product(recipe.training_sets, recipe.methods):
        for rate, seed in itertools.product(rates, seeds):
            yield Cell(*names, seed, rate)


def final_cells(recipe: Recipe, chosen: Mapping[tuple[str, str], float]) -> Iterator[Cell]:
    """The runs that are compared: every seed of every method, seed by seed.

    Args:
        recipe: the experiment.
        chosen: learning rate of each training set and method; empty where there is no search.

    Yields:
        The runs. Seeds are outermost, so that an experiment cut short has compared all methods on the seeds it did.
    """
    for training_set in recipe.training_sets:
        for seed in recipe.seeds:
            for method in recipe.methods:
                yield Cell(training_set, method, seed, chosen.get((training_set, method)))


def cell_settings(recipe: Recipe, cell: Cell, prepared: PreparedSet, folder: Path) -> dict[str, Any]:
    """The settings of `normbt train` for one run: a complete file for it, which can be run by hand.

    Args:
        recipe: the experiment.
        cell: the run.
        prepared: its pairs.
        folder: of the experiment.

    Returns:
        Settings by name. One that the recipe gives as null is left out: that is how a method, or the command line,
        takes back a setting of all runs.
    """
    rate = {} if cell.learning_rate is None else {"learning_rate": cell.learning_rate}
    settings = {
        **recipe.train,
        **recipe.methods[cell.method],
        **rate,
        "dataset_name": [str(prepared.files["train"])],
        "seed": cell.seed,
        "output_dir": str(folder / cell.folder / MODEL),
    }
    return {name: value for name, value in settings.items() if value is not None}


def write_settings(settings: Mapping[str, Any], file: Path) -> None:
    """Write the settings of one run as the YAML file of `normbt train`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False), encoding="utf-8")


def read_cell(folder: Path, settings: Mapping[str, Any]) -> CellRecord | None:
    """The record of a run that is complete.

    Args:
        folder: of the run.
        settings: that the run should have.

    Returns:
        The record; None where the run is not complete.

    Raises:
        StateError: the run was made, or begun and cut short, with other settings; they are named.
    """
    file, begun = folder / CELL_FILE, folder / SETTINGS_FILE
    record: Any = read_json(file, kind="cell") if file.exists() else None
    if record is not None:
        found = record["settings"]
    elif begun.exists() and checkpoints_in(folder / MODEL):
        found = yaml.safe_load(begun.read_text(encoding="utf-8"))
    else:
        return None
    # Secrets are hidden in the record, and another token is no other setting.
    found, wanted = hide_secrets(found), hide_secrets(json.loads(json.dumps(settings)))
    names = sorted((wanted.keys() | found.keys()) - set(_PATHS))
    changed = [name for name in names if wanted.get(name) != found.get(name)]
    if changed:
        values = ", ".join(f"{name} {found.get(name)!r} (now {wanted.get(name)!r})" for name in changed)
        raise StateError(
            f"{folder} was trained with other settings: {values}. "
            "Delete that folder to train it again, or choose another output_dir."
        )
    return record
