"""Job: read preference data, train a reward model on it, save the model and what became of every row."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from datasets import Dataset, IterableDataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import get_dataset, get_peft_config, get_quantization_config

from normbt.arguments import TrainArguments
from normbt.errors import ConfigError, DataError
from normbt.expected import write_expected_scores
from normbt.faults import require_writable, writing
from normbt.packaged_encoder import locate_model
from normbt.pairs import DataReport, LiveReport, read_pairs
from normbt.results import DATA_REPORT_FILE, SCHEMA_VERSION, Provenance, provenance, write_json
from normbt.trainer import NormBTTrainer

logger = logging.getLogger(__name__)


class TrainingDataReport(TypedDict):
    """``data_report.json`` of a training run: what became of every row, and where the run comes from."""

    schema_version: int
    kind: str
    sets: dict[str, dict[str, Any]]
    provenance: Provenance


class TrainingOutcome(NamedTuple):
    """What a training run left behind.

    Attributes:
        output_dir: folder of the saved model and of ``data_report.json``.
        metrics: metrics of the evaluation at the end; empty where there was none.
    """

    output_dir: Path
    metrics: dict[str, float]


class TrainingData(NamedTuple):
    """The pairs of a run, before tokens are made of them.

    Attributes:
        train: pairs to train on.
        evaluation: pairs to evaluate on, by name where there are several sets; None for no evaluation.
        reports: what became of the rows of each set, by the name that the trainer gives the set.
    """

    train: Dataset | IterableDataset
    evaluation: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None
    reports: dict[str, DataReport | LiveReport]


def run_training(
    arguments: TrainArguments,
    *,
    tell: Callable[[str], None] = logger.info,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingOutcome:
    """Train a reward model as the command line asks.

    Args:
        arguments: the settings of the run.
        tell: told, for people, what became of the data and where things are.
        progress: told how many optimizer steps are done, and how many there are; the trainer's own bar and log lines
            are then left out.

    Returns:
        Where the model is, and the metrics of the last evaluation.

    Raises:
        ConfigError: no model or no data was named, settings contradict each other, or the package that carries the
            model is missing.
        DataError: the data cannot be read or hold no usable pair.
        ModelError: the model cannot be loaded or has no usable head.
        StateError: a checkpoint to resume does not belong to this run.
    """
    if arguments.model.model_name_or_path is None:
        raise ConfigError("No model was named: give --model_name_or_path a folder or a Hub name.")
    source = locate_model(arguments.model.model_name_or_path)
    if arguments.training.should_save:
        require_writable(arguments.training.output_dir or ".")
    data = read_training_data(arguments)
    trainer = _build_trainer(arguments, source, data)
    reports = {name: report.then(trainer.data_reports[name]) for name, report in data.reports.items()}
    for name, report in reports.items():
        tell(f"{name}: {report.summary()}")
    tell(_describe(trainer))
    if trainer.step_plan.batching != "padded":  # padding against the settings was said aloud already
        tell(trainer.step_plan.reason)
    if progress is not None:
        for shown in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(shown)
        trainer.add_callback(_Steps(progress))

    trainer.train(resume_from_checkpoint=arguments.training.resume_from_checkpoint)
    metrics: dict[str, float] = {}
    if data.evaluation is not None and arguments.training.eval_strategy == "no":
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
    output_dir = Path(trainer.args.output_dir or ".")
    with writing(output_dir, afterwards=lambda: "The checkpoints in it are as they were; free some space."):
        trainer.save_model(str(output_dir))
        _write_expected_scores(trainer, output_dir)
        trainer.save_state()  # every log, for the report, also of a run that saved no checkpoint
    if trainer.is_world_process_zero():
        # Written last: the counts of a stream are complete only now.
        final = {name: report.then(trainer.data_reports[name]).to_dict() for name, report in data.reports.items()}
        write_json(output_dir / DATA_REPORT_FILE, _data_report(arguments, final))
    if arguments.training.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.data.dataset_name)
    trainer.end()
    return TrainingOutcome(output_dir, metrics)


class _Steps(TrainerCallback):
    """Tells how many optimizer steps are done."""

    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps)


def _write_expected_scores(trainer: NormBTTrainer, output_dir: Path) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        logger.warning("The model is sharded: expected_scores.json was not written (see docs/serving.md).")
    elif trainer.is_world_process_zero():
        write_expected_scores(output_dir, trainer.model, trainer.processing_class, max_length=trainer.args.max_length)


def read_training_data(arguments: TrainArguments) -> TrainingData:
    """Read and check the pairs that the settings name.

    Args:
        arguments: the settings of the run.

    Returns:
        The pairs to train and to evaluate on, and the reports of both.

    Raises:
        ConfigError: no data were named.
        DataError: a source cannot be read, lacks the split, or holds no usable pair.
    """
    data, mixture = arguments.data, arguments.mixture
    evaluate_split = arguments.training.eval_strategy != "no" and not data.eval_data
    held_out: Dataset | IterableDataset | None = None
    if mixture.datasets:
        if data.dataset_name:
            logger.warning("Both `datasets` and `dataset_name` are given: `datasets` is read, the other is not.")
        splits = _read_mixture(arguments)
        train, report = read_pairs(splits["train"])
        if evaluate_split and "test" not in splits:
            raise ConfigError("Evaluation is on and there is nothing to evaluate on: set test_split_size or eval_data.")
        held_out, held_out_report = read_pairs(splits["test"]) if evaluate_split else (None, None)
    elif data.dataset_name:
        options: dict[str, Any] = {"name": data.dataset_config, "streaming": data.dataset_streaming}
        train, report = read_pairs(data.dataset_name, split=data.dataset_train_split, **options)
        held_out, held_out_report = (
            read_pairs(data.dataset_name, split=data.dataset_test_split, **options) if evaluate_split else (None, None)
        )
    else:
        raise ConfigError("No data were named: give --dataset_name a file, a folder or a Hub name.")
    reports: dict[str, DataReport | LiveReport] = {"train": report}
    if held_out_report is not None:
        reports["eval"] = held_out_report
        return TrainingData(train, held_out, reports)
    if not data.eval_data:
        return TrainingData(train, None, reports)
    sets = {name: _read_evaluation_set(source, arguments) for name, source in _named(data.eval_data).items()}
    if len(sets) == 1:
        ((pairs, report),) = sets.values()
        return TrainingData(train, pairs, reports | {"eval": report})
    reports |= {name: report for name, (_, report) in sets.items()}
    return TrainingData(train, {name: pairs for name, (pairs, _) in sets.items()}, reports)


def _read_mixture(arguments: TrainArguments) -> Any:
    try:
        return get_dataset(arguments.mixture)
    except (OSError, ValueError) as error:  # what `datasets` and TRL raise for names and fractions that do not fit
        raise DataError(f"The data mixture `datasets` cannot be read: {error}") from error


def _read_evaluation_set(
    source: str, arguments: TrainArguments
) -> tuple[Dataset | IterableDataset, DataReport | LiveReport]:
    # A file named for evaluation is wanted whole; of a folder or Hub data set, which has splits, the test split.
    split = None if Path(source).is_file() else arguments.data.dataset_test_split
    return read_pairs(source, split=split, streaming=arguments.data.dataset_streaming)


def _named(sources: list[str]) -> dict[str, str]:
    """A short name for each evaluation set: its file's, with its number where two files have the same."""
    stems = [Path(source).name.split(".")[0] for source in sources]
    names = {}
    for number, (source, stem) in enumerate(zip(sources, stems, strict=True), start=1):
        name = stem if stems.count(stem) == 1 and stem != "train" else f"{stem}-{number}"
        while name != stem and name in stems:  # another file has that very name
            name = f"{name}-{number}"
        names[name] = source
    return names


