"""Read the project's docstrings for the site: formulas, examples, and links to other names."""

import re
from typing import Any

from griffe import Extension, Object

_FORMULA = re.compile(r"^\.\. math::[ ]?(.*?)(?=\n\s*\n|\Z)", flags=re.DOTALL | re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


class Docstrings(Extension):
    """Turn the reStructuredText of a docstring into the Markdown that the site's handler reads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """Formulas between ``$$``, ``Example:`` as the section that shows doctests, roles as code."""
    text = _FORMULA.sub(lambda formula: f"$$\n{formula[1]}\n$$", docstring)
    return _ROLE.sub(r"`\1`", text.replace("\nExample:\n", "\nExamples:\n"))
