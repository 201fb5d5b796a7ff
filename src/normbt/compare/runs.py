"""What is compared: methods with their evaluations, joined record by record, refused where they do not fit."""

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from normbt.errors import ConfigError, DataError
from normbt.results import SUMMARY_FILE, EvaluationSummary, read_records
from normbt.suites import Record, Suite, find_suite

_IDS_NAMED = 3
_SETTINGS = ("dtype", "attention", "max_length", "template", "untrained_head")
"""Settings of inference that move scores; where they differ between runs, it is said."""


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes:
        folder: where its files are.
        summary: its summary.
        records: its records, in the order of the first run.
    """

    folder: Path
    summary: EvaluationSummary
    records: list[Record]

    @property
    def seed(self) -> int | None:
        """The seed its model was trained with, if that is known."""
        return self.summary.get("training_seed")

    @property
    def digest(self) -> str | None:
        """SHA-256 of the data it was made from."""
        return self.summary["provenance"]["data"][0]["digest"]


@dataclass(frozen=True)
class Runs:
    """Everything that is compared.

    Attributes:
        suite: the benchmark all runs are of.
        methods: runs of each method; the same number each, in the order of their seeds.
        notes: what a reader should know about how they fit.
    """

    suite: Suite
    methods: dict[str, list[Run]]
    notes: list[str]

    @property
    def seeds(self) -> int:
        """Runs of each method."""
        return len(next(iter(self.methods.values())))


def parse_methods(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Folders of each method from the arguments of the command.

    Args:
        arguments: each a folder, which is a method of its own under the folder's name, or ``NAME=FOLDER``, where the
            folder may be a pattern such as ``runs/bt-*`` and the same name may be given again.

    Returns:
        Folders of each method, in the order in which they were named.

    Raises:
        ConfigError: there are fewer than two methods, or a pattern matches nothing.

    Example:
        >>> parse_methods(["bt=a", "bt=b", "normbt=c", "normbt=d"])
        {'bt': [PosixPath('a'), PosixPath('b')], 'normbt': [PosixPath('c'), PosixPath('d')]}
    """
    methods: dict[str, list[Path]] = {}
    plain = [Path(argument) for argument in arguments if _is_folder(argument)]
    short = Counter(path.name for path in plain)
    for argument in arguments:
        if _is_folder(argument):
            path = Path(argument)
            methods.setdefault(path.name if short[path.name] == 1 else str(path), []).append(path)
            continue
        name, _, pattern = argument.partition("=")
        found = sorted(glob.glob(pattern)) or [pattern]  # noqa: PTH207 - patterns may be absolute, which Path refuses
        if not name or not pattern or (glob.has_magic(pattern) and found == [pattern]):
            raise ConfigError(f"{argument}: no folder matches. Write NAME=FOLDER or NAME=PATTERN, or just a folder.")
        methods.setdefault(name, []).extend(Path(folder) for folder in found)
    if len(methods) < 2:
        raise ConfigError(
            f"A comparison needs at least two methods, found {', '.join(methods) or 'none'}. Name two folders of "
            "`normbt evaluate`, or several for each method: bt=runs/bt-0 bt=runs/bt-1 normbt=runs/n-0 normbt=runs/n-1."
        )
    return methods


def read_runs(methods: Mapping[str, Sequence[str | Path]]) -> Runs:
    """Read every run and check that all are of the same pairs, by the same rule.

    Args:
        methods: folders of each method.

    Returns:
        The runs, their records in one order and their seeds in one order.

    Raises:
        ConfigError: the methods have different numbers of runs, or different seeds.
        DataError: a folder holds no evaluation, or the evaluations are of different suites, data, rules or ids; the
            message names the folders.
        StateError: the records are not those the summary was made from.
    """
    read = {name: [_read(Path(folder)) for folder in folders] for name, folders in methods.items()}
    every = [run for runs in read.values() for run in runs]
    first = every[0]
    for run in every[1:]:
        _refuse_other(first, run)
    for name, runs in read.items():
        _refuse_copies(name, runs)
    joined = {name: [_in_order(first, run) for run in runs] for name, runs in read.items()}
    counts = {name: len(runs) for name, runs in joined.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"Methods are compared seed by seed, so each needs the same number of runs; found {found}.")
    notes = _notes(every)
    if len(joined[next(iter(joined))]) > 1:
        joined, note = _by_seed(joined)
        notes += note
    return Runs(find_suite(first.summary["suite"]), joined, notes)


