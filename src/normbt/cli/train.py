"""`normbt train`."""

from typing import Any

import typer
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from normbt.cli.terminal import is_main_process, messages, output, page

TRAIN_SETTINGS: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    "options_metavar": "[SETTINGS OF `trl reward` AND OF NORMBT]",
}
"""How the program registers it: TRL's parser reads the arguments."""

_TRAIN_EXAMPLES = """\
normbt train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/ultrafeedback_binarized --output_dir rm
normbt train --model_name_or_path ./encoder --dataset_name pairs.jsonl --eval_data held_out.jsonl --output_dir rm
normbt train --config recipe.yaml --weighting none            # a recipe of `trl reward`, here with plain Bradley-Terry
normbt train --config recipe.yaml --num_processes 4           # on four GPUs
accelerate launch --num_processes 4 -m normbt train --config recipe.yaml"""


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

    outcome = run_training(arguments, tell=output.print if is_main_process() else _say_nothing)
    if is_main_process():
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
