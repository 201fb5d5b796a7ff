"""What every model of an experiment is measured on: a benchmark, its data, and how an evaluation runs."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from normbt.errors import ConfigError
from normbt.evaluate.job import check_settings, evaluate
from normbt.suites import SUITES

HELD_OUT = "held-out"
"""Source of a suite that is the test pairs of the training set itself."""

_OF_A_SUITE = ("suite", "data", "split")
_DECIDED = frozenset({"model", "tokenizer", "output_dir", "progress", *_OF_A_SUITE})
"""Arguments of `evaluate` that the experiment chooses for each model and suite."""


@dataclass(frozen=True)
class SuiteRun:
    """One benchmark that every chosen model is evaluated on.

    Attributes:
        suite: name of the suite, as `normbt evaluate` knows it, or ``held-out``.
        data: the benchmark's file; None for the official data from the Hub. Not for ``held-out``, like `split`.
        split: split to read.
        limit: evaluate a random sample of this many pairs; None for all.
    """

    suite: str
    data: str | None = None
    split: str | None = None
    limit: int | None = None


def suite_problems(one: SuiteRun) -> Iterator[str]:
    """What is wrong with a suite, as far as it shows without its data.

    Example:
        >>> list(suite_problems(SuiteRun("rewardbensch")))
        ['suite: no suite rewardbensch; did you mean rewardbench?']
    """
    known = [*SUITES, HELD_OUT]
    if one.suite not in known:
        nearest = difflib.get_close_matches(one.suite, known, 1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}."
        yield f"suite: no suite {one.suite}; {hint}"
    elif one.suite == HELD_OUT:
        for name in ("data", "split"):
            if getattr(one, name) is not None:
                yield f"{name}: `{HELD_OUT}` is the test share of the training set; take it out."
    elif one.data is None and SUITES[one.suite].hub_id is None:
        yield f"data: {one.suite} has no data of its own; name a file, a folder or a Hub id."
    if one.limit is not None and one.limit < 1:
        yield f"limit: wanted a positive number, found {one.limit}."


def evaluation_problems(settings: Mapping[str, Any], suites: Mapping[str, SuiteRun]) -> Iterator[str]:
    """What is wrong with the settings of all evaluations.

    Args:
        settings: keyword arguments of :func:`normbt.evaluate.evaluate`.
        suites: by name, what is evaluated.

    Example:
        >>> list(evaluation_problems({"max_lenght": 512}, {}))
        ['max_lenght: unknown; did you mean max_length?']
    """
    known = {name: one for name, one in inspect.signature(evaluate).parameters.items() if name not in _DECIDED}
    sound = True
    for name, value in settings.items():
        if name in _DECIDED:
            where = "of each of the `suites`" if name in _OF_A_SUITE else "chosen for each model"
            problem = f"it is {where}; take it out."
        elif name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1)
            problem = "unknown; " + (f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}.")
        elif not _is_of(known[name].annotation, value):
            problem = f"wanted {_in_words(known[name].annotation)}, found {value!r}."
        else:
            continue
        sound = False
        yield f"{name}: {problem}"
    if "limit" in settings:
        own = [name for name, one in suites.items() if one.limit is not None]
        yield from (f"limit: suites.{name} has one of its own; take one of them out." for name in own)
    if sound:
        try:
            check_settings({name: one.default for name, one in known.items()} | dict(settings))
        except ConfigError as error:
            yield str(error)


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a value is of the type that an argument is declared with."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    kinds = get_args(kind) or (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return " or ".join("null" if one is type(None) else one.__name__ for one in get_args(kind) or (kind,))
