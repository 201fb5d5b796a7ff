"""`normbt verify-server`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from normbt.cli.terminal import messages, output, page

DIFFERENT = 1


def verify_server(
    url: Annotated[str, typer.Argument(help="Address of the server, such as http://localhost:8000.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Folder with expected_scores.json. Default: the one the server names."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="What the server computes in: float32, float16, bfloat16. Default: as saved."),
    ] = None,
) -> int:
    """Compare the scores a server gives with those of the model it should serve; status 1 if they differ.

    Example: normbt verify-server http://localhost:8000 --checkpoint ./rm
    """
    from normbt.serving import verify_server as verify

    with messages.status("asking the server"):
        verdict = verify(url, checkpoint, dtype=dtype)
    table = Table("text", "expected", "server", "difference", "")
    for row in verdict.comparisons:
        mark = Text("ok", "green") if row.agrees else Text("DIFFERS", "bold red")
        difference = f"{row.served - row.expected:+.4g}"
        table.add_row(row.name, f"{row.expected:.6g}", f"{row.served:.6g}", difference, mark)
    page.print(table)
    asked = f"{escape(url)}{verdict.endpoint}"
    score, difference = verdict.tolerance
    if verdict.agrees:
        output.print(f"{asked} gives the raw scores of the model (to {score:.2g}, differences to {difference:.2g}).")
        return 0
    if all(row.agrees for row in verdict.comparisons):
        output.print(f"{asked} is as near to the model as rounding explains, which does not show that it is right.")
    else:
        output.print(f"{asked} differs from the model by more than {score:.2g}, or {difference:.2g} between texts.")
    output.print(Text(verdict.diagnosis or ""))
    return DIFFERENT
