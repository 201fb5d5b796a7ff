"""Job: a reward for every row of a file of any size, resumable and shared by several processes."""

from normbt.score.job import score_rows
from normbt.score.normalisation import read_normalisation
from normbt.score.table import render_scoring

__all__ = ["read_normalisation", "render_scoring", "score_rows"]
