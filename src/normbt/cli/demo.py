"""`normbt demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import TaskID

from normbt.cli.terminal import messages, output, page, progress_bar


def demo(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder of the result files.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the pairs, the head and the order of training.")] = 0,
    train_pairs: Annotated[
        int, typer.Option("--train_pairs", help="Pairs to train on, about so many, once each.")
    ] = 800,
    test_pairs: Annotated[int, typer.Option("--test_pairs", help="Pairs to evaluate on, about so many.")] = 600,
    learning_rate: Annotated[float, typer.Option("--learning_rate", help="Step size, for both methods.")] = 1.5e-4,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", metavar="MODEL", help="Pretrained model. Default: MiniLM, from the extra `demo`."),
    ] = None,
) -> None:
    """Train BT and NormBT from the same start on built-in pairs, and compare them by category.

    Example: normbt demo --seed 1 --output_dir demo-1
    """
    with messages.status("loading"):
        from normbt.demo import render_demo, run_demo
    from normbt.report import plot_demo, write_report

    with progress_bar() as bar:
        stages: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage)
            bar.update(stages[stage], completed=done, total=total)

        summary = run_demo(
            output_dir,
            seed=seed,
            train_pairs=train_pairs,
            test_pairs=test_pairs,
            learning_rate=learning_rate,
            encoder=encoder,
            progress=advance,
        )
    with messages.status("drawing the report"):
        picture = plot_demo(output_dir)
        runs = [output_dir / run for run in summary["runs"].values()]
        title = "normbt demo: BT and NormBT"
        report = write_report([output_dir, *runs], output_dir=output_dir / "report", title=title)
    page.print(render_demo(summary))
    output.print(f"Result files in {escape(str(output_dir))}, picture: {escape(str(picture))}")
    output.print(f"Report, to open in a browser: {escape(str(report.page))}")
