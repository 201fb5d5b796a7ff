"""The data of a suite: named, official, or found in a folder; read, counted, and sampled."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normbt.errors import ConfigError, DataError
from normbt.pairs import DataReport
from normbt.suites import SUITES, Item, Suite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SuiteData:
    """What a suite was given to score.

    Attributes:
        suite: the suite.
        items: its items, sampled if a limit was asked for.
        report: what became of every row.
    """

    suite: Suite
    items: list[Item]
    report: DataReport


def read_suite(suite: Suite, *, data: str | Path | None, split: str | None, limit: int | None, seed: int) -> SuiteData:
    """Read the data of a suite.

    Args:
        suite: the suite.
        data: file, folder or Hub id; None for the official data on the Hub.
        split: split to read; None for the official one on the Hub.
        limit: random sample of about so many items; None for all.
        seed: of the sample.

    Raises:
        ConfigError: the suite has no official data and none were named.
        DataError: the data cannot be read or are not the suite's.
    """
    if data is None:
        if suite.hub_id is None:
            raise ConfigError(
                f"The suite '{suite.name}' has no data of its own: name a file, a folder or a Hub id with --data."
            )
        data, split = suite.hub_id, split or suite.hub_split
    items, report = suite.read(data, split)
    for line in report.summary().splitlines():
        logger.info("%s", line)
    return SuiteData(suite, sample(suite, items, limit, seed), report)


def read_all(folder: Path | None, *, limit: int | None, seed: int) -> tuple[list[SuiteData], dict[str, str]]:
    """The data of every suite that has some, and why the others have none.

    Args:
        folder: where to look; None for the Hub.
        limit: random sample of each suite.
        seed: of the samples.

    Raises:
        DataError: there is no such folder, or what is in it cannot be read.
    """
    found = None if folder is None else find_data(folder)
    readings, skipped = [], {}
    for name, suite in SUITES.items():
        if found is None:
            if suite.hub_id is None:
                skipped[name] = "it has no official data; name a folder with --data"
                continue
            try:
                readings.append(read_suite(suite, data=None, split=None, limit=limit, seed=seed))
            except DataError as error:
                skipped[name] = str(error)
            continue
        entries = found.get(name, [])
        if len(entries) == 1:
            readings.append(read_suite(suite, data=entries[0], split=None, limit=limit, seed=seed))
        elif entries:
            names = ", ".join(entry.name for entry in entries)
            skipped[name] = f"several names in {folder} fit ({names}); run it alone with --suite {name} --data FILE"
        else:
            skipped[name] = f"no name in {folder} begins with {' or '.join(suite.files)}"
    return readings, skipped


def sample(suite: Suite, items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """All items, or a random sample in the order of the file; the first rows would be those of a few subsets.

    Items that a suite scores together are drawn together, so a sample may be an item larger than asked for.
    """
    if limit is None or limit >= len(items):
        return items
    units: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        units.setdefault(suite.unit(item), []).append(position)
    members = list(units.values())
    drawn: list[int] = []
    for unit in np.random.default_rng(seed).permutation(len(members)):
        if len(drawn) >= limit:
            break
        drawn += members[unit]
    return [items[position] for position in sorted(drawn)]


def find_data(folder: Path, suites: Sequence[Suite] = tuple(SUITES.values())) -> dict[str, list[Path]]:
    """Which entries of a folder hold the data of which suite, by the beginnings of their names.

    Args:
        folder: files such as ``rewardbench.jsonl.gz`` or ``rm-bench_total.json``, or folders.
        suites: the suites to look for.

    Returns:
        Entries of each suite of which there are some.

    Raises:
        DataError: it is not a folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. With --all, --data names a folder that holds the data of suites.")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        named = [(len(start), suite.name) for suite in suites for start in suite.files if _begins(entry.name, start)]
        if named:
            found.setdefault(max(named)[1], []).append(entry)
    return found


def _begins(name: str, start: str) -> bool:
    """Whether a name is the given one, up to what follows a mark: ``rewardbench2`` does not begin ``rewardbench``."""
    name = name.casefold()
    return name.startswith(start) and (len(name) == len(start) or name[len(start)] in "._-,")
