"""The job: one benchmark, or all whose data are there, scored with one model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normbt.errors import ConfigError, DataError
from normbt.evaluate.answers import Progress
from normbt.evaluate.data import read_all, read_suite
from normbt.evaluate.run import run_suite, training_seed
from normbt.inference import TEMPLATES, RewardModel, Template, open_model
from normbt.processes import Processes, running_processes
from normbt.results import EvaluationSummary
from normbt.scoring import DEFAULT_BATCH_TOKENS
from normbt.suites import SUITES, find_suite


class SuiteResults(NamedTuple):
    """What an evaluation on every suite came to.

    Attributes:
        summaries: of the suites that ran, by name.
        skipped: the others, by name, with the reason.
    """

    summaries: dict[str, EvaluationSummary]
    skipped: dict[str, str]


def evaluate(
    model: str | Path | PreTrainedModel,
    *,
    output_dir: str | Path,
    suite: str = "rewardbench",
    data: str | Path | None = None,
    split: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Template = "auto",
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    allow_untrained_head: bool = False,
    trust_remote_code: bool = False,
    check_determinism: bool = False,
    progress: Progress | None = None,
) -> EvaluationSummary:
    """Score a benchmark with a reward model and write its records, ``leaderboard.json`` and ``summary.json``.

    The records are ``pairs.jsonl``, or ``prompts.jsonl`` where a prompt has several answers. The summary is written
    last: where there is one, the evaluation is complete.

    Processes that ``accelerate launch`` or ``torchrun`` started share the scoring; every one of them must call this.
    The main one writes.

    Args:
        model: folder, adapter folder or Hub id of a reward model, or a loaded one (then with its ``tokenizer``).
        output_dir: folder of the result files.
        suite: name of the benchmark, see :data:`normbt.suites.SUITES`; ``"pairs"`` for any preference pairs.
        data: file, folder or Hub id of the data; None for the official data of the suite, from the Hub.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.
        tokenizer: of a loaded model.
        template: how plain text is rendered. ``"auto"``: prompts and answers of a benchmark through the tokenizer's
            chat template if it has one, plain pairs as they stand. ``"chat"``: always as a conversation, with a
            built-in template if the tokenizer has none. ``"plain"``: prompt and answer joined as they are.
        max_length: most tokens of a sequence; longer ones lose the beginning of their prompt and are counted. None for
            2048, or less if the model reads less.
        batch_tokens: most tokens of a batch.
        limit: evaluate a random sample of this many records, drawn with ``seed``; None for all.
        seed: of the samples, of the resampling, and of an untrained head.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals, in ``(0, 1)``.
        dtype: as in :func:`normbt.loading.load_reward_model`, like the next four.
        device: where to run.
        attention: implementation of attention.
        allow_untrained_head: evaluate a checkpoint without a head, as a baseline.
        trust_remote_code: run code of the checkpoint.
        check_determinism: score a sample again, one sequence at a time, report what changed, and write
            ``determinism.jsonl``.
        progress: called with the number of sequences done and in all.

    Returns:
        The summary, as written.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        DataError: the data cannot be read, or are not the suite's.
        ModelError: the model cannot be loaded or has no usable head.
    """
    settings = _settings(locals())
    check_settings(settings)
    read = read_suite(find_suite(suite), data=data, split=split, limit=limit, seed=seed)
    processes = running_processes()
    scorer = _open(model, tokenizer, settings, processes)
    return run_suite(scorer, read, Path(output_dir), settings, training_seed(model), processes, progress)


def evaluate_all(
    model: str | Path | PreTrainedModel,
    *,
    output_dir: str | Path,
    data: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Template = "auto",
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    limit: int | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    confidence: float = 0.95,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    allow_untrained_head: bool = False,
    trust_remote_code: bool = False,
    check_determinism: bool = False,
    progress: Progress | None = None,
) -> SuiteResults:
    """Run every suite whose data are there, each into a folder of its name, with the model loaded once.

    All data are read before the model is loaded, so that what is wrong with them shows at once. Processes share the
    scoring as in :func:`evaluate`.

    Args:
        model: as in :func:`evaluate`, like all that are not named here.
        output_dir: folder of the suites' folders.
        data: folder that holds the data of suites, recognised by their names
            (:func:`normbt.evaluate.data.find_data`); None for the official data of each suite, from the Hub.
        tokenizer: of a loaded model.
        template: how plain text is rendered.
        max_length: most tokens of a sequence.
        batch_tokens: most tokens of a batch.
        limit: random sample of each suite.
        seed: of the samples, of the resampling, and of an untrained head.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals.
        dtype: number format of the weights.
        device: where to run.
        attention: implementation of attention.
        allow_untrained_head: evaluate a checkpoint without a head.
        trust_remote_code: run code of the checkpoint.
        check_determinism: score a sample of each suite again, one sequence at a time.
        progress: called with the number of sequences of a suite done and in all.

    Returns:
        The summaries, and why the other suites did not run.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        DataError: no suite has data, or data that are there cannot be read.
        ModelError: the model cannot be loaded or has no usable head.
    """
    settings = _settings(locals())
    check_settings(settings)
    readings, skipped = read_all(None if data is None else Path(data), limit=limit, seed=seed)
    if not readings:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise DataError(f"No suite has data. {reasons}")
    processes, trained_with = running_processes(), training_seed(model)
    scorer = _open(model, tokenizer, settings, processes)
    summaries = {}
    for read in readings:
        name = read.suite.name
        folder = Path(output_dir) / name
        summaries[name] = run_suite(scorer, read, folder, settings, trained_with, processes, progress)
    return SuiteResults(summaries, skipped)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that are unknown or out of range, all at once.

    Raises:
        ConfigError: names each of them.
    """
    problems = []
    if settings.get("suite", "pairs") not in SUITES:
        problems.append(f"suite must be one of {', '.join(SUITES)}, found '{settings['suite']}'")
    if settings["template"] not in TEMPLATES:
        problems.append(f"template must be auto, chat or plain, found '{settings['template']}'")
    for name in ("limit", "max_length", "batch_tokens", "resamples"):
        if settings[name] is not None and settings[name] < 1:
            problems.append(f"{name} must be at least 1, found {settings[name]}")
    if not 0 < settings["confidence"] < 1:
        problems.append(f"confidence must be between 0 and 1, found {settings['confidence']}")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a call as they are recorded."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in arguments.items()
        if name not in ("model", "tokenizer", "progress")
    }


def _open(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Mapping[str, Any],
    processes: Processes,
) -> RewardModel:
    names = ("max_length", "dtype", "attention", "allow_untrained_head", "seed", "trust_remote_code")
    device = settings["device"] or processes.device
    return open_model(model, tokenizer=tokenizer, device=device, **{name: settings[name] for name in names})
