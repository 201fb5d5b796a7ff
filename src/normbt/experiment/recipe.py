"""A recipe: which methods, training sets, learning rates and seeds to train, and what to measure each model on."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from normbt.errors import ConfigError
from normbt.experiment.suite_runs import HELD_OUT, SuiteRun, evaluation_problems, suite_problems

Kind = TypeVar("Kind")

DECIDED_PER_CELL = frozenset(
    {"seed", "data_seed", "output_dir", "dataset_name", "eval_data", "resume_from_checkpoint", "do_train", "config"}
)
"""Settings of `normbt train` that the experiment chooses for each run; a recipe that names one is refused."""

MODEL, VALIDATION, DIAGNOSIS = "model", "validation", "diagnosis"
"""Folders of a run beside those of its suites: its weights, its evaluation on validation pairs, its diagnosis."""

OWN = frozenset({MODEL, VALIDATION, DIAGNOSIS})


@dataclass(frozen=True)
class TrainingSet:
    """Pairs to train on, and those held out from them.

    Attributes:
        source: files, folders or Hub names, as `normbt train` takes them; empty for the built-in pairs.
        config: configuration of a Hub data set.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.
        built_in: number of pairs to generate, where there is no source.
        max_pairs: train on a seeded sample of this many pairs; None for all.
        validation: share of the prompts held out to choose a learning rate on, in ``[0, 1)``.
        test: share of the prompts held out for the suite ``held-out``, in ``[0, 1)``.
        seed: of the generator, the sample and the shares. It is the same for all runs: they see the same pairs.
    """

    source: tuple[str, ...] = ()
    config: str | None = None
    split: str | None = None
    built_in: int | None = None
    max_pairs: int | None = None
    validation: float = 0.0
    test: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """The whole experiment.

    Attributes:
        name: of the experiment, and of its default folder.
        train: settings of every run, keys of `normbt train`.
        methods: by name, the settings in which each method differs.
        training_sets: by name.
        seeds: one run of each method for each.
        learning_rates: candidates, chosen per method and training set on validation pairs; empty for no search.
        search_seeds: seeds the candidates are compared on.
        suites: by name.
        baseline: method that the others are compared with.
        primary: outcomes declared before the first run; each is ``SUITE`` for its headline or ``SUITE/SECTION``.
        evaluation: settings of every evaluation, keyword arguments of :func:`normbt.evaluate.evaluate`.
        diagnose: number of held-out pairs that the first seed's model of every method is diagnosed on, a seeded sample
            of the test share, or of the validation share where there is no test share; 0 for no diagnosis.
        keep_models: whether the weights stay on the disk once a model is evaluated, or its learning rate not chosen.
    """

    name: str
    train: Mapping[str, Any]
    methods: Mapping[str, Mapping[str, Any]]
    training_sets: Mapping[str, TrainingSet]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...] = ()
    search_seeds: tuple[int, ...] = ()
    suites: Mapping[str, SuiteRun] = field(default_factory=dict)
    baseline: str = ""
    primary: tuple[str, ...] = ()
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    diagnose: int = 0
    keep_models: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-ready values."""
        return dataclasses.asdict(self)


