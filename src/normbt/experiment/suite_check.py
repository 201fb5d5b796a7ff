"""The data of an experiment's suites, read before the first model is trained: what is wrong shows before it costs."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from normbt.errors import ConfigError, DataError
from normbt.evaluate import read_suite
from normbt.evaluate.answers import Answers, Side
from normbt.evaluate.data import SuiteData
from normbt.evaluate.records import make_records
from normbt.experiment.recipe import Recipe, primary_of
from normbt.experiment.suite_runs import HELD_OUT, SuiteRun
from normbt.experiment.training_sets import PreparedSet
from normbt.suites import Outcomes, find_suite


def check_suites(recipe: Recipe, sets: Mapping[str, PreparedSet], is_wanted: Callable[[str, str], bool]) -> None:
    """Read what models are to be evaluated on, and look in it for the primary outcomes.

    Args:
        recipe: the experiment.
        sets: its pairs, by training set.
        is_wanted: whether a model of a training set is still to be evaluated on a suite; both by name. The data of the
            others may be gone.

    Raises:
        ConfigError: data cannot be read or are not the suite's, or they have no such outcome. All of it is named.
    """
    problems: list[str] = []
    for name, suite in recipe.suites.items():
        wanted = [prepared for training_set, prepared in sets.items() if is_wanted(training_set, name)]
        for one in dict.fromkeys(_with_data(suite, prepared) for prepared in wanted):
            limit, seed = recipe.evaluation.get("limit", one.limit), recipe.evaluation.get("seed", 0)
            try:
                read = read_suite(find_suite(one.suite), data=one.data, split=one.split, limit=limit, seed=seed)
            except (ConfigError, DataError) as error:
                problems.append(f"suites.{name}: {error}")
            else:
                problems += [f"primary: {name}/{it}" for it in _unknown(primary_of(recipe, name), read)]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _with_data(suite: SuiteRun, prepared: PreparedSet) -> SuiteRun:
    if suite.suite != HELD_OUT:
        return suite
    return dataclasses.replace(suite, suite="pairs", data=str(prepared.files["test"]))


def _unknown(primary: Sequence[str], read: SuiteData) -> Iterator[str]:
    """The primary outcomes that a comparison on these data would not know, each with what there is."""
    names = list(outcome_names(read)) if set(primary) - {"score"} else ["score"]
    for name in primary:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(names[1:])}."
            yield f"{name}: {read.report.source} has no such outcome; {hint}"


def outcome_names(read: SuiteData) -> Iterator[str]:
    """Names of the outcomes that `normbt compare` would find in an evaluation on these data.

    They do not depend on the rewards, so those of a model that gives every answer 0 are looked at.
    """
    items = read.items
    chosen, rejected = _zeros([len(item.chosen) for item in items]), _zeros([len(item.rejected) for item in items])
    nothing = Answers(chosen, rejected, distance=np.zeros(len(items), np.float32), batching="padded")
    records = make_records(read.suite, items, nothing)
    outcomes = Outcomes(read.suite, records, read.suite.decisions(records))
    yield "score"
    yield from (one.name for one in outcomes.usual())


def _zeros(counts: Sequence[int]) -> Side:
    total = sum(counts)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Side(ids=[[]] * total, rewards=np.zeros(total, np.float32), truncated=[False] * total, starts=starts)
