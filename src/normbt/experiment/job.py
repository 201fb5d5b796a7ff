"""The job: train every model of a recipe that is missing, choose learning rates, evaluate, diagnose, compare."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

from normbt.arguments import TrainArguments, parse_train_arguments
from normbt.compare import compare
from normbt.completeness import last_complete
from normbt.diagnose import diagnose
from normbt.errors import ConfigError, StateError
from normbt.evaluate import evaluate
from normbt.experiment.cells import (
    SETTINGS_FILE,
    Cell,
    cell_settings,
    final_cells,
    possible_cells,
    read_cell,
    search_cells,
    write_settings,
)
from normbt.experiment.rate_search import Validation, choose_rate, told
from normbt.experiment.recipe import DIAGNOSIS, MODEL, VALIDATION, Recipe, TrainingSet, primary_of
from normbt.experiment.running import alone_in, free_memory, train_model
from normbt.experiment.suite_check import check_suites
from normbt.experiment.suite_runs import HELD_OUT, SuiteRun
from normbt.experiment.training_sets import PreparedSet, prepare_set
from normbt.packaged_encoder import locate_model
from normbt.results import (
    CELL_FILE,
    EXPERIMENT_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    CellRecord,
    EvaluationSummary,
    ExperimentCell,
    ExperimentComparison,
    ExperimentSummary,
    RateSearch,
    hide_secrets,
    provenance,
    read_evaluation,
    read_json,
    read_records,
    write_json,
)

logger = logging.getLogger(__name__)

HEADLINE = "headline"
"""Name of a suite's main number among its scores."""
READING = ("template", "max_length", "batch_tokens", "dtype", "device", "attention", "trust_remote_code")
"""Settings of an evaluation that say how a model reads pairs: a diagnosis of it reads them in the same way."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many units of it are done, and how many there are."""


def run_experiment(
    recipe: Recipe,
    output_dir: str | Path,
    *,
    only: Sequence[str] = (),
    overwrite: bool = False,
    tell: Callable[[str], None] = logger.info,
    progress: Progress | None = None,
) -> ExperimentSummary:
    """Train, evaluate, diagnose and compare what a recipe asks for; what is there already is kept.

    Every run has a folder. Its training is complete where there is a ``cell.json``, an evaluation or a diagnosis where
    there is a ``summary.json``; both are written last. An experiment that was killed, or whose recipe got more seeds,
    methods or suites, is continued by the same call: complete runs are read, one that stopped in the middle goes on
    from its last checkpoint, or starts again where it has none.

    Args:
        recipe: what to run.
        output_dir: folder of the experiment.
        only: patterns of runs to do now, as in ``fnmatch``: ``TRAINING_SET/METHOD/seed-N``. Empty for all. What is
            left to do is named in the summary.
        overwrite: throw away pairs and runs of other settings, which are refused otherwise.
        tell: told, for people, what is done.
        progress: told how far each training, evaluation and diagnosis is, in place of the trainer's own bar and log
            lines; of a training in several processes it hears nothing.

    Returns:
        The summary, as written to ``experiment.json``.

    Raises:
        ConfigError: a setting is refused by `normbt train`, the package that carries a model is missing, the data of a
            suite cannot be read or lack a primary outcome, or a pattern matches nothing; nothing was trained then.
        StateError: the folder holds runs of other settings or pairs, or another process works in it.
    """
    folder = Path(output_dir)
    with alone_in(folder):
        sets = {name: _prepare(name, one, folder, overwrite) for name, one in recipe.training_sets.items()}
        experiment = _Experiment(recipe, folder, sets, tell, progress)
        check_suites(recipe, sets, experiment.is_unevaluated)
        searched, wanted = list(search_cells(recipe)), _matching(recipe, only)
        experiment.check(possible_cells(recipe), overwrite=overwrite)
        search, places = [], _places("search", filter(wanted, searched))
        for _, method in groupby(searched, key=lambda cell: (cell.training_set, cell.method)):
            search += experiment.search(list(method), places)
        chosen = {(one["training_set"], one["method"]): one["chosen"] for one in search}
        final = [cell for cell in final_cells(recipe, chosen) if cell.learning_rate or not recipe.learning_rates]
        for cell, place in _places("run", filter(wanted, final)).items():
            experiment.train(cell, place)
            experiment.evaluate(cell)
            experiment.diagnose(cell)
            experiment.drop_weights(cell, "measured")
        summary = experiment.summarise(search, final)
        write_json(folder / EXPERIMENT_FILE, summary)
    return summary


