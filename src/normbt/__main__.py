"""The program `normbt`, also as `python -m normbt` and `accelerate launch -m normbt`."""

import importlib.metadata
import re
import sys

_DISTRIBUTION = {"yaml": "pyyaml"}
"""Packages that are imported by another name than they are installed by."""


def main() -> None:
    """Run the command line, or say in one line what must be installed for it."""
    try:
        from normbt.cli import main as run

        status = run()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = extra_with(package)
        if extra is None:
            raise
        sys.stderr.write(
            f"normbt: this needs the package {package}. Install it, from a checkout: pip install -e '.[{extra}]'\n"
        )
        status = 2
    sys.exit(status)


def extra_with(package: str) -> str | None:
    """The smallest extra that brings a package, by the metadata of normbt; None where no extra does.

    Args:
        package: as it is imported.

    Example:
        >>> extra_with("trl"), extra_with("yaml"), extra_with("nowhere")
        ('train', 'train', None)
    """
    wanted = _normalised(_DISTRIBUTION.get(package, package))
    packages: dict[str, set[str]] = {}
    for requirement in importlib.metadata.requires("normbt") or ():
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra:
            packages.setdefault(extra[1], set()).add(_normalised(name[0]))
    return min(
        (extra for extra in packages if wanted in packages[extra]), key=lambda one: len(packages[one]), default=None
    )


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
