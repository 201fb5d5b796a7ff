"""The command line of the sweeps: which to run, on which features, into which summary."""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evidence.summary import write_sweep

if TYPE_CHECKING:
    from benchmarks.evidence.mechanism import Sheet


def run_sweeps(
    about: str | None,
    sweeps: Mapping[str, Callable[..., "Sheet"]],
    read: Callable[[Path], tuple[Any, ...]],
    *,
    summary: Path,
    command: str,
) -> None:
    """Parse the command line and run the sweeps that it asks for; others in the summary are kept.

    Args:
        about: text of the help.
        sweeps: by name, each taking what `read` gives.
        read: makes of a file of features what the sweeps take.
        summary: where results go, unless the command line says otherwise.
        command: that the summary names as its own.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=summary)
    parser.add_argument("--sweeps", nargs="+", choices=sweeps, default=list(sweeps))
    arguments = parser.parse_args()
    bench = read(arguments.features)
    for name in arguments.sweeps:
        began = time.monotonic()
        sheet = sweeps[name](*bench)
        write_sweep(arguments.output, name, vars(sheet), about={"command": command})
        print(f"{name}: {len(sheet.cells)} cells, {time.monotonic() - began:.0f} s", flush=True)
