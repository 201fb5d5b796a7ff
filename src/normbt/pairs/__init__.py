"""Preference pairs: read them from where they are, check every row, count what is dropped and why."""

from normbt.pairs.check import as_conversation, check_rows
from normbt.pairs.read import read_pairs
from normbt.pairs.report import DataReport, LiveReport, Tally
from normbt.pairs.sources import open_source

__all__ = ["DataReport", "LiveReport", "Tally", "as_conversation", "check_rows", "open_source", "read_pairs"]
