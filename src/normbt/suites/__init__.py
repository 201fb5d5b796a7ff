"""Benchmarks: the format each is read from, the rule by which it decides and scores. No model, no torch."""

from normbt.errors import ConfigError
from normbt.suites.base import Decisions, Groups, Item, PairSuite, PromptSuite, Record, Suite, SuiteScores
from normbt.suites.judgebench import JudgeBench
from normbt.suites.outcomes import Outcome, Outcomes
from normbt.suites.plain import Pairs
from normbt.suites.rewardbench import RewardBench
from normbt.suites.rewardbench2 import RewardBench2
from normbt.suites.rm_bench import RMBench

SUITES: dict[str, Suite] = {
    suite.name: suite for suite in (RewardBench(), RewardBench2(), RMBench(), JudgeBench(), Pairs())
}
"""Every suite by its name."""

__all__ = [
    "SUITES",
    "Decisions",
    "Groups",
    "Item",
    "Outcome",
    "Outcomes",
    "PairSuite",
    "PromptSuite",
    "Record",
    "Suite",
    "SuiteScores",
    "find_suite",
]


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ConfigError: there is none.

    Example:
        >>> find_suite("rm-bench").hub_id
        'THU-KEG/RM-Bench'
    """
    if name not in SUITES:
        raise ConfigError(f"suite must be one of {', '.join(SUITES)}, found '{name}'.")
    return SUITES[name]
