"""`normbt report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from normbt.cli.terminal import messages, output


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Output folders of diagnose, evaluate, compare, train, experiment or demo, or folders of them.",
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", "--output", help="Folder of report.html and plots/.")
    ] = Path("report"),
    title: Annotated[
        str | None, typer.Option("--title", help="Title of the page. Default: the folders' names.")
    ] = None,
    max_pairs: Annotated[
        int,
        typer.Option(
            "--max_pairs", help="Most pairs to explore, over all runs; of more, a sample and the telling ones."
        ),
    ] = 20_000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample of pairs.")] = 0,
) -> None:
    """Draw results: one HTML page that loads nothing, with every pair to read, and the charts as PNG files.

    Example: normbt report runs/bt runs/normbt --output_dir report
    """
    from normbt.report import write_report
    from normbt.report.write import by_kind

    with messages.status("looking for results") as status:
        written = write_report(
            folders,
            output_dir=output_dir,
            title=title,
            max_pairs=max_pairs,
            seed=seed,
            progress=lambda doing: status.update(escape(doing)),
        )
    for section, results in written.sections.items():
        output.print(f"{section}: {results} {'result' if results == 1 else 'results'}")
    if written.pairs_total:
        output.print(
            f"Pairs to explore: {written.pairs:,} of {written.pairs_total:,}; {written.texts:,} with their texts"
        )
    for what in by_kind(written.not_shown):
        messages.print(f"[yellow]not shown[/], no section for it: {escape(what)}")
    size, plots = f"{written.page_bytes / 1e6:.1f} MB", escape(str(output_dir / "plots"))
    output.print(f"{escape(str(written.page))} ({size}); {len(written.plots)} pictures in {plots}")