def read_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it that shows without its data and its model.

    The rest is checked by :func:`~normbt.experiment.run_experiment`, before it trains anything.

    Args:
        path: a YAML file, or the name of a recipe that comes with the package.
        overrides: ``key.key=value`` in YAML's spelling, such as ``train.model_name_or_path=./tiny``.

    Returns:
        The recipe.

    Raises:
        ConfigError: the file is missing or no recipe. All problems are named at once.
    """
    file = find_recipe(path)
    try:
        values = _parsed(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the recipe {file}: {error}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: wanted a recipe, one `key: value` per line, found {type(values).__name__}.")
    for override in overrides:
        _override(values, override)
    return parse_recipe(values, source=str(file))


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(__file__).parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        ConfigError: there is neither; the nearest name is offered.
    """
    if Path(path).is_file():
        return Path(path)
    known = shipped_recipes()
    if str(path) in known:
        return known[str(path)]
    nearest = difflib.get_close_matches(str(path), known, 1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ConfigError(f"No recipe {path}: {hint}Name a YAML file or one of {', '.join(known)}.")


def parse_recipe(values: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Check the values of a recipe.

    Args:
        values: as YAML gives them.
        source: where they come from, for messages.

    Returns:
        The recipe.

    Raises:
        ConfigError: one message with every problem.

    Example:
        >>> recipe = parse_recipe({
        ...     "name": "small",
        ...     "train": {"model_name_or_path": "./encoder"},
        ...     "methods": {"bt": {"weighting": "none"}, "normbt": {"weighting": "normbt"}},
        ...     "training_sets": {"built-in": {"built_in": 100, "test": 0.4}},
        ...     "seeds": [0],
        ...     "suites": {"test": {"suite": "held-out"}},
        ...     "baseline": "bt",
        ... })
        >>> recipe.primary
        ('test',)
    """
    problems: list[str] = []
    known = [field.name for field in dataclasses.fields(Recipe)]
    _refuse_unknown(values, known, "", problems)
    methods = _mapping(values, "methods", problems, required=True)
    for name, settings in methods.items():
        if not isinstance(settings, Mapping):
            problems.append(f"methods.{name}: wanted settings of `normbt train`, found {settings!r}.")
    sets = {
        name: _record(TrainingSet, given, f"training_sets.{name}", problems)
        for name, given in _mapping(values, "training_sets", problems, required=True).items()
    }
    suites = {
        name: _record(SuiteRun, given, f"suites.{name}", problems)
        for name, given in _mapping(values, "suites", problems, required=True).items()
    }
    recipe = Recipe(
        name=str(values.get("name", "")),
        train=_mapping(values, "train", problems),
        methods=methods,
        training_sets={name: one for name, one in sets.items() if one is not None},
        seeds=_numbers(values, "seeds", int, problems),
        learning_rates=_numbers(values, "learning_rates", float, problems),
        search_seeds=_numbers(values, "search_seeds", int, problems) or _numbers(values, "seeds", int, [])[:1],
        suites={name: one for name, one in suites.items() if one is not None},
        baseline=str(values.get("baseline", "")),
        primary=tuple(values.get("primary") or list(suites)[:1]),
        evaluation=_mapping(values, "evaluation", problems),
        diagnose=_count(values, "diagnose", problems),
        keep_models=bool(values.get("keep_models", True)),
    )
    problems += _contradictions(recipe)
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    return recipe


def primary_of(recipe: Recipe, suite: str) -> list[str]:
    """The primary outcomes of one suite, as ``normbt compare`` names them; empty where it has none.

    Example:
        >>> recipe = Recipe("r", {}, {}, {}, (0,), primary=("rb", "rb/Reasoning", "own"))
        >>> primary_of(recipe, "rb")
        ['score', 'Reasoning']
    """
    outcomes = [str(outcome).partition("/") for outcome in recipe.primary]
    return [section or "score" for name, _, section in outcomes if name == suite]


def _contradictions(recipe: Recipe) -> list[str]:
    problems = []
    if not recipe.name or Path(recipe.name).name != recipe.name:
        problems.append(f"name: wanted a name that can be a folder's, found {recipe.name!r}.")
    for group in (recipe.methods, recipe.training_sets, recipe.suites):
        problems += [f"{name!r} can't be the name of a folder." for name in group if Path(str(name)).name != str(name)]
    problems += [f"suites.{name}: the folder of that name holds something else." for name in OWN & set(recipe.suites)]
    if recipe.methods and recipe.baseline not in recipe.methods:
        problems.append(f"baseline: wanted one of {', '.join(recipe.methods)}, found {recipe.baseline!r}.")
    if not recipe.seeds or len(set(recipe.seeds)) < len(recipe.seeds):
        problems.append(f"seeds: wanted different whole numbers, at least one, found {list(recipe.seeds)}.")
    if any(rate <= 0 for rate in recipe.learning_rates):
        problems.append(f"learning_rates: wanted positive numbers, found {list(recipe.learning_rates)}.")
    settings = {"train": recipe.train} | {f"methods.{name}": given for name, given in recipe.methods.items()}
    for place, given in settings.items():
        taken = sorted(
            DECIDED_PER_CELL & set(given) | ({"learning_rate"} & set(given) if recipe.learning_rates else set())
        )
        problems += [f"{place}.{name}: the experiment sets it for each run; take it out." for name in taken]
    for name, one in recipe.training_sets.items():
        problems += [f"training_sets.{name}: {problem}" for problem in _set_problems(one, bool(recipe.learning_rates))]
        if not one.test and any(suite.suite == HELD_OUT for suite in recipe.suites.values()):
            problems.append(f"training_sets.{name}: a suite is `{HELD_OUT}`, so `test` must be a share above 0.")
        if recipe.diagnose and not (one.test or one.validation):
            problems.append(
                f"training_sets.{name}: models are diagnosed on held-out pairs, so `test` or `validation` must be a "
                "share above 0."
            )
    for name, suite in recipe.suites.items():
        problems += [f"suites.{name}.{problem}" for problem in suite_problems(suite)]
    problems += [f"evaluation.{problem}" for problem in evaluation_problems(recipe.evaluation, recipe.suites)]
    unknown = [outcome for outcome in recipe.primary if str(outcome).partition("/")[0] not in recipe.suites]
    if recipe.suites:
        problems += [f"primary: {name} begins with none of the suites {', '.join(recipe.suites)}." for name in unknown]
    return problems


def _set_problems(one: TrainingSet, searching: bool) -> list[str]:
    problems = []
    if bool(one.source) == (one.built_in is not None):
        problems.append("wanted either `source` or `built_in` (a number of generated pairs).")
    if not (0 <= one.validation < 1 and 0 <= one.test < 1 and one.validation + one.test < 1):
        problems.append(f"wanted shares with a sum below 1, found validation {one.validation} and test {one.test}.")
    if searching and not one.validation:
        problems.append("learning rates are chosen on validation pairs, so `validation` must be a share above 0.")
    problems += [
        f"{name}: wanted a positive number, found {value}."
        for name, value in (("built_in", one.built_in), ("max_pairs", one.max_pairs))
        if value is not None and value < 1
    ]
    return problems


def _mapping(values: Mapping[str, Any], name: str, problems: list[str], *, required: bool = False) -> Mapping[str, Any]:
    given = values.get(name) or {}
    if not isinstance(given, Mapping):
        problems.append(f"{name}: wanted a mapping, found {type(given).__name__}.")
        return {}
    if required and not given:
        problems.append(f"{name}: wanted at least one entry, found none.")
    return given


def _numbers(values: Mapping[str, Any], name: str, kind: Callable[[Any], Any], problems: list[str]) -> tuple[Any, ...]:
    given = values.get(name) or []
    try:
        # YAML reads 1e-5 as text: it wants a point in it.
        numbers = tuple(kind(one) for one in given)
        if kind is int and any(
            isinstance(one, bool) or number != one for number, one in zip(numbers, given, strict=True)
        ):
            raise ValueError
    except (TypeError, ValueError):
        problems.append(f"{name}: wanted a list of {'whole ' if kind is int else ''}numbers, found {given!r}.")
        return ()
    return numbers


def _count(values: Mapping[str, Any], name: str, problems: list[str]) -> int:
    given = values.get(name) or 0
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    problems.append(f"{name}: wanted a number of pairs, or 0 for none, found {given!r}.")
    return 0


def _record(kind: type[Kind], given: Any, place: str, problems: list[str]) -> Kind | None:
    """A dataclass from its fields' values, each of the field's type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type] - a dataclass
    if not isinstance(given, Mapping):
        problems.append(f"{place}: wanted a mapping with keys of {', '.join(fields)}, found {given!r}.")
        return None
    before = len(problems)
    _refuse_unknown(given, list(fields), f"{place}.", problems)
    values = {}
    for name, value in given.items():
        if name not in fields:
            continue
        if name == "source":
            value = (value,) if isinstance(value, str) else tuple(value or ())
        elif fields[name].type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wanted: Any = tuple if name == "source" else fields[name].type
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            shown = getattr(wanted, "__name__", str(wanted))
            problems.append(f"{place}.{name}: wanted {shown}, found {value!r}.")
        values[name] = value
    missing = [name for name, field in fields.items() if name not in given and field.default is dataclasses.MISSING]
    problems += [f"{place}: {name} is missing." for name in missing]
    return kind(**values) if len(problems) == before else None


def _refuse_unknown(given: Mapping[str, Any], known: Sequence[str], place: str, problems: list[str]) -> None:
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}."
            problems.append(f"{place}{name}: unknown; {hint}")


def _override(values: dict[str, Any], override: str) -> None:
    """Set one value in place, ``key.key=value``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override}: wanted key.key=value, such as train.max_length=512.")
    *parents, last = path.split(".")
    place = values
    for name in parents:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {override}: {name} holds a value, not keys.")
    place[last] = _parsed(text, f"--set {override}")


def _parsed(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not valid YAML ({problem or error}).") from error