@dataclass(frozen=True)
class _Experiment:
    """A recipe with its folder and its pairs."""

    recipe: Recipe
    folder: Path
    sets: Mapping[str, PreparedSet]
    tell: Callable[[str], None]
    progress: Progress | None

    def check(self, cells: Iterable[Cell], *, overwrite: bool) -> None:
        """Have `normbt train` read the settings of every run before the first one starts."""
        problems: dict[str, str] = {}
        for cell in cells:
            try:
                self._record(cell)
            except StateError:
                if not overwrite:
                    raise
                shutil.rmtree(self.folder / cell.folder)
            try:
                locate_model(self._arguments(cell).model.model_name_or_path or "")
            except ConfigError as error:
                problems.setdefault(str(error), str(cell.folder))
        if problems:
            raise ConfigError("\n".join(f"{where}: {problem}" for problem, where in problems.items()))

    def is_unevaluated(self, training_set: str, suite: str) -> bool:
        """Whether one of the models that are compared is still to be evaluated on a suite."""
        cells = [cell for cell in possible_cells(self.recipe) if cell.training_set == training_set]
        done = {(cell.method, cell.seed) for cell in cells if self._summary_file(cell, suite).exists()}
        return any(pair not in done for pair in product(self.recipe.methods, self.recipe.seeds))

    def train(self, cell: Cell, place: str) -> None:
        """Train one model, unless it is there."""
        record = self._record(cell)
        if record is not None and (self._has_weights(cell) or self._is_measured(cell)):
            return
        checkpoint = last_complete(self.folder / cell.folder / MODEL)
        continuing = [] if checkpoint is None else ["--resume_from_checkpoint", str(checkpoint)]
        arguments = self._arguments(cell, *continuing)
        self.tell(f"{place}: {_name(cell)}" + (f", continued from {checkpoint.name}" if checkpoint else ""))
        started = time.perf_counter()
        train_model(arguments, _name(cell), self._advance(f"{_name(cell)}: training"))
        write_json(
            self.folder / cell.folder / CELL_FILE,
            CellRecord(
                schema_version=SCHEMA_VERSION,
                kind="cell",
                training_set=cell.training_set,
                method=cell.method,
                learning_rate=cell.learning_rate,
                seed=cell.seed,
                settings=hide_secrets(self._settings(cell)),
                seconds=time.perf_counter() - started,
                provenance=provenance(
                    config=self._settings(cell), seed=cell.seed, data=[self.sets[cell.training_set].record["source"]]
                ),
            ),
        )

    def validate(self, cell: Cell) -> Validation:
        """Evaluate one model on the validation pairs of the training set, where that is not done."""
        self._evaluate(cell, VALIDATION, SuiteRun("pairs"), share="validation")
        return read_evaluation(self._summary_file(cell, VALIDATION).parent)

    def search(self, cells: Sequence[Cell], places: Mapping[Cell, str]) -> list[RateSearch]:
        """Train and validate one method with each learning rate, and choose one.

        Args:
            cells: all runs of the search of that method.
            places: those to do now, each with its place among them.

        Returns:
            The choice; none while runs are left to do. The weights of the others are then of no more use.
        """
        for cell in cells:
            if cell in places and not self._is_validated(cell):
                self.train(cell, places[cell])
                self.validate(cell)
        if not all(map(self._is_validated, cells)):
            return []
        found = self.choose(cells)
        for cell in cells:
            if cell.learning_rate != found["chosen"]:
                self.drop_weights(cell, f"learning rate {cell.learning_rate:g} was not chosen")
        return [found]

    def choose(self, cells: Sequence[Cell]) -> RateSearch:
        """The learning rate of a method, by its validated runs."""
        runs: dict[float, list[Validation]] = {}
        for cell in cells:
            runs.setdefault(cell.learning_rate or 0.0, []).append(self.validate(cell))
        search = choose_rate(cells[0].training_set, cells[0].method, runs)
        self.tell(told(search))
        return search

    def evaluate(self, cell: Cell) -> None:
        """Evaluate one model on every suite, where that is not done."""
        for name, suite in self.recipe.suites.items():
            if suite.suite == HELD_OUT:
                self._evaluate(cell, name, dataclasses.replace(suite, suite="pairs"), share="test")
            else:
                self._evaluate(cell, name, suite)

    def diagnose(self, cell: Cell) -> None:
        """Diagnose the model of the first seed on held-out pairs, where the recipe asks for it and it is not done."""
        if not self._wants_diagnosis(cell):
            return
        files, file = self.sets[cell.training_set].files, self._summary_file(cell, DIAGNOSIS)
        asked = {"max_pairs": self.recipe.diagnose, "seed": self.recipe.training_sets[cell.training_set].seed}
        if file.exists():
            _require_equal_settings(read_json(file, kind="diagnosis")["provenance"]["config"], asked, file.parent)
            return
        self.tell(doing := f"{_name(cell)}: diagnosing")
        diagnose(
            self.folder / cell.folder / MODEL,
            data=files["test"] if "test" in files else files["validation"],
            output_dir=file.parent,
            **asked,
            **{name: value for name, value in self.recipe.evaluation.items() if name in READING},
            progress=self._advance(doing),
        )
        free_memory()

    def drop_weights(self, cell: Cell, why: str) -> None:
        """Delete the model of one run, with its checkpoints, if models are not kept."""
        if not self.recipe.keep_models and (model := self.folder / cell.folder / MODEL).exists():
            shutil.rmtree(model)
            self.tell(f"{_name(cell)}: {why}, its weights are deleted (keep_models is false)")

    def summarise(self, search: list[RateSearch], final: Sequence[Cell]) -> ExperimentSummary:
        """All that is done, and what is not."""
        records = {cell: record for cell in final if (record := self._record(cell)) and self._is_measured(cell)}
        done = {_name(cell) for cell in records}
        return ExperimentSummary(
            schema_version=SCHEMA_VERSION,
            kind="experiment",
            name=self.recipe.name,
            recipe=hide_secrets(self.recipe.to_dict()),
            training_sets={name: prepared.record for name, prepared in self.sets.items()},
            search=search,
            cells=[self._scores(cell, record) for cell, record in records.items()],
            missing=[name for cell in final_cells(self.recipe, {}) if (name := _name(cell)) not in done],
            comparisons=list(self._comparisons(records)),
            diagnoses=[str(cell.folder / DIAGNOSIS) for cell in records if self._wants_diagnosis(cell)],
            provenance=provenance(
                config=self.recipe.to_dict(), data=[one.record["source"] for one in self.sets.values()]
            ),
        )

    def _comparisons(self, cells: Iterable[Cell]) -> Iterator[ExperimentComparison]:
        """Compare the methods on every suite, over the seeds that all of those begun have."""
        for training_set in self.recipe.training_sets:
            runs: dict[str, dict[int, Cell]] = {}
            for cell in cells:
                if cell.training_set == training_set:
                    runs.setdefault(cell.method, {})[cell.seed] = cell
            seeds = [seed for seed in self.recipe.seeds if all(seed in by_seed for by_seed in runs.values())]
            if self.recipe.baseline not in runs or len(runs) < 2 or not seeds:
                continue
            for suite in self.recipe.suites:
                folder = Path("comparisons", training_set, suite)
                compared = compare(
                    {
                        method: [self._summary_file(by_seed[seed], suite).parent for seed in seeds]
                        for method, by_seed in runs.items()
                    },
                    baseline=self.recipe.baseline,
                    primary=primary_of(self.recipe, suite),
                    output_dir=self.folder / folder,
                )
                yield ExperimentComparison(
                    training_set=training_set,
                    suite=suite,
                    folder=str(folder),
                    seeds=seeds,
                    findings=compared["findings"],
                )

    def _advance(self, doing: str) -> Callable[[int, int], None] | None:
        return None if self.progress is None else partial(self.progress, doing)

    def _settings(self, cell: Cell) -> dict[str, Any]:
        return cell_settings(self.recipe, cell, self.sets[cell.training_set], self.folder)

    def _record(self, cell: Cell) -> CellRecord | None:
        return read_cell(self.folder / cell.folder, self._settings(cell))

    def _arguments(self, cell: Cell, *further: str) -> TrainArguments:
        file = self.folder / cell.folder / SETTINGS_FILE
        write_settings(self._settings(cell), file)
        return parse_train_arguments(["--config", str(file), *further])

    def _has_weights(self, cell: Cell) -> bool:
        return any((self.folder / cell.folder / MODEL).glob("*.safetensors"))

    def _summary_file(self, cell: Cell, name: str) -> Path:
        return self.folder / cell.folder / name / SUMMARY_FILE

    def _is_validated(self, cell: Cell) -> bool:
        return self._record(cell) is not None and self._summary_file(cell, VALIDATION).exists()

    def _wants_diagnosis(self, cell: Cell) -> bool:
        return self.recipe.diagnose > 0 and cell.seed == self.recipe.seeds[0]

    def _is_measured(self, cell: Cell) -> bool:
        """Whether nothing is left to do with the weights."""
        wanted = [*self.recipe.suites, *([DIAGNOSIS] if self._wants_diagnosis(cell) else [])]
        return all(self._summary_file(cell, name).exists() for name in wanted)

    def _evaluate(self, cell: Cell, name: str, suite: SuiteRun, *, share: str | None = None) -> EvaluationSummary:
        """Evaluate a model on a benchmark or on a share of its training set, or read that evaluation."""
        folder = self._summary_file(cell, name).parent
        settings = {**dataclasses.asdict(suite), **self.recipe.evaluation}
        if share is not None:  # which pairs these are, set.json says; their path changes when the folder is moved
            del settings["data"]
        if (folder / SUMMARY_FILE).exists():
            summary, _ = read_records(folder)
            _require_equal_settings(summary["provenance"]["config"], settings, folder)
            return summary
        if share is not None:
            settings["data"] = str(self.sets[cell.training_set].files[share])
        self.tell(doing := f"{_name(cell)}: evaluating on {name}")
        model = self.folder / cell.folder / MODEL
        summary = evaluate(model, output_dir=folder, **settings, progress=self._advance(doing))
        free_memory()
        return summary

    def _scores(self, cell: Cell, record: CellRecord) -> ExperimentCell:
        scores = {}
        for name in self.recipe.suites:
            summary, _ = read_records(self._summary_file(cell, name).parent)
            parts = summary["sections"] or summary["categories"]
            scores[name] = {HEADLINE: summary["score"]["value"]} | {part: one["value"] for part, one in parts.items()}
        return ExperimentCell(
            training_set=cell.training_set,
            method=cell.method,
            learning_rate=cell.learning_rate,
            seed=cell.seed,
            folder=str(cell.folder),
            seconds=record["seconds"],
            scores=scores,
        )


