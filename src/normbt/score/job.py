"""The job: rows in, chunk by chunk through the model, parts to the disk, joined in the order of the input."""

import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normbt.errors import ConfigError, DataError
from normbt.inference import TEMPLATES, RewardModel, Template, open_model
from normbt.moments import join_moments
from normbt.pairs import DataReport
from normbt.pairs.report import REASONS_KEPT
from normbt.pairs.sources import Source, open_source
from normbt.processes import Processes, running_processes
from normbt.results import (
    SCHEMA_VERSION,
    Normalisation,
    Parts,
    ScoringSummary,
    provenance,
    read_json,
    require_same_run,
    write_json,
    write_lines,
)
from normbt.score.chunks import ChunkScorer, Form, OnMalformed, add_counts, chunks_of, find_form
from normbt.score.normalisation import normalisation_path, read_normalisation, save_normalisation
from normbt.score.parquet import write_parquet
from normbt.scoring import DEFAULT_BATCH_TOKENS

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

OUTPUT_FORMATS = (".jsonl", ".parquet")
DEFAULT_CHUNK_ROWS = 4_096
"""Rows scored between two writes: what a killed run does again, and what is in memory at once."""
STDIN = "-"


def score_rows(
    model: str | Path | PreTrainedModel,
    *,
    data: "str | Path | Dataset",
    output: str | Path,
    split: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Template = "auto",
    column: str = "reward",
    on_malformed: OnMalformed = "skip",
    normalise: str | None = None,
    fit_normalisation: str | None = None,
    overwrite: bool = False,
    max_length: int | None = None,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    allow_untrained_head: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ScoringSummary:
    """Write a reward beside every row of a file, whatever its size.

    Rows go through the model in chunks. Each finished chunk is a file of its own in ``OUTPUT.parts``, written whole or
    not at all; when all are there they are joined to the output, and a summary beside it is written last. A run that
    was killed goes on with the missing chunks, and gives the same file as one that was not. Processes that
    ``accelerate launch`` or ``torchrun`` started take turns with the chunks; the result is the same for any number of
    them but for rounding.

    Args:
        model: folder, adapter folder or Hub id of a reward model, or a loaded one (then with its ``tokenizer``).
        data: file, folder or Hub id, ``"-"`` for JSON lines from the standard input, or a loaded data set. Rows are
            pairs or answers, see :mod:`normbt.pairs.texts`.
        output: the file of rewards, ``.jsonl`` or ``.parquet``: every row as it was, with the added columns.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.
        tokenizer: of a loaded model.
        template: how plain text is rendered; ``"auto"`` joins it as it is, as training on plain text does.
        column: name of the reward's column. A pair gets ``COLUMN_chosen`` and ``COLUMN_rejected``.
        on_malformed: ``"skip"`` leaves rows out that cannot be scored, counts them and names the first; ``"stop"``
            refuses the data at the first.
        normalise: name of a data set in the model's ``reward_normalisation.json``; rewards become
            ``(reward - mean) / std``.
        fit_normalisation: save mean and deviation of these rewards under this name beside the model.
        overwrite: start anew, whatever an earlier run, finished or not, left at ``output``.
        max_length: most tokens of a sequence, as in :func:`normbt.inference.open_model`.
        batch_tokens: most tokens of a batch.
        chunk_rows: rows of a chunk.
        dtype: as in :func:`normbt.loading.load_reward_model`, like all that follow.
        device: where to run.
        attention: implementation of attention.
        allow_untrained_head: score with a checkpoint without a head, as a baseline.
        seed: of that head.
        trust_remote_code: run code of the checkpoint.
        progress: called with the number of rows that are done.

    Returns:
        The summary, as written.

    Raises:
        ConfigError: a setting is unknown or does not fit.
        DataError: the data cannot be read, or no row can be scored.
        ModelError: the model cannot be loaded or has no usable head.
        StateError: what is at ``output`` belongs to another input or other settings.
    """
    settings: dict[str, Any] = {
        "split": split,
        "template": template,
        "column": column,
        "on_malformed": on_malformed,
        "normalise": normalise,
        "max_length": max_length,
        "batch_tokens": batch_tokens,
        "chunk_rows": chunk_rows,
        "dtype": dtype,
        "attention": attention,
        "allow_untrained_head": allow_untrained_head,
        "seed": seed,
        "overwrite": overwrite,
    }
    target = Path(output)
    _check_settings(settings, target)
    if fit_normalisation is not None:
        _check_fit(str(model), normalise)
    processes = running_processes()
    with ExitStack() as stack:
        source = _open(data, split, target, processes, stack)
        form = find_form(source)
        scorer = open_model(
            model,
            tokenizer=tokenizer,
            max_length=max_length,
            dtype=dtype,
            device=device or processes.device,
            attention=attention,
            allow_untrained_head=allow_untrained_head,
            seed=seed,
            trust_remote_code=trust_remote_code,
        ).with_template(template, conversations=form.conversational, has_prompt=form.explicit)
        if processes.is_main and scorer.template == "none" and scorer.tokenizer.chat_template:
            logger.info(
                "Plain text is joined as it is, as training on plain text does. This tokenizer has a chat template: "
                "for a model that was trained on conversations use --template chat."
            )
        weights = scorer.fingerprint()
        applied = None if normalise is None else read_normalisation(str(model), normalise, weights=weights)
        run = _run_record(source, scorer, weights, settings, applied)
        summary = _summary_of_earlier_run(target, run, overwrite=overwrite)
        processes.wait()  # nobody writes before all have seen what is there
        if summary is None:
            chunks = ChunkScorer(scorer, form, column, batch_tokens, on_malformed, source.label, source.split, applied)
            summary = _score_source(source, chunks, Parts(target, run), settings, chunk_rows, processes, progress)
        elif processes.is_main:
            logger.info("%s is complete already; nothing was scored.", target)
            Parts(target, run).remove()
        if processes.is_main and fit_normalisation is not None:
            _fit(summary, fit_normalisation)
        return summary


def _score_source(
    source: Source,
    chunks: ChunkScorer,
    parts: Parts,
    settings: Mapping[str, Any],
    chunk_rows: int,
    processes: Processes,
    progress: Callable[[int], None] | None,
) -> ScoringSummary:
    """Make the parts that are missing, join all, and write the summary."""
    if processes.is_main:
        _clear(parts, overwrite=settings["overwrite"])
        if parts.begin(overwrite=settings["overwrite"]):
            logger.info("Going on with the run that was cut: finished chunks are kept.")
    processes.wait()
    count = rows = 0
    for number, chunk in enumerate(chunks_of(source.rows(), chunk_rows)):
        if number % processes.count == processes.index and not parts.has(number):
            parts.write(number, *chunks.run(chunk, _counting_from(rows, chunks.form, progress)))
        count, rows = number + 1, rows + len(chunk)
        if progress is not None:
            progress(rows)
    processes.wait()
    summary_path = _summary_path(parts.output)
    if processes.is_main:
        digest = _join(parts, count)
        headers = list(parts.headers(count))
        write_json(summary_path, _summary(headers, chunks, source, parts, digest, settings))
        parts.remove()
    processes.wait()
    return cast(ScoringSummary, read_json(summary_path, kind="scoring"))


def _counting_from(start: int, form: Form, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """From sequences of a chunk to rows of the source."""
    return None if progress is None else lambda done: progress(start + done // form.sides)


def _check_settings(settings: Mapping[str, Any], target: Path) -> None:
    problems = []
    if settings["template"] not in TEMPLATES:
        problems.append(f"template must be {', '.join(TEMPLATES)}, found '{settings['template']}'")
    if settings["on_malformed"] not in ("skip", "stop"):
        problems.append(f"on_malformed must be skip or stop, found '{settings['on_malformed']}'")
    for name in ("max_length", "batch_tokens", "chunk_rows"):
        if settings[name] is not None and settings[name] < 1:
            problems.append(f"{name} must be at least 1, found {settings[name]}")
    if not settings["column"]:
        problems.append("column must be a name")
    if target.suffix not in OUTPUT_FORMATS:
        problems.append(f"the output must be named {' or '.join(OUTPUT_FORMATS)}, found '{target.name}'")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _check_fit(model: str, normalise: str | None) -> None:
    if normalise is not None:
        raise ConfigError(
            "fit_normalisation needs the rewards as the model gives them: leave normalise out of this run."
        )
    normalisation_path(model)


def _open(
    data: "str | Path | Dataset", split: str | None, target: Path, processes: Processes, stack: ExitStack
) -> Source:
    if data == STDIN:
        if processes.count > 1:
            raise ConfigError("Several processes cannot share the standard input: save it to a file.")
        # Read again for every pass over it, and its digest is asked for: so it goes to a file first.
        target.parent.mkdir(parents=True, exist_ok=True)
        spooled = target.with_name(f"{target.name}.stdin.jsonl")
        stack.callback(spooled.unlink, missing_ok=True)
        with spooled.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        return replace(open_source(spooled, name=None, split=split, streaming=False), label="standard input")
    source = open_source(data, name=None, split=split, streaming=False)
    if source.digest is None:
        raise DataError(
            f"{source.label}: a stream cannot be read again from where a killed run stopped. Save it to a file, or "
            "pass a data set that is loaded."
        )
    return source


def _run_record(
    source: Source,
    scorer: RewardModel,
    fingerprint: str,
    settings: Mapping[str, Any],
    applied: Normalisation | None,
) -> dict[str, Any]:
    """Everything that decides what a row of the output is."""
    inference = scorer.settings(batch_tokens=settings["batch_tokens"], batching="")
    return {
        "schema_version": SCHEMA_VERSION,
        "data_sha256": source.digest,
        **{name: value for name, value in settings.items() if name != "overwrite"},
        "weights": fingerprint,
        "max_length": scorer.max_length,
        "dtype": inference["dtype"],
        "device": scorer.model.device.type,
        "attention": inference["attention"],
        "template": scorer.template,
        "normalise": None if applied is None else [applied["mean"], applied["std"]],
    }


def _summary_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.summary.json")


def _summary_of_earlier_run(target: Path, run: Mapping[str, Any], *, overwrite: bool) -> ScoringSummary | None:
    """The summary of a finished run of the same data and settings; None when there is still something to do."""
    path = _summary_path(target)
    if not (path.is_file() and target.is_file()):
        return None
    summary = cast(ScoringSummary, read_json(path, kind="scoring"))
    if overwrite:
        return None
    require_same_run(summary["run"], run, path)
    return summary


def _clear(parts: Parts, *, overwrite: bool) -> None:
    """Remove an output that is to be made anew, and refuse one that somebody else made."""
    if parts.output.exists() and not overwrite and not parts.folder.is_dir():
        raise ConfigError(
            f"{parts.output} is there already and no run of normbt says so. Choose another name or --overwrite."
        )
    _summary_path(parts.output).unlink(missing_ok=True)
    parts.output.unlink(missing_ok=True)


def _join(parts: Parts, count: int) -> str:
    """Make the output of all parts, whole or not at all; its SHA-256."""
    joined = parts.folder / f"joined{parts.output.suffix}"
    if parts.output.suffix == ".parquet":
        write_parquet(joined, lambda: parts.lines(count))
        with joined.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    else:
        digest = write_lines(joined, parts.lines(count)).sha256
    joined.replace(parts.output)
    return digest


def _summary(
    headers: Sequence[Mapping[str, Any]],
    chunks: ChunkScorer,
    source: Source,
    parts: Parts,
    digest: str,
    settings: Mapping[str, Any],
) -> ScoringSummary:
    counts = add_counts(header["counts"] for header in headers)
    reasons = [reason for header in headers for reason in header["reasons"]][:REASONS_KEPT]
    report = DataReport(
        source.label,
        source.digest,
        str(chunks.form),
        read=counts["read"],
        kept=counts["scored"],
        malformed=counts["malformed"],
        truncated=counts["truncated"],
        other_split=counts["other_split"],
        reasons=tuple((reason["row"], reason["reason"]) for reason in reasons),
    )
    name, batch_tokens = chunks.model.name, chunks.batch_tokens
    batching = "packed" if any(header["batching"] == "packed" for header in headers) else "padded"
    config = {"model": name, "output": str(parts.output), **settings}
    return ScoringSummary(
        schema_version=SCHEMA_VERSION,
        kind="scoring",
        model=name,
        output=str(parts.output),
        output_sha256=digest,
        column=chunks.column,
        form=str(chunks.form),
        counts=counts,
        reasons=reasons,
        rewards=join_moments(header["rewards"] for header in headers),
        normalisation=chunks.normalisation,
        inference=chunks.model.settings(batch_tokens=batch_tokens, batching=batching),
        run=parts.run,
        provenance=provenance(config=config, seed=settings["seed"], data=[report.to_dict()]),
    )


def _fit(summary: ScoringSummary, name: str) -> None:
    data = summary["provenance"]["data"][0]
    entry = save_normalisation(
        summary["model"],
        name,
        summary["rewards"],
        data=data["source"],
        digest=data["digest"],
        weights=summary["run"]["weights"],
    )
    logger.info("Saved mean %.6g and deviation %.6g as '%s' beside the model.", entry["mean"], entry["std"], name)
