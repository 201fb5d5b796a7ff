"""Job: train BT and NormBT from the same start on the built-in preferences, and compare them by category."""

from normbt.demo.comparison import CategoryComparison, compare_by_category
from normbt.demo.job import DEMO_FILE, DemoSummary, run_demo
from normbt.demo.table import render_demo

__all__ = ["DEMO_FILE", "CategoryComparison", "DemoSummary", "compare_by_category", "render_demo", "run_demo"]
