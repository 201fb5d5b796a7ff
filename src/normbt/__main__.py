"""The program `normbt`, also as `python -m normbt` and `accelerate launch -m normbt`."""

import sys


def main() -> None:
    """Run the command line, or say in one line what must be installed for it."""
    try:
        from normbt.cli import main as run
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(f"normbt: the command line needs {error.name}. Install it: pip install 'normbt[train]'", file=sys.stderr)  # noqa: T201 - there is no console without rich
        sys.exit(2)
    sys.exit(run())


if __name__ == "__main__":
    main()
