"""Result files to pictures and to one page. Nothing here loads a model."""

from normbt.report.best_of_n import (
    plot_best_of_n,
)
from normbt.report.demo import (
    plot_demo,
)
from normbt.report.write import (
    Report,
    write_report,
)

__all__ = [
    "Report",
    "plot_best_of_n",
    "plot_demo",
    "write_report",
]