def _prepare(name: str, one: TrainingSet, folder: Path, overwrite: bool) -> PreparedSet:
    """The pairs of a training set; with `overwrite` in place of others, whose runs go with them."""
    try:
        return prepare_set(one, folder / "data" / name)
    except StateError:
        if not overwrite:
            raise
        for part in ("runs", "comparisons", "data"):  # the pairs last: they say that the others are stale
            if (folder / part / name).exists():
                shutil.rmtree(folder / part / name)
        return prepare_set(one, folder / "data" / name)


def _matching(recipe: Recipe, patterns: Sequence[str]) -> Callable[[Cell], bool]:
    """Whether a run is among those asked for; a pattern that matches none is a mistake."""
    seeds = dict.fromkeys((*recipe.seeds, *recipe.search_seeds))
    names = [
        _name(Cell(one, method, seed)) for one in recipe.training_sets for method in recipe.methods for seed in seeds
    ]
    if unmatched := [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)]:
        raise ConfigError(f"--only {', '.join(unmatched)}: matches none of the runs {', '.join(names)}.")
    return lambda cell: not patterns or any(fnmatch(_name(cell), pattern) for pattern in patterns)


def _places(kind: str, cells: Iterable[Cell]) -> dict[Cell, str]:
    """Runs to do, each with its place among them."""
    cells = list(cells)
    return {cell: f"{kind} {number} of {len(cells)}" for number, cell in enumerate(cells, start=1)}


def _name(cell: Cell) -> str:
    return f"{cell.training_set}/{cell.method}/seed-{cell.seed}"


def _require_equal_settings(found: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    changed = [name for name, value in settings.items() if found.get(name) != value]
    if changed:
        values = ", ".join(f"{name} {found.get(name)!r} (now {settings[name]!r})" for name in changed)
        raise StateError(f"{folder} was made with other settings: {values}. Delete that folder to do it again.")
