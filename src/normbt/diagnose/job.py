"""The job: read pairs, measure them chunk by chunk, write ``pairs.jsonl`` and ``summary.json``."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normbt.diagnose.chunk import ChunkDiagnosis
from normbt.diagnose.finish import finish
from normbt.errors import ConfigError
from normbt.inference import TEMPLATES, RewardModel, Template, open_model
from normbt.norm_meter import METHODS, Asked, default_batch_tokens
from normbt.pairs import read_pairs
from normbt.results import (
    PAIRS_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    DiagnosisSummary,
    Parts,
    read_json,
    require_same_run,
)
from normbt.scoring import DEFAULT_BATCH_TOKENS
from normbt.suites import rewardbench

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

CHUNK_PAIRS = 64
"""Pairs measured between two writes: what a killed run does again, and what is in memory at once."""

DEFAULT_MAX_PAIRS = 1_000


def diagnose(
    model: str | Path | PreTrainedModel,
    *,
    data: str | Path,
    output_dir: str | Path,
    split: str | None = None,
    max_pairs: int | None = DEFAULT_MAX_PAIRS,
    seed: int = 0,
    method: Asked = "auto",
    eps: float = 1e-6,
    max_weight: float | None = 10.0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Template = "auto",
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    gradient_tokens: int | None = None,
    resamples: int = 2_000,
    confidence: float = 0.95,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    allow_untrained_head: bool = False,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DiagnosisSummary:
    """Measure error, distance, weight and exact gradient norm of each pair, and who gets the update.

    Pairs go through the model in chunks. Each finished chunk is a file of its own, written whole or not at all; the
    summary is written last. The same call after a killed one goes on with the missing chunks, and gives the same
    numbers as one that was not killed.

    Args:
        model: folder, adapter folder or Hub id of a reward model, or a loaded one (then with its ``tokenizer``).
        data: file, folder or Hub id of the pairs.
        output_dir: folder of the result files.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.
        max_pairs: diagnose a random sample of so many pairs, drawn with ``seed``; None for all.
        seed: of the sample, of the resampling, and of an untrained head.
        method: how gradient norms are computed, as in :func:`normbt.norm_meter.make_norm_meter`.
        eps: added to the distance in NormBT's weight, in its unit; positive.
        max_weight: largest weight; None for no bound.
        tokenizer: of a loaded model.
        template: how plain text is rendered. ``"auto"``: RewardBench's prompts and answers through the tokenizer's
            chat template if it has one, everything else as it stands. ``"chat"`` and ``"plain"`` as in
            :func:`normbt.evaluate.evaluate`.
        max_length: most tokens of a sequence; longer ones lose the beginning of their prompt and are counted. None for
            2048, or less if the model reads less.
        batch_tokens: most tokens of a batch of the forward pass.
        gradient_tokens: most tokens of a batch of the backward pass, padding included; None chooses from the free
            memory.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals, in ``(0, 1)``.
        dtype: as in :func:`normbt.loading.load_reward_model`, like the next four.
        device: where to run.
        attention: implementation of attention.
        allow_untrained_head: diagnose a checkpoint without a head: the start of a training run.
        trust_remote_code: run code of the checkpoint.
        overwrite: start anew, whatever an earlier diagnosis, finished or not, left in ``output_dir``.
        progress: called with the number of pairs done and in all.

    Returns:
        The summary, as written.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        DataError: the pairs cannot be read.
        ModelError: the model cannot be loaded, has no usable head, or cannot be measured as asked for.
        StateError: ``output_dir`` holds a diagnosis of other data or settings.
    """
    settings: dict[str, Any] = {
        "data": str(data),
        "split": split,
        "max_pairs": max_pairs,
        "seed": seed,
        "method": method,
        "eps": eps,
        "max_weight": max_weight,
        "template": template,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "gradient_tokens": gradient_tokens,
        "resamples": resamples,
        "confidence": confidence,
        "dtype": dtype,
        "attention": attention,
        "allow_untrained_head": allow_untrained_head,
    }
    _check_settings(settings)
    read, report = read_pairs(data, split=split)
    for line in report.summary().splitlines():
        logger.info("%s", line)
    pairs = cast("Dataset", read)  # a stream only comes with streaming=True
    rows = _sample(pairs, max_pairs, seed)
    if len(rows) < len(pairs):
        logger.info("Diagnosing %s of the %s pairs, drawn with seed %d.", f"{len(rows):,}", f"{len(pairs):,}", seed)
    else:
        logger.info("Diagnosing all %s pairs.", f"{len(rows):,}")
    scorer = open_model(
        model,
        tokenizer=tokenizer,
        max_length=max_length,
        dtype=dtype,
        device=device,
        attention=attention,
        allow_untrained_head=allow_untrained_head,
        seed=seed,
        trust_remote_code=trust_remote_code,
    ).with_template(
        template,
        conversations=isinstance(rows[0]["chosen"], list),
        has_prompt="prompt" in rows.column_names,
        chat_by_default=_is_rewardbench(rows),
    )
    run = _run_record(scorer, settings, digest=report.to_dict()["digest"], resolved_device=scorer.model.device.type)
    folder = Path(output_dir)
    finished = _earlier_summary(folder, run, overwrite=overwrite)
    if finished is not None:
        logger.info("%s is complete already; nothing was measured.", folder)
        return finished
    _train_adapters(scorer.model)
    parts = Parts(folder / PAIRS_FILE, run)
    if parts.begin(overwrite=overwrite):
        logger.info("Going on with the diagnosis that was cut: finished chunks are kept.")
    for path in (folder / SUMMARY_FILE, folder / PAIRS_FILE):
        path.unlink(missing_ok=True)
    count = _measure(rows, scorer, parts, settings, progress)
    return finish(
        folder,
        parts,
        count,
        model=scorer.name,
        total_pairs=len(pairs),
        seed=seed if len(rows) < len(pairs) else None,
        settings=settings,
        inference=scorer.settings(batch_tokens=batch_tokens, batching=""),
        run=run,
        data=[report.to_dict()],
    )


def _measure(
    rows: "Dataset",
    scorer: RewardModel,
    parts: Parts,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write the parts that are missing; the number of all."""
    gradient_tokens = settings["gradient_tokens"] or default_batch_tokens(scorer.model, 2 * scorer.max_length)
    if parts.has(0):  # a resumed run keeps its batches, whatever memory is free now
        gradient_tokens = next(parts.headers(1))["gradient_tokens"]
    chunk = ChunkDiagnosis(scorer, settings["method"], settings["batch_tokens"], gradient_tokens)
    starts = range(0, len(rows), CHUNK_PAIRS)
    for number, start in enumerate(starts):
        stop = min(start + CHUNK_PAIRS, len(rows))
        if not parts.has(number):
            parts.write(number, *chunk.run([rows[index] for index in range(start, stop)]))
        if progress is not None:
            progress(stop, len(rows))
    return len(starts)


