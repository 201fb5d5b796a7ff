"""Job: compare models, or methods with several seeds, on the same pairs. Needs no model and no torch."""

from normbt.compare.job import compare
from normbt.compare.runs import parse_methods
from normbt.compare.tables import latex, markdown, render_comparison

__all__ = ["compare", "latex", "markdown", "parse_methods", "render_comparison"]
