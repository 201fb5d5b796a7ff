"""The command line: parse, call a job, print. Nothing heavy is imported before a command runs."""

import logging
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from normbt import __version__
from normbt.errors import NormbtError

if TYPE_CHECKING:
    from normbt.doctor import DoctorReport, ModelReport, RenderedAnswer

USER_MISTAKE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="normbt",
    help="Reward models whose Bradley-Terry updates follow the prediction error, not the representation distance.",
    epilog="Start with `normbt demo`. Flags may be spelled with underscores or dashes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Soft wrapping leaves whole what is one line, so that it can be searched and piped.
output = Console(soft_wrap=True, highlight=False)
messages = Console(soft_wrap=True, highlight=False, stderr=True)
# Tables and panels fit the terminal's width, since soft wrapping would tear their borders; a file gets room for all.
page = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 2 for a user's mistake, which has been printed in one message. Anything else that goes
        wrong is a bug and raises.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if _is_main_process():
        logging.getLogger("normbt").setLevel(logging.INFO)
    try:
        result = app(args=with_underscores(sys.argv[1:] if argv is None else argv), standalone_mode=False)
    except NormbtError as error:
        return _refuse(str(error))
    except typer.TyperException as error:
        return _refuse(f"{getattr(error, 'format_message', error.__str__)()} See `normbt --help`.")
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def with_underscores(argv: Sequence[str]) -> list[str]:
    """Spell every flag with underscores; values stay as they are, also in `--flag=value` and after a bare `--`.

    Example:
        >>> with_underscores(["train", "--max-length", "a-b", "--run-name=a-b", "-x", "--", "--as-is"])
        ['train', '--max_length', 'a-b', '--run_name=a-b', '-x', '--', '--as-is']
    """
    end = list(argv).index("--") if "--" in argv else len(argv)
    return [_with_underscores(argument) for argument in argv[:end]] + list(argv[end:])


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    return f"--{flag.replace('-', '_')}{equals}{value}"


def _refuse(message: str) -> int:
    rank = os.environ.get("RANK", "0")
    process = "" if rank == "0" else f" (process {rank})"
    messages.print(Text.assemble((f"normbt{process}: ", "bold red"), message))
    return USER_MISTAKE


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=messages)


def _print_version(wanted: bool) -> None:
    if wanted:
        output.print(f"normbt {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        output.print(context.get_help(), end="")


# --- train ------------------------------------------------------------------------------------------------------------

_TRAIN_EXAMPLES = """\
normbt train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/ultrafeedback_binarized --output_dir rm
normbt train --model_name_or_path ./encoder --dataset_name pairs.jsonl --eval_data held_out.jsonl --output_dir rm
normbt train --config recipe.yaml --weighting none            # a recipe of `trl reward`, here with plain Bradley-Terry
normbt train --config recipe.yaml --num_processes 4           # on four GPUs
accelerate launch --num_processes 4 -m normbt train --config recipe.yaml"""


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    options_metavar="[SETTINGS OF `trl reward` AND OF NORMBT]",
)
def train(context: typer.Context) -> int:
    """Train a reward model. Takes every flag and YAML key of `trl reward`, and those of NormBT.

    Example: normbt train --model_name_or_path ./encoder --dataset_name pairs.jsonl --output_dir rm
    """
    if {"-h", "--help"} & set(context.args):
        _print_train_help()
        return 0
    with messages.status("loading TRL"):
        from normbt.arguments import parse_train_arguments

    arguments = parse_train_arguments(context.args)
    from normbt import launch

    if launch.needs_launcher(arguments):
        return launch.launch(arguments)
    from normbt.train import run_training

    outcome = run_training(arguments, tell=output.print if _is_main_process() else _say_nothing)
    if _is_main_process():
        for name, value in outcome.metrics.items():
            if name.endswith("_accuracy"):
                output.print(f"{name}: {value:.4f}")
        output.print(f"Model saved to {escape(str(outcome.output_dir))}")
    return 0


def _say_nothing(message: str) -> None:
    """The other processes of a run say what the first one says."""


def _print_train_help() -> None:
    with messages.status("loading TRL"):
        from normbt.arguments import describe_settings

        groups = describe_settings()
    output.print("\n[bold]Usage:[/] normbt train [--config FILE] [--SETTING VALUE]...\n")
    output.print("Train a reward model. Every setting may be a flag or a key of the YAML file; a flag wins.")
    output.print(
        "Settings of `accelerate launch` (--num_processes, --accelerate_config, ...) start several processes.\n"
    )
    output.print("[bold]Examples:[/]")
    for example in _TRAIN_EXAMPLES.splitlines():
        output.print(Text(f"  {example}"))
    for title, settings in groups.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(ratio=1)
        for setting in settings:
            known = f" One of: {', '.join(map(str, setting.choices))}." if setting.choices else ""
            default = "" if setting.default in (None, [], "") else f" [default: {setting.default}]"
            table.add_row(setting.flag, Text.assemble(setting.help + known, (default, "dim")))
        page.print(Panel(table, title=title, title_align="left", border_style="dim"))


