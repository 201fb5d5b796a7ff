"""Score one suite: rewards, records, scores, files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from normbt.evaluate.answers import Answers, Progress, score_items
from normbt.evaluate.data import SuiteData
from normbt.evaluate.determinism import check_determinism
from normbt.evaluate.records import make_records
from normbt.evaluate.summary import ScoreTable
from normbt.inference import RewardModel
from normbt.processes import Processes
from normbt.results import (
    DATA_REPORT_FILE,
    DETERMINISM_FILE,
    LEADERBOARD_FILE,
    PAIRS_FILE,
    PROMPTS_FILE,
    SCHEMA_VERSION,
    SUMMARY_FILE,
    EvaluationSummary,
    provenance,
    read_json,
    write_json,
    write_jsonl,
)
from normbt.suites import PairSuite


def run_suite(
    opened: RewardModel,
    read: SuiteData,
    folder: Path,
    settings: Mapping[str, Any],
    training_seed: int | None,
    processes: Processes,
    progress: Progress | None,
) -> EvaluationSummary:
    """Score one suite with a loaded model and write its files, the summary last.

    Processes share the scoring; the main one does the rest while the others wait.

    Args:
        opened: the model.
        read: the suite and its items.
        folder: where the files go.
        settings: of the job, as :func:`normbt.evaluate.evaluate` takes them.
        training_seed: seed the model was trained with, where it is known.
        processes: those that share the scoring.
        progress: called with the number of sequences done and in all.

    Returns:
        The summary, as written; in every process.
    """
    suite, items = read.suite, read.items
    in_pairs = isinstance(suite, PairSuite)
    scorer = opened.with_template(
        settings["template"],
        conversations=isinstance(items[0].chosen[0], list),
        has_prompt=items[0].prompt is not None,
        chat_by_default=suite.chat,
    )
    answers = score_items(
        scorer,
        items,
        in_pairs=in_pairs,
        batch_tokens=settings["batch_tokens"],
        processes=processes,
        progress=progress,
    )
    return processes.main_only(lambda: _write(scorer, read, answers, folder, settings, training_seed))


def _write(
    scorer: RewardModel,
    read: SuiteData,
    answers: Answers,
    folder: Path,
    settings: Mapping[str, Any],
    training_seed: int | None,
) -> EvaluationSummary:
    """Summarise what was scored and write the files."""
    suite, items = read.suite, read.items
    records = make_records(suite, items, answers)
    seed, resamples, confidence = settings["seed"], settings["resamples"], settings["confidence"]
    determinism = None
    if settings["check_determinism"]:
        determinism, rescored = check_determinism(scorer, items, answers, seed=seed)
        write_jsonl(folder / DETERMINISM_FILE, rescored)

    table = ScoreTable(suite, records, resamples=resamples, confidence=confidence, seed=seed)
    headline = table.outcomes.headline()
    score, sections, details = (
        table.score(headline),
        table.scores(table.outcomes.sections()),
        table.scores(table.outcomes.details()),
    )
    subsets, records_file = table.by("subsets"), PAIRS_FILE if isinstance(suite, PairSuite) else PROMPTS_FILE
    inference = scorer.settings(batch_tokens=settings["batch_tokens"], batching=answers.batching)
    written = write_jsonl(folder / records_file, records)
    flat = suite.leaderboard(
        {
            kind: {name: one["value"] for name, one in scores.items()}
            for kind, scores in (("sections", sections), ("details", details), ("subsets", subsets))
        },
        headline=score["value"],
        model=scorer.name,
        template=inference["template"],
    )
    if flat is not None:
        write_json(folder / LEADERBOARD_FILE, flat, sort_keys=True)
    config = {"model": scorer.name, **settings, "suite": suite.name, "output_dir": str(folder)}
    summary = EvaluationSummary(
        schema_version=SCHEMA_VERSION,
        kind="evaluation",
        model=scorer.name,
        suite=suite.name,
        tie_policy=suite.tie_policy,
        headline=headline.name,
        score=score,
        accuracy=table.score(table.outcomes.accuracy()),
        sections=sections,
        details=details,
        categories=table.by("categories"),
        subsets=subsets,
        sources=table.by("sources"),
        coverage=suite.coverage(records),
        confidence=confidence,
        resamples=resamples,
        inference=inference,
        determinism=determinism,
        training_seed=training_seed,
        records_file=records_file,
        pairs_sha256=written.sha256,
        provenance=provenance(config=config, seed=seed, data=[read.report.to_dict()]),
    )
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def training_seed(model: str | Path | PreTrainedModel) -> int | None:
    """The seed a model of ours was trained with, from the report beside it; None where there is none."""
    if not isinstance(model, str | Path):
        return None
    folder = Path(model)
    # A checkpoint lies in the folder of its run.
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        if (place / DATA_REPORT_FILE).is_file():
            return read_json(place / DATA_REPORT_FILE, kind="training")["provenance"]["seed"]
    return None
