"""`normbt best-of-n`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import TaskID

from normbt.cli.options import (
    Attention,
    BatchTokens,
    Confidence,
    Device,
    Dtype,
    MaxLength,
    Precision,
    Resamples,
    Split,
    Template,
    TrustRemoteCode,
)
from normbt.cli.terminal import messages, output, page, progress_bar
from normbt.errors import ConfigError

_SAMPLING = "Sampling candidates"
_MODELS = "Reward models that score the candidates"


def best_of_n(
    candidates: Annotated[
        str | None,
        typer.Option("--candidates", metavar="FILE", help="Candidates: prompt_id, text or response, scores."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="Prompts that --policy answers.")
    ] = None,
    synthetic: Annotated[
        int | None, typer.Option("--synthetic", metavar="PROMPTS", help="Built-in candidates, true reward as gold.")
    ] = None,
    proxy: Annotated[
        list[str] | None, typer.Option("--proxy", metavar="COLUMN", help="Scores that choose; may be repeated.")
    ] = None,
    gold: Annotated[
        str | None, typer.Option("--gold", metavar="COLUMN", help="What an answer is worth. Default: gold.")
    ] = None,
    n: Annotated[
        str | None, typer.Option("--n", help="Such as 1,2,4,8. Default: powers of two up to half the candidates.")
    ] = None,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder of the result files.")] = Path("best-of-n"),
    split: Split = None,
    resamples: Resamples = 10_000,
    confidence: Confidence = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Seed of sampling and resampling.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away candidates and scores of another run.")
    ] = False,
    proxy_model: Annotated[
        list[str] | None,
        typer.Option(
            "--proxy_model",
            metavar="[NAME=]MODEL",
            help="Reward model that chooses; may be repeated.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    gold_model: Annotated[
        str | None,
        typer.Option("--gold_model", metavar="MODEL", help="Reward model that judges.", rich_help_panel=_MODELS),
    ] = None,
    template: Annotated[
        Template,
        typer.Option("--template", help="Chat template for plain text of reward models.", rich_help_panel=_MODELS),
    ] = Template.AUTO,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 16_384,
    dtype: Dtype = Precision.AUTO,
    device: Device = None,
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", metavar="MODEL", help="Language model that answers the prompts.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            metavar="URL",
            help="Ask this server for answers of --policy, such as http://localhost:8000/v1.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    api_key_variable: Annotated[
        str | None,
        typer.Option(
            "--api_key_variable", help="Environment variable with the server's key.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Answers to each prompt.", rich_help_panel=_SAMPLING)] = 16,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Of the sampling.", rich_help_panel=_SAMPLING)
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option("--top_p", help="Share of the probability sampled from.", rich_help_panel=_SAMPLING)
    ] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", help="Most tokens of an answer.", rich_help_panel=_SAMPLING)
    ] = 512,
    batch_sequences: Annotated[
        int, typer.Option("--batch_sequences", help="Answers made at once.", rich_help_panel=_SAMPLING)
    ] = 32,
    parallel: Annotated[
        int, typer.Option("--parallel", help="Requests to the server under way at once.", rich_help_panel=_SAMPLING)
    ] = 8,
    generation_template: Annotated[
        Template,
        typer.Option(
            "--generation_template", help="Prompts through the policy's chat template.", rich_help_panel=_SAMPLING
        ),
    ] = Template.AUTO,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Answer so many prompts, drawn at random.", rich_help_panel=_SAMPLING)
    ] = None,
) -> None:
    """Curves of what the best of n answers is worth when a reward model chooses it.

    Example: normbt best-of-n --candidates scored.jsonl --proxy bt --proxy normbt --gold gold
    """
    with messages.status("loading"):
        from normbt.best_of_n import Sampling, render_best_of_n
        from normbt.best_of_n import best_of_n as study
    from normbt.report import plot_best_of_n
    from normbt.results import read_best_of_n

    sampling = Sampling(
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        batch_sequences=batch_sequences,
        template=generation_template.value,
        limit=limit,
        parallel=parallel,
        api_key=_key(api_key_variable),
    )
    scoring = {
        "template": template.value,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "dtype": dtype.value,
        "device": device,
        "attention": attention,
        "trust_remote_code": trust_remote_code,
    }
    with progress_bar() as bar:
        stages: dict[str, TaskID] = {}

        def advance(stage: str, done: int) -> None:
            if stage not in stages:
                stages[stage] = bar.add_task(stage, total=None)
            bar.update(stages[stage], completed=done)

        summary = study(
            output_dir=output_dir,
            candidates=candidates,
            synthetic=synthetic,
            prompts=prompts,
            policy=policy,
            server=server,
            sampling=sampling,
            proxies=proxy or [],
            gold=gold,
            proxy_models=_named(proxy_model or []),
            gold_model=gold_model,
            sizes=_sizes(n),
            split=split,
            resamples=resamples,
            confidence=confidence,
            seed=seed,
            overwrite=overwrite,
            scoring=scoring,
            progress=advance,
        )
    picture = plot_best_of_n(output_dir)
    page.print(render_best_of_n(summary, read_best_of_n(output_dir)[1]))
    output.print(f"Result files in {escape(str(output_dir))}, picture: {escape(str(picture))}")


def _named(models: list[str]) -> dict[str, str]:
    """Models by the name given with ``NAME=MODEL``, else by the name of their folder."""
    named: dict[str, str] = {}
    for model in models:
        name, equals, path = model.partition("=")
        name, path = (name, path) if equals else (Path(model).name, model)
        if name in named:
            raise ConfigError(f"Two proxy models are named '{name}': tell them apart with --proxy_model NAME={model}.")
        named[name] = path
    return named


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--n takes whole numbers between commas, such as 1,2,4; found '{text}'.") from error


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if variable not in os.environ:
        raise ConfigError(f"--api_key_variable names {variable}, which is not set in the environment.")
    return os.environ[variable]