# --- evaluate ---------------------------------------------------------------------------------------------------------


class Suite(StrEnum):
    """Benchmarks that `normbt evaluate` knows."""

    REWARDBENCH = "rewardbench"
    PAIRS = "pairs"


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


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Reward model: a folder, an adapter's, or a Hub name.")],
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
    split: Annotated[str | None, typer.Option("--split", help="Split of the data to read.")] = None,
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
    max_length: Annotated[
        int | None,
        typer.Option("--max_length", help="Most tokens; longer prompts are cut and counted. Default: 2048 or less."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch_tokens", help="Most tokens in a batch.")] = 16_384,
    limit: Annotated[int | None, typer.Option("--limit", help="Evaluate a random sample of so many pairs.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sample and of the resampling.")] = 0,
    resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap resamples behind the intervals.")] = 10_000,
    confidence: Annotated[float, typer.Option("--confidence", help="Coverage of the intervals.")] = 0.95,
    dtype: Annotated[Precision, typer.Option("--dtype", help="Number format of the weights.")] = Precision.AUTO,
    device: Annotated[str | None, typer.Option("--device", help="Such as cuda:1. Default: the first GPU.")] = None,
    attention: Annotated[str | None, typer.Option("--attention", help="Attention, such as sdpa or eager.")] = None,
    allow_untrained_head: Annotated[
        bool, typer.Option("--allow_untrained_head", help="Put a random head on a base model, as a baseline.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", help="Run Python code that the model brings along.")
    ] = False,
) -> None:
    """Score a benchmark: a table with intervals, and one line of JSON for every pair.

    Example: normbt evaluate ./rm --suite rewardbench --data rewardbench.jsonl.gz
    """
    with messages.status("loading"):
        from normbt.evaluate import evaluate as run_evaluation
        from normbt.evaluate import render_summary

    folder = output_dir or Path("evaluations", Path(model).name, suite.value)
    with _progress() as bar:
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


# --- demo -------------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder of the result files.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the pairs, the head and the order of training.")] = 0,
    train_pairs: Annotated[int, typer.Option("--train_pairs", help="Pairs to train on, once each.")] = 800,
    test_pairs: Annotated[int, typer.Option("--test_pairs", help="Pairs to evaluate on.")] = 600,
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
    from normbt.report import plot_demo

    with _progress() as bar:
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
    picture = plot_demo(output_dir)
    page.print(render_demo(summary))
    output.print(f"Result files in {escape(str(output_dir))}, picture: {escape(str(picture))}")


# --- doctor -----------------------------------------------------------------------------------------------------------


@app.command()
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Reward model or base model to look at: a folder or Hub name."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="FILE", help="Preference data whose first pair is shown. Default: a built-in pair."
        ),
    ] = None,
) -> None:
    """Show versions and device, and one pair as a model sees it, with the token marked that the head reads.

    Example: normbt doctor Qwen/Qwen3-0.6B --data pairs.jsonl
    """
    with messages.status("looking around"):
        from normbt.doctor import examine

        report = examine(model, data)
    _print_machine(report)
    if report.model is not None:
        _print_model(report.model)


def _print_machine(report: "DoctorReport") -> None:
    table = Table.grid(padding=(0, 2))
    for name, version in report.versions.items():
        table.add_row(name, version or Text("not installed", style="yellow"))
    table.add_row("device", report.device)
    if report.free_memory is not None:
        table.add_row("free memory", f"{report.free_memory / 2**30:.1f} GiB")
    for extra in report.missing_extras:
        missing = ", ".join(extra.missing)
        table.add_row(
            Text(f"normbt[{extra.name}]", style="yellow"), Text(f"incomplete ({missing} missing): {extra.purpose}")
        )
    output.print(table)


def _print_model(report: "ModelReport") -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row("model", escape(report.name))
    table.add_row("architecture", f"{report.architecture}, {report.parameters:,} parameters")
    table.add_row("head", escape(report.head))
    for name, token in report.special_tokens.items():
        table.add_row(name, Text(f"{token.text!r} ({token.id})" if token else "none"))
    table.add_row("shared prefix", f"{report.prefix_length} tokens")
    output.print()
    output.print(table)
    for title, answer in (("chosen", report.chosen), ("rejected", report.rejected)):
        output.print(f"\n[bold]{title}[/]: {len(answer.tokens)} tokens, reward {answer.reward:.4f}")
        output.print(_marked(answer))
    for warning in report.warnings:
        output.print(Text.assemble(("warning: ", "bold yellow"), warning))


def _marked(answer: "RenderedAnswer") -> Text:
    """The tokens of an answer, divided by bars, those that the head reads between double angle brackets."""
    text = Text()
    for position, token in enumerate(answer.tokens):
        shown = repr(token.text)[1:-1]
        if position in answer.pooled:
            text.append(f"⟪{shown} {token.id}⟫", style="bold green")
        else:
            text.append(shown)
        text.append("|", style="dim")
    return text
