"""`normbt evaluate`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from normbt.cli.options import (
    AllowUntrainedHead,
    Attention,
    BatchTokens,
    Confidence,
    Device,
    Dtype,
    MaxLength,
    ModelArgument,
    Precision,
    Resamples,
    Split,
    Template,
    TrustRemoteCode,
)
from normbt.cli.terminal import is_main_process, messages, output, page, progress_bar
from normbt.errors import ConfigError


class Suite(StrEnum):
    """Benchmarks that `normbt evaluate` knows."""

    REWARDBENCH = "rewardbench"
    REWARDBENCH2 = "rewardbench2"
    RM_BENCH = "rm-bench"
    JUDGEBENCH = "judgebench"
    PAIRS = "pairs"


def evaluate(
    model: ModelArgument,
    suite: Annotated[
        Suite | None,
        typer.Option("--suite", help="The benchmark, by its own rules, or any preference pairs. Default: rewardbench."),
    ] = None,
    all_suites: Annotated[
        bool, typer.Option("--all", help="Every suite whose data are there: in the folder --data, or on the Hub.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="A file, a folder or a Hub name; with --all a folder of files named after suites. "
            "Default: the official data, from the Hub.",
        ),
    ] = None,
    split: Split = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", help="Folder of the result files. Default: evaluations/MODEL/SUITE."),
    ] = None,
    template: Annotated[
        Template,
        typer.Option(
            "--template",
            help="Plain text through the chat template always (chat), never (plain), or for benchmarks (auto).",
        ),
    ] = Template.AUTO,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 16_384,
    limit: Annotated[int | None, typer.Option("--limit", help="Evaluate a random sample of so many records.")] = None,
    check_determinism: Annotated[
        bool, typer.Option("--check_determinism", help="Score a sample again, one sequence at a time, and compare.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the samples and of the resampling.")] = 0,
    resamples: Resamples = 10_000,
    confidence: Confidence = 0.95,
    dtype: Dtype = Precision.AUTO,
    device: Device = None,
    attention: Attention = None,
    allow_untrained_head: AllowUntrainedHead = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score a benchmark: a table with intervals, and one line of JSON for every pair or prompt.

    Example: normbt evaluate ./rm --suite rewardbench --data rewardbench.jsonl.gz
    """
    if all_suites and (suite is not None or split is not None):
        raise ConfigError("--all runs every suite on its own split: leave out --suite and --split.")
    with messages.status("loading"):
        from normbt.evaluate import evaluate as run_evaluation
        from normbt.evaluate import evaluate_all, render_summary

    settings = {
        "data": data,
        "template": template.value,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "limit": limit,
        "check_determinism": check_determinism,
        "seed": seed,
        "resamples": resamples,
        "confidence": confidence,
        "dtype": dtype.value,
        "device": device,
        "attention": attention,
        "allow_untrained_head": allow_untrained_head,
        "trust_remote_code": trust_remote_code,
    }
    folder, skipped = output_dir or Path("evaluations", Path(model).name), {}
    with progress_bar() as bar:
        bar.disable = not is_main_process()
        scored = bar.add_task("scoring", total=None)
        settings["progress"] = lambda done, total: bar.update(scored, completed=done, total=total)
        if all_suites:
            summaries, skipped = evaluate_all(model, output_dir=folder, **settings)
        else:
            chosen = suite or Suite.REWARDBENCH
            folder = output_dir or folder / chosen.value
            summary = run_evaluation(model, output_dir=folder, suite=chosen.value, split=split, **settings)
            summaries = {chosen.value: summary}
    if not is_main_process():
        return
    for summary in summaries.values():
        page.print(render_summary(summary))
    for name, reason in skipped.items():
        output.print(f"[yellow]Skipped {escape(name)}:[/] {escape(reason)}")
    output.print(f"Result files in {escape(str(folder))}")
