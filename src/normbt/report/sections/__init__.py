"""The parts of the report, in their order on the page: one file for each kind of result.

To show another kind, add a file with ``MARKS`` and ``build`` and name it here.
"""

from normbt.report.section import SectionModule
from normbt.report.sections import comparison, demo, diagnosis, evaluation, experiment, training

SECTIONS: list[SectionModule] = [comparison, experiment, demo, diagnosis, evaluation, training]

__all__ = ["SECTIONS"]
