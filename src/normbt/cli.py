"""The command line: parse, call a job, print. Nothing heavy is imported before a command runs."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
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
# Width and colour follow the terminal; soft wrapping leaves the lines of a file or a pipe whole.
output = Console(soft_wrap=True, highlight=False)
messages = Console(soft_wrap=True, highlight=False, stderr=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 2 for a user's mistake, which has been printed in one message. Anything else that goes
        wrong is a bug and raises.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
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
    # Panels are as wide as the terminal: wrapping them softly would tear their borders.
    page = Console(highlight=False)
    for title, settings in groups.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(ratio=1)
        for setting in settings:
            known = f" One of: {', '.join(map(str, setting.choices))}." if setting.choices else ""
            default = "" if setting.default in (None, [], "") else f" [default: {setting.default}]"
            table.add_row(setting.flag, Text.assemble(setting.help + known, (default, "dim")))
        page.print(Panel(table, title=title, title_align="left", border_style="dim"))


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
    with messages.status("looking around"), warnings.catch_warnings():
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


def _results_folder(wanted: Path | None, default: str) -> Path:
    return Path(default) if wanted is None else wanted
