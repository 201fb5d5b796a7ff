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
from normbt.cli.terminal import messages, output, page, progress_bar


class Suite(StrEnum):
    """Benchmarks that `normbt evaluate` knows."""

    REWARDBENCH = "rewardbench"
    PAIRS = "pairs"


def evaluate(
    model: ModelArgument,
    suite: Annotated[
        Suite, typer.Option("--suite", help="RewardBench v1 by its own rules, or any preference pairs.")
    ] = Suite.REWARDBENCH,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="The pairs: a file, a folder or a Hub name. Default for rewardbench: allenai/reward-bench.",
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
            help="Plain text through the chat template always (chat), never (plain), or for RewardBench (auto).",
        ),
    ] = Template.AUTO,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 16_384,
    limit: Annotated[int | None, typer.Option("--limit", help="Evaluate a random sample of so many pairs.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample and of the resampling.")] = 0,
    resamples: Resamples = 10_000,
    confidence: Confidence = 0.95,
    dtype: Dtype = Precision.AUTO,
    device: Device = None,
    attention: Attention = None,
    allow_untrained_head: AllowUntrainedHead = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score a benchmark: a table with intervals, and one line of JSON for every pair.

    Example: normbt evaluate ./rm --suite rewardbench --data rewardbench.jsonl.gz
    """
    with messages.status("loading"):
        from normbt.evaluate import evaluate as run_evaluation
        from normbt.evaluate import render_summary

    folder = output_dir or Path("evaluations", Path(model).name, suite.value)
    with progress_bar() as bar:
        scored = bar.add_task("scoring", total=None)
        summary = run_evaluation(
            model,
            output_dir=folder,
            suite=suite.value,
            data=data,
            split=split,
            template=template.value,
            max_length=max_length,
            batch_tokens=batch_tokens,
            limit=limit,
            seed=seed,
            resamples=resamples,
            confidence=confidence,
            dtype=dtype.value,
            device=device,
            attention=attention,
            allow_untrained_head=allow_untrained_head,
            trust_remote_code=trust_remote_code,
            progress=lambda done, total: bar.update(scored, completed=done, total=total),
        )
    page.print(render_summary(summary))
    output.print(f"Result files in {escape(str(folder))}")
