"""The site's own code, and that its reference misses no public module; `make docs` builds the rest."""

import importlib.util
import re
from pathlib import Path

import normbt

DOCS = Path(__file__).parents[1] / "docs"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_docstring_becomes_markdown() -> None:
    docstring = (
        "Loss.\n\n.. math:: a\n        + b\n\nSee :class:`~normbt.weights.EmaState`.\n\nExample:\n    >>> 1\n    1\n"
    )
    text = load("docstrings").as_markdown(docstring)
    assert "$$\na\n        + b\n$$\n\nSee `EmaState`." in text
    assert "\nExamples:\n    >>> 1" in text


def test_a_formula_becomes_mathml() -> None:
    hooks = load("hooks")
    html = hooks.on_page_content('<p><span class="arithmatex">\\(a &lt; \\mu\\)</span></p>')
    assert re.fullmatch(r'<p><math .*display="inline".*</math></p>', html)
    assert "&lt;" in html or "&#x0003C;" in html


def test_the_reference_has_every_public_module() -> None:
    modules = {f"normbt.{module}" for module in normbt._MODULE_OF_NAME.values()}
    shown = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    # A folder counts as one module: its page shows what it hands out.
    missing = {module for module in modules if not any(f"{module}.".startswith(f"{page}.") for page in shown)}
    assert missing == set()
    assert "normbt.errors" in shown
