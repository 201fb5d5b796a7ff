"""Job: error, distance, weight and exact gradient norm of every pair, and who gets the update."""

from normbt.diagnose.job import CHUNK_PAIRS, diagnose
from normbt.diagnose.table import render_diagnosis

__all__ = ["CHUNK_PAIRS", "diagnose", "render_diagnosis"]
