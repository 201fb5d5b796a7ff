"""`normbt diagnose`."""

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


class Method(StrEnum):
    """Ways to compute gradient norms."""

    AUTO = "auto"
    GHOST = "ghost"
    EXACT = "exact"


def diagnose(
    model: ModelArgument,
    data: Annotated[str, typer.Option("--data", metavar="FILE", help="The pairs: a file, a folder or a Hub name.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="Folder of the result files. Default: diagnoses/MODEL/DATA.")
    ] = None,
    split: Split = None,
    max_pairs: Annotated[
        int, typer.Option("--max_pairs", help="Diagnose a random sample of so many pairs; 0 takes all.")
    ] = 1_000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample and of the resampling.")] = 0,
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="Gradient norms in batches where that proves right for the model (auto), always (ghost), or pair by "
            "pair (exact).",
        ),
    ] = Method.AUTO,
    eps: Annotated[float, typer.Option("--eps", help="Added to the distance in NormBT's weight.")] = 1e-6,
    max_weight: Annotated[
        str, typer.Option("--max_weight", help="Largest weight of a pair; none gives the formula as published.")
    ] = "10",
    template: Annotated[
        Template,
        typer.Option(
            "--template",
            help="Plain text through the chat template always (chat), never (plain), or for RewardBench (auto).",
        ),
    ] = Template.AUTO,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 16_384,
    gradient_tokens: Annotated[
        int | None,
        typer.Option("--gradient_tokens", help="Most tokens in a backward pass. Default: from the free memory."),
    ] = None,
    resamples: Resamples = 2_000,
    confidence: Confidence = 0.95,
    dtype: Dtype = Precision.AUTO,
    device: Device = None,
    attention: Attention = None,
    allow_untrained_head: AllowUntrainedHead = False,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew: throw away the diagnosis in the folder.")
    ] = False,
) -> None:
    """Show who gets the gradient: error, distance, weight and exact gradient norm of each pair.

    Example: normbt diagnose ./rm --data pairs.jsonl --max_pairs 500
    """
    bound = _bound(max_weight)
    with messages.status("loading"):
        from normbt.diagnose import diagnose as run_diagnosis
        from normbt.diagnose import render_diagnosis

    folder = output_dir or Path("diagnoses", Path(model).name, Path(data).name.split(".")[0])
    with progress_bar() as bar:
        measured = bar.add_task("measuring", total=None)
        summary = run_diagnosis(
            model,
            data=data,
            output_dir=folder,
            split=split,
            max_pairs=max_pairs or None,
            seed=seed,
            method=method.value,
            eps=eps,
            max_weight=bound,
            template=template.value,
            max_length=max_length,
            batch_tokens=batch_tokens,
            gradient_tokens=gradient_tokens,
            resamples=resamples,
            confidence=confidence,
            dtype=dtype.value,
            device=device,
            attention=attention,
            allow_untrained_head=allow_untrained_head,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            progress=lambda done, total: bar.update(measured, completed=done, total=total),
        )
    page.print(render_diagnosis(summary))
    output.print(f"Result files in {escape(str(folder))}")


def _bound(text: str) -> float | None:
    """The largest weight as `normbt train` spells it: a number, or none."""
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"wanted a number or none, found '{text}'", param_hint="--max_weight") from None
