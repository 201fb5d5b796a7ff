"""The pairs of an experiment: read once, shared out by prompt, and written to files that every run uses."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from normbt.encoding.sequences import common_prefix
from normbt.errors import DataError, StateError
from normbt.experiment.recipe import TrainingSet
from normbt.pairs import DataReport, as_conversation, read_pairs
from normbt.results import SCHEMA_VERSION, TrainingSetRecord, json_value, read_json, write_json, write_jsonl
from normbt.suites.clusters import prompt_cluster, prompt_text
from normbt.synthetic import SyntheticPair, generate_pairs

SHARES = ("train", "validation", "test")
SET_FILE = "set.json"


class PreparedSet(NamedTuple):
    """The files of a training set.

    Attributes:
        files: of each share that has pairs, by its name.
        record: what the files hold and where it comes from.
    """

    files: dict[str, Path]
    record: TrainingSetRecord


def prepare_set(one: TrainingSet, folder: Path) -> PreparedSet:
    """Write the shares of a training set, or find them written.

    A prompt goes to one share with all its pairs, so no held-out prompt is trained on. Prompts are the same where an
    evaluation puts their pairs into one cluster (:func:`normbt.suites.clusters.prompt_cluster`): case and white space
    do not count. Which share depends on the first spelling of the prompt and the seed alone. ``max_pairs`` are drawn
    from the training share after that.

    Args:
        one: which pairs, and which shares of them.
        folder: of the files ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``set.json``.

    Returns:
        Where the pairs are, and what became of the rows.

    Raises:
        DataError: the source cannot be read, or a share that is wanted came out empty.
        StateError: the folder holds other pairs or those of other settings.
    """
    rows, report = _rows(one)
    settings = json.loads(json.dumps(dataclasses.asdict(one)))  # as it will be read back
    record_file = folder / SET_FILE
    if record_file.exists():
        record: Any = read_json(record_file, kind="training_set")
        if (record["settings"], record["source"]["digest"]) != (settings, report.digest):
            raise StateError(
                f"{record_file} describes other pairs: the recipe or the data changed since they were written. "
                "Choose another output_dir, or delete this one to start again."
            )
    else:
        record = _write(one, settings, rows, report, folder)
    return PreparedSet({share: folder / f"{share}.jsonl" for share in SHARES if record["pairs"][share]}, record)


def share_of(prompt: Any, *, seed: int, validation: float, test: float) -> str:
    """The share that a prompt belongs to: ``train``, ``validation`` or ``test``.

    Args:
        prompt: text, or messages.
        seed: another seed shares out otherwise.
        validation: share of the prompts, in ``[0, 1)``.
        test: share of the prompts, in ``[0, 1)``.

    Returns:
        The name of the share; equal for equal arguments, on every machine.

    Example:
        >>> share_of("2+2?", seed=0, validation=0.0, test=0.0)
        'train'
    """
    text = f"{seed}\n{json.dumps(prompt, sort_keys=True)}"
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def without_answers(beginnings: Sequence[str]) -> list[str]:
    """Prompts from what two answers begin with, where the first words of the answers may stand at the end.

    Args:
        beginnings: the text that the two answers of each pair have in common.

    Returns:
        For each the shortest other beginning that it goes on from by no more than the length of that one, else itself;
        in lower case, with single spaces.

    Example:
        >>> without_answers(["Human: 2+2? Assistant: The", "Human: Hi", "Human: 2+2? Assistant: "])
        ['human: 2+2? assistant:', 'human: hi', 'human: 2+2? assistant:']
    """
    plain = [" ".join(text.split()).casefold() for text in beginnings]
    begun: list[str] = []  # each begins with the one before it
    shortest: dict[str, str] = {}
    for text in sorted(set(plain)):  # what begins with a text comes right behind it
        while begun and not text.startswith(begun[-1]):
            begun.pop()
        if not begun or len(text) > 2 * len(begun[-1]):
            begun.append(text)
        shortest[text] = begun[-1]
    return [shortest[text] for text in plain]


def _rows(one: TrainingSet) -> tuple[Sequence[Mapping[str, Any]], DataReport]:
    if one.built_in is not None:
        generated = [_conversation(pair) for pair in generate_pairs(one.built_in, seed=one.seed)]
        count = len(generated)
        return generated, DataReport("built-in pairs", form="conversations with a prompt", read=count, kept=count)
    rows, report = read_pairs(list(one.source), name=one.config, split=one.split)
    assert isinstance(report, DataReport)  # nothing is streamed here
    return rows, report  # type: ignore[return-value] - a Dataset is a sequence of its rows


def _conversation(pair: SyntheticPair) -> dict[str, Any]:
    row: dict[str, Any] = dict(pair)
    row["prompt"], row["chosen"] = as_conversation(pair["prompt"], pair["chosen"])
    _, row["rejected"] = as_conversation(pair["prompt"], pair["rejected"])
    return row


def _write(
    one: TrainingSet, settings: dict[str, Any], rows: Sequence[Mapping[str, Any]], report: DataReport, folder: Path
) -> TrainingSetRecord:
    places, left_out = _places(one, rows)
    wanted = {"train": True, "validation": one.validation > 0, "test": one.test > 0}
    if empty := [share for share in SHARES if wanted[share] and not places[share]]:
        raise DataError(f"{report.source}: no pair is left for {' and '.join(empty)} of {len(rows):,}. Use more pairs.")
    for share in SHARES:
        if places[share]:
            write_jsonl(folder / f"{share}.jsonl", (_writable(rows[place], report) for place in places[share]))
    record = TrainingSetRecord(
        schema_version=SCHEMA_VERSION,
        kind="training_set",
        settings=settings,
        source=report.to_dict(),
        pairs={share: len(places[share]) for share in SHARES},
        left_out=left_out,
    )
    write_json(folder / SET_FILE, record)  # last: where it is, the others are complete
    return record


def _places(one: TrainingSet, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[int]], int]:
    """The rows of each share, and how many of the training share the sample left out."""
    whole_texts = rows[0].get("prompt") is None and isinstance(rows[0]["chosen"], str)
    texts = without_answers([_prompt(row) for row in rows]) if whole_texts else None
    by_cluster: dict[str, str] = {}
    own: dict[str, list[int]] = {share: [] for share in SHARES}
    brought: dict[str, list[int]] = {share: [] for share in SHARES}
    for place, row in enumerate(rows):
        prompt = _prompt(row)
        text = texts[place] if texts else prompt_text({"prompt": prompt})
        alone = share_of(prompt, seed=one.seed, validation=one.validation, test=one.test)
        share = by_cluster.setdefault(prompt_cluster(text or ""), alone)
        (own if share == alone else brought)[share].append(place)
    # What the first spelling of its prompt brought here stands last: it does not shift the others under the sample.
    train = own["train"] + brought["train"]
    places = {share: sorted(own[share] + brought[share]) for share in SHARES}
    if one.max_pairs is None or one.max_pairs >= len(train):
        return places, 0
    return places | {"train": sorted(Random(one.seed).sample(train, one.max_pairs))}, len(train) - one.max_pairs


def _writable(row: Mapping[str, Any], report: DataReport) -> dict[str, Any]:
    values = {}
    for name, value in row.items():
        try:
            values[name] = json_value(value)
        except TypeError as problem:
            raise DataError(
                f"{report.source}: the column {name} holds {problem}, which a file of pairs cannot carry. "
                "Drop the column from the data."
            ) from problem
    return values


def _prompt(row: Mapping[str, Any]) -> Any:
    """The prompt of a pair; where the answers contain it, the messages or the text that both begin with.

    Two answers without a common beginning have no prompt: the chosen one stands for it.
    """
    if row.get("prompt") is not None:
        return row["prompt"]
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        shared = chosen[: common_prefix(chosen, rejected)]
        return shared if shared.strip() else chosen
    return chosen[: common_prefix(chosen[:-1], rejected[:-1])] or chosen
