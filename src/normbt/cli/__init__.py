"""The command line: parse, call a job, print. Nothing heavy is imported before a command runs."""

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from normbt import __version__
from normbt.cli.best_of_n import best_of_n
from normbt.cli.compare import compare
from normbt.cli.demo import demo
from normbt.cli.diagnose import diagnose
from normbt.cli.doctor import doctor
from normbt.cli.evaluate import evaluate
from normbt.cli.experiment import experiment
from normbt.cli.report import report
from normbt.cli.score import score
from normbt.cli.terminal import is_main_process, messages, output
from normbt.cli.train import TRAIN_SETTINGS, train
from normbt.cli.verify_server import verify_server
from normbt.errors import NormbtError

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None takes the process's own.

    Returns:
        The exit status: 0, or 2 for a user's mistake, or for a machine without space or memory, which has been printed
        in one message. Anything else that goes wrong is a bug and raises.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if is_main_process():
        logging.getLogger("normbt").setLevel(logging.INFO)
    else:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # Transformers' bars too; one process shows them
    try:
        result = app(args=with_underscores(sys.argv[1:] if argv is None else argv), standalone_mode=False)
    except NormbtError as error:
        return _refuse(str(error))
    except typer.TyperException as error:
        return _refuse(f"{getattr(error, 'format_message', error.__str__)()} See `normbt --help`.")
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (OSError, MemoryError, RuntimeError) as error:
        from normbt.faults import disk_fault, memory_fault

        cause = disk_fault(error) or memory_fault(error)
        if cause is None:
            raise
        return _refuse(f"{cause}. Free some space or memory, or choose another folder or a smaller batch.")
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


# In the order of `normbt --help`.
app.command(**TRAIN_SETTINGS)(train)
app.command()(evaluate)
app.command()(compare)
app.command("best-of-n")(best_of_n)
app.command()(score)
app.command()(diagnose)
app.command()(report)
app.command()(experiment)
app.command()(demo)
app.command(name="verify-server")(verify_server)
app.command()(doctor)
