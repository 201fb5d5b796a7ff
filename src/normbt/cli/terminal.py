"""What every command shares: where it prints, and its progress bar."""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Soft wrapping leaves whole what is one line, so that it can be searched and piped.
output = Console(soft_wrap=True, highlight=False)
messages = Console(soft_wrap=True, highlight=False, stderr=True)
# Tables and panels fit the terminal's width, since soft wrapping would tear their borders; a file gets room for all.
page = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)


def is_main_process() -> bool:
    """Whether this is the process of a run that talks to people."""
    return os.environ.get("RANK", "0") == "0"


def progress_bar() -> Progress:
    """A bar for long work, on the standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=messages)