def _check_settings(settings: Mapping[str, Any]) -> None:
    problems = []
    if settings["template"] not in TEMPLATES:
        problems.append(f"template must be {', '.join(TEMPLATES)}, found '{settings['template']}'")
    if settings["method"] not in METHODS:
        problems.append(f"method must be {', '.join(METHODS)}, found '{settings['method']}'")
    for name in ("max_pairs", "max_length", "batch_tokens", "gradient_tokens", "resamples"):
        if settings[name] is not None and settings[name] < 1:
            problems.append(f"{name} must be at least 1, found {settings[name]}")
    for name in ("eps", "max_weight"):
        if settings[name] is not None and not settings[name] > 0:
            problems.append(f"{name} must be positive, found {settings[name]}")
    if not 0 < settings["confidence"] < 1:
        problems.append(f"confidence must be between 0 and 1, found {settings['confidence']}")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _sample(pairs: "Dataset", max_pairs: int | None, seed: int) -> "Dataset":
    """All pairs, or a random sample in the order of the data; the first rows would be those of a few subsets."""
    if max_pairs is None or max_pairs >= len(pairs):
        return pairs
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:max_pairs]
    return pairs.select(sorted(drawn.tolist()))


def _is_rewardbench(rows: "Dataset") -> bool:
    """Whether every pair is of one of RewardBench's subsets, whose texts are rendered as the benchmark does."""
    if "subset" not in rows.column_names or "prompt" not in rows.column_names:
        return False
    return set(rows.unique("subset")) <= rewardbench.OFFICIAL_COUNTS.keys()


def _run_record(
    scorer: RewardModel, settings: Mapping[str, Any], *, digest: str | None, resolved_device: str
) -> dict[str, Any]:
    """Everything that decides the numbers of a pair or of the summary."""
    inference = scorer.settings(batch_tokens=settings["batch_tokens"], batching="")
    return {
        "schema_version": SCHEMA_VERSION,
        "model": scorer.name,
        **settings,
        "data_digest": digest,
        "weights": scorer.fingerprint(),
        "max_length": scorer.max_length,
        "dtype": inference["dtype"],
        "device": resolved_device,
        "attention": inference["attention"],
        "template": scorer.template,
    }


def _earlier_summary(folder: Path, run: Mapping[str, Any], *, overwrite: bool) -> DiagnosisSummary | None:
    """The summary of a finished diagnosis of the same data and settings; None when there is something to do."""
    path = folder / SUMMARY_FILE
    if not path.is_file():
        return None
    found = read_json(path)
    if found.get("kind") != "diagnosis":
        raise ConfigError(
            f"{folder} holds a result of kind {found.get('kind')!r}, which a diagnosis would replace. "
            "Choose another output_dir."
        )
    if overwrite:
        return None
    require_same_run(found["provenance"]["config"], json.loads(json.dumps(dict(run))), path)
    return cast(DiagnosisSummary, found) if (folder / PAIRS_FILE).is_file() else None


def _train_adapters(model: Any) -> None:
    """Let the parts of an adapter that training would update require a gradient; loading left them frozen."""
    if hasattr(model, "peft_config") and not any(parameter.requires_grad for parameter in model.parameters()):
        model.set_adapter(model.active_adapter)