def _is_folder(argument: str) -> bool:
    return "=" not in argument or Path(argument).exists()  # a folder may be called lr=1e-4


def _read(folder: Path) -> Run:
    if not (folder / SUMMARY_FILE).is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{SUMMARY_FILE}"))
        hint = f" Did you mean one of the folders in it: {', '.join(inside)}?" if inside else ""
        raise DataError(f"{folder} is not a finished evaluation: there is no {SUMMARY_FILE}.{hint}")
    summary, records = read_records(folder)
    return Run(folder, summary, list(records))


def _refuse_other(first: Run, run: Run) -> None:
    """Refuse a run that is not of the pairs of the first, or not by its rule."""
    wanted, found = first.summary, run.summary
    for name, one, other in (
        ("suite", wanted["suite"], found["suite"]),
        ("tie policy", wanted["tie_policy"], found["tie_policy"]),
        ("data digest", _short(first.digest), _short(run.digest)),
    ):
        if one != other:
            raise DataError(
                f"{first.folder} and {run.folder} cannot be compared: their {name} differs ({one} and {other}). "
                "Evaluate both models on the same data with the same suite."
            )
    ours, theirs = ({record["id"] for record in one.records} for one in (first, run))
    if ours != theirs:
        lost, new = sorted(ours - theirs), sorted(theirs - ours)
        parts = [
            f"{len(ids):,} only in {folder} ({', '.join(ids[:_IDS_NAMED])}{', …' if len(ids) > _IDS_NAMED else ''})"
            for ids, folder in ((lost, first.folder), (new, run.folder))
            if ids
        ]
        raise DataError(
            f"{first.folder} and {run.folder} cannot be compared: their ids differ: {', '.join(parts)}. Were they "
            "evaluated with another --limit or --seed?"
        )


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else f"{digest[:12]}…"


def _refuse_copies(name: str, runs: Sequence[Run]) -> None:
    """The same rewards twice are not two seeds."""
    seen: dict[str, Path] = {}
    for run in runs:
        digest = run.summary["pairs_sha256"]
        if digest in seen:
            raise DataError(
                f"{seen[digest]} and {run.folder}, both of {name}, hold the same rewards to the last digit: one run "
                "named twice is not two seeds."
            )
        seen[digest] = run.folder


def _in_order(first: Run, run: Run) -> Run:
    by_id = {record["id"]: record for record in run.records}
    return Run(run.folder, run.summary, [by_id[record["id"]] for record in first.records])


def _by_seed(methods: dict[str, list[Run]]) -> tuple[dict[str, list[Run]], list[str]]:
    """Runs in the order of their training seeds, which must be the same for every method."""
    seeds = {name: [run.seed for run in runs] for name, runs in methods.items()}
    if any(seed is None for own in seeds.values() for seed in own):
        return methods, ["Runs were paired in the order given: not all of them know the seed they were trained with."]
    wanted = sorted(map(str, next(iter(seeds.values()))))
    for name, own in seeds.items():
        if len(set(own)) < len(own) or sorted(map(str, own)) != wanted:
            found = "; ".join(f"{method} {', '.join(map(str, numbers))}" for method, numbers in seeds.items())
            raise ConfigError(f"Methods are compared seed by seed, but the training seeds of {name} differ: {found}.")
    return {name: sorted(runs, key=lambda run: run.seed or 0) for name, runs in methods.items()}, []


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    if any(run.digest is None for run in runs):
        notes.append("The data have no digest (a stream): that they are the same is known from the ids only.")
    for name in _SETTINGS:
        values = {str(run.folder): run.summary["inference"].get(name) for run in runs}
        if len(set(values.values())) > 1:
            found = ", ".join(f"{value} ({folder})" for folder, value in values.items())
            notes.append(f"The runs differ in {name}, which moves scores: {found}.")
    return notes