def _build_trainer(arguments: TrainArguments, source: str, data: TrainingData) -> NormBTTrainer:
    model, training = arguments.model, arguments.training
    given = training.model_init_kwargs
    if isinstance(given, str):  # Transformers has read JSON text by now; anything else is no mapping
        raise ConfigError(f"model_init_kwargs must be a JSON object, got {given!r}.")
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(given or {}),
    }
    return NormBTTrainer(
        model=source,
        args=training,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )


def _data_report(arguments: TrainArguments, sets: dict[str, dict[str, Any]]) -> TrainingDataReport:
    model = {field.name: getattr(arguments.model, field.name) for field in dataclasses.fields(arguments.model)}
    settings = arguments.training.to_sanitized_dict()
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "training",
        "sets": sets,
        "provenance": provenance(config=settings | model, seed=arguments.training.seed, data=list(sets.values())),
    }


def _describe(trainer: NormBTTrainer) -> str:
    """One line on how and where the run trains, so that no default stays unseen."""
    args = trainer.args
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "float32"
    weighting = (
        f"weighting {args.weighting} of distance {args.distance}" if args.weighting != "none" else "no weighting"
    )
    return (
        f"training on {args.device} (processes: {trainer.accelerator.num_processes}) in {precision}: "
        f"loss {args.loss}, {weighting}, {args.train_batch_size} pairs x {args.gradient_accumulation_steps} "
        f"micro-batches per process and step"
    )
