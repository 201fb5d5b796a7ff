"""Job: score a benchmark answer by answer, and summarise it with intervals."""

from normbt.evaluate.data import find_data, read_suite
from normbt.evaluate.job import SuiteResults, evaluate, evaluate_all
from normbt.evaluate.summary import ScoreTable
from normbt.evaluate.table import render_summary
from normbt.suites import SUITES

__all__ = [
    "SUITES",
    "ScoreTable",
    "SuiteResults",
    "evaluate",
    "evaluate_all",
    "find_data",
    "read_suite",
    "render_summary",
]
