"""The job: read pairs, encode, score, write ``pairs.jsonl`` and ``summary.json``."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normbt import rewardbench
from normbt.encoding import encode_conversations, prepare_tokenizer
from normbt.errors import ConfigError, DataError, ModelError
from normbt.evaluate.records import Row, pair_records
from normbt.evaluate.summary import ScoreTable, scores_by
from normbt.head import unwrap
from normbt.loading import has_random_head, load_reward_model, max_positions
from normbt.pairs import as_conversation, read_pairs
from normbt.results import (
    LEADERBOARD_FILE,
    PAIRS_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    EvaluationSummary,
    InferenceSettings,
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
DEFAULT_MAX_LENGTH = 2048
"""Tokens of a sequence unless the model reads fewer; the reference implementation of RewardBench uses the same."""

Template = Literal["auto", "chat", "plain"]


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

    name = str(model)
    if isinstance(model, str | Path):
        loaded, tokenizer = load_reward_model(
            model,
            dtype=dtype,
            device=device,
            attention=attention,
            allow_untrained_head=allow_untrained_head,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
    elif tokenizer is None:
        raise ConfigError("A loaded model needs its tokenizer: evaluate(model, tokenizer=tokenizer, ...).")
    else:
        loaded, name = model, getattr(model, "name_or_path", "") or type(unwrap(model)).__name__

    longest = _longest(loaded, tokenizer, max_length)
    tokenizer, rendered = _choose_template(rows, tokenizer, suite, template)
    encoded = _encode(rows, tokenizer, as_chat=rendered != "none", max_length=longest)
    _check_vocabulary(loaded, encoded)
    total = 2 * len(rows)
    scores = score_pairs(
        loaded,
        encoded.chosen,
        encoded.rejected,
        batch_tokens=batch_tokens,
        progress=(lambda done: progress(done, total)) if progress else None,
    )
    records = pair_records(cast("Iterable[Row]", rows), suite, encoded.truncated, scores)
    inference = InferenceSettings(
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        attention=getattr(unwrap(loaded).config, "_attn_implementation", None),
        max_length=longest,
        batch_tokens=batch_tokens,
        batching=scores.batching,
        template=rendered,
        untrained_head=has_random_head(loaded),
    )
    table = ScoreTable(records, resamples=resamples, confidence=confidence, seed=seed)
    subsets, official = scores_by(table, "subset"), suite == "rewardbench"
    folder = Path(output_dir)
    written = write_jsonl(folder / PAIRS_FILE, records)
    if official:
        accuracies = {subset: score["value"] for subset, score in subsets.items()}
        write_json(folder / LEADERBOARD_FILE, rewardbench.leaderboard_record(accuracies, model=name), sort_keys=True)
    sections = table.sections() if official else {}
    summary = EvaluationSummary(
        schema_version=SCHEMA_VERSION,
        kind="evaluation",
        model=name,
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
        inference=inference,
        pairs_sha256=written.sha256,
        provenance=provenance(config={"model": name, **settings}, seed=seed, data=[report.to_dict()]),
    )
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _check_settings(settings: Mapping[str, Any]) -> None:
    problems = []
    if settings["suite"] not in SUITES:
        problems.append(f"suite must be one of {', '.join(SUITES)}, found '{settings['suite']}'")
    if settings["template"] not in ("auto", "chat", "plain"):
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


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """The number of tokens a sequence may have."""
    positions = max_positions(model)
    if max_length is not None:
        if positions is not None and max_length > positions:
            raise ConfigError(
                f"max_length is {max_length}, but the model reads at most {positions} tokens. Lower max_length."
            )
        return max_length
    return min(DEFAULT_MAX_LENGTH, tokenizer.model_max_length, positions or DEFAULT_MAX_LENGTH)


def _choose_template(
    rows: "Dataset", tokenizer: PreTrainedTokenizerBase, suite: str, template: Template
) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer to encode with, and whose chat template it applies: ``tokenizer``, ``built-in`` or ``none``."""
    conversations = isinstance(rows[0]["chosen"], list)
    if conversations and template == "plain":
        raise ConfigError("The pairs are conversations, which need a chat template: use template auto or chat.")
    own = bool(tokenizer.chat_template)
    if not (conversations or template == "chat" or (template == "auto" and suite == "rewardbench" and own)):
        return tokenizer, "none"
    if not conversations and "prompt" not in rows.column_names:
        raise ConfigError(
            "The pairs are plain text without a prompt, so no conversation can be made: use template plain."
        )
    if own:
        return tokenizer, "tokenizer"
    tokenizer = copy.deepcopy(tokenizer)  # the caller's stays as it is
    for message in prepare_tokenizer(tokenizer, conversational=True):
        logger.info("%s", message)
    return tokenizer, "built-in"


def _encode(rows: "Dataset", tokenizer: PreTrainedTokenizerBase, *, as_chat: bool, max_length: int) -> EncodedPairs:
    sides = []
    for name in ("chosen", "rejected"):
        texts: list[Any] = rows[name][:]
        if "prompt" in rows.column_names:
            texts = list(zip(rows["prompt"][:], texts, strict=True))
            texts = [as_conversation(*text) for text in texts] if as_chat else texts
        sides.append(encode_conversations(tokenizer, texts, max_length=max_length))
    (chosen, chosen_cut), (rejected, rejected_cut) = sides
    return EncodedPairs(chosen, rejected, [a or b for a, b in zip(chosen_cut, rejected_cut, strict=True)])


def _check_vocabulary(model: PreTrainedModel, encoded: EncodedPairs) -> None:
    """A token the embedding does not know would end in an index error, on a GPU without any explanation."""
    embedding: Any = model.get_input_embeddings()
    known = embedding.weight.shape[0]
    largest = max(max(row) for side in (encoded.chosen, encoded.rejected) for row in side)
    if largest >= known:
        raise ModelError(
            f"The tokenizer gave the token id {largest}, the model knows {known} tokens: they do not belong together."
        )
