"""The job: read pairs, encode, score, write ``pairs.jsonl`` and ``summary.json``."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normbt import rewardbench
from normbt.errors import ConfigError, DataError
from normbt.evaluate.records import Row, pair_records
from normbt.evaluate.summary import ScoreTable, scores_by
from normbt.inference import TEMPLATES, RewardModel, Template, open_model
from normbt.pairs import read_pairs
from normbt.results import (
    LEADERBOARD_FILE,
    PAIRS_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    EvaluationSummary,
    provenance,
    write_json,
    write_jsonl,
)
from normbt.scoring import DEFAULT_BATCH_TOKENS, score_pairs
from normbt.stats import TIE_POLICY

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SUITES = ("rewardbench", "pairs")


class EncodedPairs(NamedTuple):
    """Token ids of both sides of every pair, and whether either side was cut."""

    chosen: list[list[int]]
    rejected: list[list[int]]
    truncated: list[bool]


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
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationSummary:
    """Score a benchmark with a reward model and write ``pairs.jsonl`` and ``summary.json``.

    The suite ``rewardbench`` also writes ``leaderboard.json``. The summary is written last: where there is one, the
    evaluation is complete.

    Args:
        model: folder, adapter folder or Hub id of a reward model, or a loaded one (then with its ``tokenizer``).
        output_dir: folder of the result files.
        suite: ``"rewardbench"`` for the sections of RewardBench v1, ``"pairs"`` for any preference pairs.
        data: file, folder or Hub id of the pairs; None for the official data of the suite, from the Hub.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.
        tokenizer: of a loaded model.
        template: how plain text is rendered. ``"auto"``: RewardBench's prompts and answers through the tokenizer's
            chat template if it has one, everything else as it stands. ``"chat"``: always as a conversation, with a
            built-in template if the tokenizer has none. ``"plain"``: prompt and answer joined as they are.
        max_length: most tokens of a sequence; longer ones lose the beginning of their prompt and are counted. None for
            2048, or less if the model reads less.
        batch_tokens: most tokens of a batch.
        limit: evaluate a random sample of this many pairs, drawn with ``seed``; None for all.
        seed: of the sample, of the resampling, and of an untrained head.
        resamples: number of bootstrap resamples.
        confidence: coverage of the intervals, in ``(0, 1)``.
        dtype: as in :func:`normbt.loading.load_reward_model`, like the next four.
        device: where to run.
        attention: implementation of attention.
        allow_untrained_head: evaluate a checkpoint without a head, as a baseline.
        trust_remote_code: run code of the checkpoint.
        progress: called with the number of sequences done and in all.

    Returns:
        The summary, as written.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        DataError: the pairs cannot be read, or are not RewardBench's.
        ModelError: the model cannot be loaded or has no usable head.
    """
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in locals().items()
        if name not in ("model", "tokenizer", "progress")
    }
    _check_settings(settings)
    source = data if data is not None else _official_data(suite)
    if data is None and split is None:
        split = rewardbench.HUB_SPLIT
    read, report = read_pairs(source, split=split)
    for line in report.summary().splitlines():
        logger.info("%s", line)
    rows = _sample(cast("Dataset", read), limit, seed)  # a stream only comes with streaming=True
    if suite == "rewardbench":
        _check_rewardbench(rows, source)

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
        chat_by_default=suite == "rewardbench",
    )
    encoded = _encode(rows, scorer)
    total = 2 * len(rows)
    scores = score_pairs(
        scorer.model,
        encoded.chosen,
        encoded.rejected,
        batch_tokens=batch_tokens,
        progress=(lambda done: progress(done, total)) if progress else None,
    )
    records = pair_records(cast("Iterable[Row]", rows), suite, encoded.truncated, scores)
    table = ScoreTable(records, resamples=resamples, confidence=confidence, seed=seed)
    subsets, official = scores_by(table, "subset"), suite == "rewardbench"
    folder = Path(output_dir)
    written = write_jsonl(folder / PAIRS_FILE, records)
    if official:
        accuracies = {subset: score["value"] for subset, score in subsets.items()}
        write_json(
            folder / LEADERBOARD_FILE, rewardbench.leaderboard_record(accuracies, model=scorer.name), sort_keys=True
        )
    sections = table.sections() if official else {}
    summary = EvaluationSummary(
        schema_version=SCHEMA_VERSION,
        kind="evaluation",
        model=scorer.name,
        suite=suite,
        tie_policy=TIE_POLICY,
        headline=f"mean of {len(sections)} sections" if official else "accuracy",
        score=table.section_mean() if official else table.accuracy(),
        accuracy=table.accuracy(),
        sections=sections,
        categories=scores_by(table, "category"),
        subsets=subsets,
        sources=scores_by(table, "source"),
        coverage=rewardbench.coverage({name: score["pairs"] for name, score in subsets.items()}) if official else None,
        confidence=confidence,
        resamples=resamples,
        inference=scorer.settings(batch_tokens=batch_tokens, batching=scores.batching),
        pairs_sha256=written.sha256,
        provenance=provenance(config={"model": scorer.name, **settings}, seed=seed, data=[report.to_dict()]),
    )
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _check_settings(settings: Mapping[str, Any]) -> None:
    problems = []
    if settings["suite"] not in SUITES:
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


def _official_data(suite: str) -> str:
    if suite == "rewardbench":
        return rewardbench.HUB_ID
    raise ConfigError("The suite 'pairs' has no data of its own: name a file, a folder or a Hub id with --data.")


def _sample(pairs: "Dataset", limit: int | None, seed: int) -> "Dataset":
    """All pairs, or a random sample in the order of the file; the first rows would be those of a few subsets."""
    if limit is None or limit >= len(pairs):
        return pairs
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:limit]
    return pairs.select(sorted(drawn.tolist()))


def _check_rewardbench(rows: "Dataset", source: str | Path) -> None:
    missing = [name for name in ("prompt", "subset") if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{source}: the suite 'rewardbench' needs the columns prompt and subset, found no "
            f"{' and no '.join(missing)} (columns: {', '.join(rows.column_names)}). "
            "For other preference pairs use --suite pairs."
        )
    rewardbench.check_subsets(rows["subset"])


def _encode(rows: "Dataset", scorer: RewardModel) -> EncodedPairs:
    sides = []
    for name in ("chosen", "rejected"):
        texts: list[Any] = rows[name][:]
        if "prompt" in rows.column_names:
            texts = list(zip(rows["prompt"][:], texts, strict=True))
        sides.append(scorer.encode(texts))
    (chosen, chosen_cut), (rejected, rejected_cut) = sides
    return EncodedPairs(chosen, rejected, [a or b for a, b in zip(chosen_cut, rejected_cut, strict=True)])
