"""The job: candidates from a file, the built-in generator, a model or a server; scores; curves; files."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from normbt.best_of_n.candidates import read_prompts, sample_candidates, write_synthetic
from normbt.best_of_n.curves import Curves
from normbt.best_of_n.pool import Pool, read_pool
from normbt.best_of_n.table import render_markdown
from normbt.errors import ConfigError
from normbt.moments import moments_of
from normbt.pairs import open_source
from normbt.pairs.check import belongs
from normbt.pairs.files import Unreadable
from normbt.results import (
    BEST_OF_N_FILE,
    CANDIDATES_FILE,
    CURVES_FILE,
    SCHEMA_VERSION,
    BestOfNSummary,
    provenance,
    write_json,
    write_jsonl,
    write_lines,
)

logger = logging.getLogger(__name__)

GOLD, PROXY = "gold", "proxy"
MARKDOWN_FILE = "best_of_n.md"
Template = Literal["auto", "chat", "plain"]


class Sampling(NamedTuple):
    """How answers are sampled from a policy.

    Attributes:
        samples: answers to each prompt.
        temperature: of the sampling, above 0.
        top_p: share of the probability that is sampled from, in ``(0, 1]``.
        max_new_tokens: most tokens of an answer.
        batch_sequences: answers a local model makes at once.
        template: whether prompts go through the policy's chat template.
        limit: sample answers to so many prompts, drawn at random; None for all.
        parallel: requests to a server under way at once.
        api_key: key for the server; None sends none.
    """

    samples: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    batch_sequences: int = 32
    template: Template = "auto"
    limit: int | None = None
    parallel: int = 8
    api_key: str | None = None


def best_of_n(
    *,
    output_dir: str | Path,
    candidates: str | Path | None = None,
    synthetic: int | None = None,
    prompts: str | Path | None = None,
    policy: str | None = None,
    server: str | None = None,
    sampling: Sampling | None = None,
    proxies: Sequence[str] = (),
    gold: str | None = None,
    proxy_models: Mapping[str, str] | None = None,
    gold_model: str | None = None,
    sizes: Sequence[int] | None = None,
    split: str | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    overwrite: bool = False,
    scoring: Mapping[str, Any] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> BestOfNSummary:
    """Curves of what choosing the best of n answers by a proxy is worth, and the files that hold them.

    Args:
        output_dir: folder of the result files.
        candidates: file, folder or Hub id of candidates; or one of the next two.
        synthetic: make candidates for so many prompts with the built-in generator, whose true reward is the gold.
        prompts: file of prompts that `policy` answers.
        policy: causal language model; with `server` the name of the served model.
        server: address of a server that speaks OpenAI's protocol.
        sampling: how candidates are made.
        proxies: columns of scores that choose; empty takes ``proxy`` where candidates are given and no model.
        gold: column of what an answer is worth; None takes ``gold`` where there is one.
        proxy_models: reward models that score the candidates, by the name of their column.
        gold_model: reward model that gives the column ``gold``.
        sizes: numbers n; None for the powers of two up to half of what the median prompt has.
        split: split of the candidates or prompts to read.
        resamples: number of bootstrap resamples of the prompts.
        confidence: coverage of the intervals.
        seed: of sampling and resampling.
        overwrite: throw away candidates and scores that a run with other settings left.
        scoring: settings of :func:`normbt.score.score_rows` for the models.
        progress: called with a stage and the number of its units that are done.

    Returns:
        The summary, as written.

    Raises:
        ConfigError: a setting does not fit, or n is too large for the candidates.
        DataError: candidates or prompts cannot be read.
        ModelError: a model cannot be loaded.
        StateError: what is in `output_dir` belongs to another run.
    """
    sampling = sampling or Sampling()
    models = dict(proxy_models or {})
    settings: dict[str, Any] = {
        "candidates": None if candidates is None else str(candidates),
        "synthetic": synthetic,
        "prompts": None if prompts is None else str(prompts),
        "policy": policy,
        "server": server,
        **{name: value for name, value in sampling._asdict().items() if value is not None},
        "proxies": list(proxies),
        "gold": gold,
        "proxy_models": models,
        "gold_model": gold_model,
        "sizes": None if sizes is None else list(sizes),
        "split": split,
        "resamples": resamples,
        "confidence": confidence,
        "scoring": dict(scoring or {}),
    }
    _check(settings, sampling)
    folder = Path(output_dir)
    source = _candidates(folder, settings, sampling, seed=seed, overwrite=overwrite, progress=progress)
    columns = list(proxies) or ([PROXY] if candidates is not None and not models else [])
    source, split = _scored(source, folder, settings, overwrite=overwrite, progress=progress)
    gold = _gold_column(source, split, gold, known=synthetic is not None or gold_model is not None)
    pool = read_pool(source, proxies=[*columns, *models], gold=gold, split=split)
    curves = Curves(pool, sizes, resamples=resamples, confidence=confidence, seed=seed)
    summary = _summary(pool, curves, gold, settings, resamples=resamples, seed=seed)
    points = curves.points()
    write_jsonl(folder / CURVES_FILE, points)
    write_lines(folder / MARKDOWN_FILE, [render_markdown(summary, points)])
    write_json(folder / BEST_OF_N_FILE, summary)
    return summary


def _check(settings: Mapping[str, Any], sampling: Sampling) -> None:
    problems = []
    sources = [name for name in ("candidates", "synthetic", "prompts") if settings[name] is not None]
    if len(sources) != 1:
        problems.append(f"give one of candidates, synthetic and prompts, found {' and '.join(sources) or 'none'}")
    if (settings["prompts"] is None) != (settings["policy"] is None):
        problems.append("prompts and policy go together: a policy answers prompts")
    if settings["server"] is not None and settings["policy"] is None:
        problems.append("server needs policy, the name of the model it serves")
    if sampling.temperature <= 0:
        problems.append(f"temperature must be above 0 (equal answers are no choice), found {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        problems.append(f"top_p must be above 0 and at most 1, found {sampling.top_p}")
    for name in ("samples", "max_new_tokens", "batch_sequences", "parallel", "resamples", "synthetic", "limit"):
        if settings.get(name) is not None and settings[name] < 1:
            problems.append(f"{name} must be at least 1, found {settings[name]}")
    if not 0 < settings["confidence"] < 1:
        problems.append(f"confidence must be between 0 and 1, found {settings['confidence']}")
    if settings["gold_model"] is not None and settings["gold"] not in (None, GOLD):
        problems.append("gold names a column and gold_model makes one: give one of the two")
    if taken := {GOLD} & set(settings["proxy_models"]):
        problems.append(f"a proxy cannot be named {taken.pop()}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append("best-of-n is one process: share the scoring with normbt score, then give its output here")
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _candidates(
    folder: Path,
    settings: Mapping[str, Any],
    sampling: Sampling,
    *,
    seed: int,
    overwrite: bool,
    progress: Callable[[str, int], None] | None,
) -> str | Path:
    if settings["candidates"] is not None:
        return settings["candidates"]
    target = folder / CANDIDATES_FILE
    if settings["synthetic"] is not None:
        write_synthetic(target, prompts=settings["synthetic"], samples=sampling.samples, seed=seed)
        return target
    prompts, digest = read_prompts(settings["prompts"], split=settings["split"], limit=sampling.limit, seed=seed)
    sample_candidates(
        _sampler(settings, sampling),
        prompts,
        target,
        samples=sampling.samples,
        seed=seed,
        digest=digest,
        split=settings["split"],
        overwrite=overwrite,
        progress=None if progress is None else lambda done: progress("sampling prompts", done),
    )
    return target


def _sampler(settings: Mapping[str, Any], sampling: Sampling) -> Any:
    how = {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_new_tokens")}
    if settings["server"] is not None:
        from normbt.best_of_n.server import ServerSampler

        return ServerSampler(
            settings["server"],
            settings["policy"],
            plain=sampling.template == "plain",
            api_key=sampling.api_key,
            parallel=sampling.parallel,
            **how,
        )
    # Imported here: curves from a file need no torch.
    from normbt.best_of_n.policy import PolicySampler

    scoring = settings["scoring"]
    return PolicySampler(
        settings["policy"],
        template=sampling.template,
        batch_sequences=sampling.batch_sequences,
        dtype=scoring.get("dtype", "auto"),
        device=scoring.get("device"),
        trust_remote_code=scoring.get("trust_remote_code", False),
        **how,
    )


def _scored(
    source: str | Path,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
    progress: Callable[[str, int], None] | None,
) -> tuple[str | Path, str | None]:
    """The candidates with a column for each model, one model after another, and the split that is left to read."""
    models = {**settings["proxy_models"], **({GOLD: settings["gold_model"]} if settings["gold_model"] else {})}
    split = settings["split"] if settings["candidates"] is not None else None
    if models:
        from normbt.score import score_rows
    for name, model in models.items():
        target = folder / "scored" / f"{name}.jsonl"
        score_rows(
            model,
            data=source,
            output=target,
            split=split,
            column=name,
            on_malformed="stop",
            overwrite=overwrite,
            progress=None if progress is None else lambda done, name=name: progress(f"scoring with {name}", done),
            **settings["scoring"],
        )
        source, split = target, None
    return source, split


def _gold_column(source: str | Path, split: str | None, gold: str | None, *, known: bool) -> str | None:
    """The gold column: the one that was named, else ``gold`` where the candidates have it."""
    if gold is not None or known:
        return gold or GOLD
    opened = open_source(source, name=None, split=split, streaming=False)
    readable = (row for row in opened.rows() if not isinstance(row.value, Unreadable) and belongs(row, opened.split))
    first = next(readable, None)
    if first is not None and GOLD in first.value:
        return GOLD
    logger.info("The candidates have no gold score: curves of the proxies' own scores only.")
    return None


def _summary(
    pool: Pool, curves: Curves, gold: str | None, settings: Mapping[str, Any], *, resamples: int, seed: int
) -> BestOfNSummary:
    spread = {name: moments_of(scores) for name, scores in pool.scores.items()}
    if pool.gold is not None:
        spread[GOLD] = moments_of(pool.gold)
    return BestOfNSummary(
        schema_version=SCHEMA_VERSION,
        kind="best-of-n",
        candidates=pool.report.source,
        proxies=list(pool.scores),
        gold=gold,
        sizes=curves.sizes,
        counts=curves.counts(),
        reasons=[f"row {number}: {reason}" for number, reason in pool.report.reasons],
        spread=spread,
        ties=curves.ties(),
        agreement=curves.agreement(),
        differences=curves.differences(),
        confidence=curves.confidence,
        resamples=resamples,
        provenance=provenance(config=settings, seed=seed, data=[pool.report.to_dict()]),
    )
