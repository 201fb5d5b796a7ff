"""The docs keep up with the code: every public name, command and setting is there, and every example still parses.

A line of a ```console block that starts with `$ normbt` is checked in one of two ways. What costs nothing and needs
nothing (`--help`, `--version`, `--dry_run`, `doctor` without a model) is run. Everything else is parsed to settings by
the command's own parser, with the job itself replaced, so that a renamed flag or a wrong value fails; the files and
models it names need not exist, except for YAML files, which are stood in for by an empty recipe.
"""

import ast
import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from trl import RewardConfig

import normbt
from normbt import cli
from normbt.arguments import DataArguments, parse_train_arguments
from normbt.config import NormBTConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


class Example(NamedTuple):
    """One command of a console block."""

    page: str
    argv: list[str]


def examples(text: str, page: str = "") -> list[Example]:
    """Every `$ normbt ...` line of the console blocks; a backslash at its end joins the next line."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if line.startswith("$ ") else []
            if words[:3] == ["accelerate", "launch", "-m"] or "normbt" in words[1:]:
                words = words[words.index("normbt") :]
            if words[:1] == ["normbt"]:
                found.append(Example(page, words[1:]))
    return found


EXAMPLES = [example for page in PAGES for example in examples(page.read_text(encoding="utf-8"), page.name)]
COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


def test_the_reader_of_examples_finds_them() -> None:
    block = ["$ normbt demo \\", "  --seed 1  # comment", "printed", "$ accelerate launch -m normbt train --x 1"]
    text = "\n".join(["```console", *block, "```", ""])
    assert [example.argv for example in examples(text)] == [["demo", "--seed", "1"], ["train", "--x", "1"]]
    assert examples("```python\n$ normbt demo\n```") == []


def test_there_are_examples_of_every_command() -> None:
    assert {example.argv[0] for example in EXAMPLES} >= set(COMMANDS)


@pytest.mark.parametrize("name", normbt.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`|^.*\b{name}\(", TEXT, flags=re.MULTILINE), f"{name} is in no page"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"normbt {command}" in TEXT


def _settings() -> list[str]:
    inherited = {field.name for field in dataclasses.fields(RewardConfig)}
    ours = [field.name for field in dataclasses.fields(NormBTConfig) if field.name not in inherited]
    return [*ours, *DataArguments.__annotations__]


@pytest.mark.parametrize("setting", _settings())
def test_every_setting_of_ours_is_documented(setting: str) -> None:
    assert re.search(rf"`(--)?{setting}\b", TEXT), f"{setting} is in no page"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"{example.page}: {' '.join(example.argv)[:60]}")
def test_every_example_runs_or_parses(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = list(example.argv)
    for place, word in enumerate(argv):
        if word.endswith((".yaml", ".yml")):
            (tmp_path / "recipe.yaml").write_text("bf16: false\n", encoding="utf-8")
            argv[place] = "recipe.yaml"
    if argv[0] == "train" and "--help" not in argv:
        parse_train_arguments(cli.with_underscores(argv[1:]))
        return
    if {"--help", "--version", "--dry_run"} & set(argv) or argv == ["doctor"]:
        assert cli.main(argv) == 0, capsys.readouterr().err
        return
    _replace_jobs(monkeypatch)
    with pytest.raises(_Reached):
        cli.main(argv)


class _Reached(Exception):
    """The command line was understood, and the job would start now."""


def _replace_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*args: Any, **kwargs: Any) -> None:
        raise _Reached

    for job in (
        "normbt.evaluate.evaluate",
        "normbt.diagnose.diagnose",
        "normbt.evaluate.evaluate_all",
        "normbt.compare.parse_methods",
        "normbt.demo.run_demo",
        "normbt.doctor.examine",
        "normbt.report.write_report",
        "normbt.score.score_rows",
        "normbt.best_of_n.best_of_n",
        "normbt.serving.verify_server",
        "normbt.experiment.read_recipe",
    ):
        monkeypatch.setattr(job, reached)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _functions(file: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, functions)}


def test_every_test_and_script_that_the_docs_name_exists() -> None:
    """A test without a file is in `tests/test_reliability.py`, as the page about faults says."""
    named = [
        (page.name, file or "tests/test_reliability.py", test)
        for page in PAGES
        for file, test in re.findall(
            r"`((?:tests|benchmarks)/[\w/]+\.\w+)?(?:::)?(test_\w+)?`", page.read_text(encoding="utf-8")
        )
        if file or test
    ]
    assert len({test for _, _, test in named}) > 25  # they are found at all
    for page, file, test in named:
        assert (ROOT / file).is_file(), f"{page} names {file}"
        assert not test or test in _functions(ROOT / file), f"{page} names {file}::{test}"


def test_every_fault_of_the_reliability_page_has_a_test() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = page.partition("\nTests without a file")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    for fault, _, tests in rows:
        assert re.search(r"`(tests/test_\w+\.py(::\w+)?|test_\w+)`|the same", tests), f"no test for: {fault.strip()}"
