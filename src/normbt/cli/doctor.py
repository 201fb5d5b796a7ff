"""`normbt doctor`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from normbt.cli.terminal import messages, output

if TYPE_CHECKING:
    from normbt.doctor import DoctorReport, ModelReport, RenderedAnswer


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
