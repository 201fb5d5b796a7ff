"""`normbt score`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from normbt.cli.options import (
    AllowUntrainedHead,
    Attention,
    BatchTokens,
    Device,
    Dtype,
    MaxLength,
    ModelArgument,
    Precision,
    Split,
    Template,
    TrustRemoteCode,
)
from normbt.cli.terminal import is_main_process, messages, output, page, progress_bar


class OnMalformed(StrEnum):
    """What happens to rows that cannot be scored."""

    SKIP = "skip"
    STOP = "stop"


def score(
    model: ModelArgument,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="FILE", help="Pairs or prompts with answers: a file, a folder, a Hub name, - for stdin."
        ),
    ],
    output_file: Annotated[
        Path | None,
        typer.Option("--output_file", help="Rewards, .jsonl or .parquet. Default: scores/MODEL/DATA.jsonl."),
    ] = None,
    split: Split = None,
    template: Annotated[
        Template, typer.Option("--template", help="Plain text through the chat template (chat) or as it is (plain).")
    ] = Template.AUTO,
    column: Annotated[str, typer.Option("--column", help="Name of the reward's column.")] = "reward",
    on_malformed: Annotated[
        OnMalformed, typer.Option("--on_malformed", help="Leave such rows out and count them, or stop.")
    ] = OnMalformed.SKIP,
    fit_normalisation: Annotated[
        str | None,
        typer.Option("--fit_normalisation", metavar="NAME", help="Save mean and deviation beside the model as NAME."),
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option("--normalise", metavar="NAME", help="Use the saved mean and deviation NAME."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away the output of another run.")] = False,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 16_384,
    chunk_rows: Annotated[
        int, typer.Option("--chunk_rows", help="Rows between two writes: what a killed run does again.")
    ] = 4_096,
    dtype: Dtype = Precision.AUTO,
    device: Device = None,
    attention: Attention = None,
    allow_untrained_head: AllowUntrainedHead = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of an untrained head.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a reward beside every row of a file of any size; a run that was killed goes on where it was.

    Example: normbt score ./rm --data answers.jsonl --output_file rewards.parquet
    """
    with messages.status("loading"):
        from normbt.score import render_scoring, score_rows

    target = output_file or Path("scores", Path(model).name, f"{Path(data).name.split('.')[0] or 'stdin'}.jsonl")
    with progress_bar() as bar:
        bar.disable = not is_main_process()
        scored = bar.add_task("rows", total=None)
        summary = score_rows(
            model,
            data=data,
            output=target,
            split=split,
            template=template.value,
            column=column,
            on_malformed=on_malformed.value,
            normalise=normalise,
            fit_normalisation=fit_normalisation,
            overwrite=overwrite,
            max_length=max_length,
            batch_tokens=batch_tokens,
            chunk_rows=chunk_rows,
            dtype=dtype.value,
            device=device,
            attention=attention,
            allow_untrained_head=allow_untrained_head,
            seed=seed,
            trust_remote_code=trust_remote_code,
            progress=lambda done: bar.update(scored, completed=done),
        )
    if is_main_process():
        page.print(render_scoring(summary))
        output.print(f"Rewards in {escape(str(target))}")
