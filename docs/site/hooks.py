"""What the site needs beyond the Markdown: the README as its first page, scripts that pages link to, and formulas.

mkdocs calls these functions by their names; see `hooks` in mkdocs.yml.
"""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', flags=re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs/ that the pages stand on."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    for script in sorted((ROOT / "benchmarks").iterdir()):
        if script.is_file():
            files.append(File.generated(config, f"benchmarks/{script.name}", abs_src_path=str(script)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to scripts lead to the copies beside the pages."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def on_page_content(html: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw without a script."""
    return _FORMULA.sub(_mathml, html)


def _mathml(formula: re.Match[str]) -> str:
    tex = formula[3].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    return convert(tex, display="block" if formula[2] == "[" else "inline")
