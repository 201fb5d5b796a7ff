"""Job: score a benchmark pair by pair, and summarise it with intervals."""

from normbt.evaluate.job import SUITES, evaluate
from normbt.evaluate.summary import ScoreTable, scores_by
from normbt.evaluate.table import render_summary

__all__ = ["SUITES", "ScoreTable", "evaluate", "render_summary", "scores_by"]
