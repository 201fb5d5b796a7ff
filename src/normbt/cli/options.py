"""Arguments and options that several commands share, so that each is spelled and explained once."""

from enum import StrEnum
from typing import Annotated

import typer


class Template(StrEnum):
    """How plain text becomes what the model reads."""

    AUTO = "auto"
    CHAT = "chat"
    PLAIN = "plain"


class Precision(StrEnum):
    """Number formats of the weights."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Reward model: a folder, an adapter's, or a Hub name.")
]
Split = Annotated[str | None, typer.Option("--split", help="Split of the data to read.")]
MaxLength = Annotated[
    int | None,
    typer.Option("--max_length", help="Most tokens; longer prompts are cut and counted. Default: 2048 or less."),
]
BatchTokens = Annotated[int, typer.Option("--batch_tokens", help="Most tokens in a batch.")]
Resamples = Annotated[int, typer.Option("--resamples", help="Bootstrap resamples behind the intervals.")]
Confidence = Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")]
Dtype = Annotated[Precision, typer.Option("--dtype", help="Number format of the weights.")]
Device = Annotated[str | None, typer.Option("--device", help="Such as cuda:1. Default: the first GPU.")]
Attention = Annotated[str | None, typer.Option("--attention", help="Attention, such as sdpa or eager.")]
AllowUntrainedHead = Annotated[
    bool, typer.Option("--allow_untrained_head", help="Put a random head on a base model, as a baseline.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust_remote_code", help="Run Python code that the model brings along.")
]
