"""Prompts in, candidates out: a resumable file of several answers to every prompt."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from normbt.errors import DataError
from normbt.pairs import open_source
from normbt.pairs.check import Malformed, belongs, no_row_of_split, require_storable
from normbt.pairs.files import Unreadable
from normbt.pairs.report import readable
from normbt.results import Parts, read_json, require_same_run, write_json, write_jsonl, write_lines
from normbt.synthetic import generate_candidates

logger = logging.getLogger(__name__)

RECORD_FILE = "candidates.run.json"


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: text, or messages that end with the user's."""

    identity: str
    prompt: str | list[dict[str, Any]]


@dataclass(frozen=True)
class Answer:
    """A sampled answer, whether it came to its end, and its length in tokens if that is known."""

    text: str
    finished: bool
    tokens: int | None = None


class Sampler(Protocol):
    """Answers several prompts several times each."""

    prompts_per_part: int

    def describe(self) -> dict[str, Any]:
        """Every setting that decides the answers, by name."""
        ...

    def __call__(self, prompts: Sequence[Prompt], samples: int, *, seed: int) -> list[list[Answer]]:
        """The answers to each prompt."""
        ...


def read_prompts(
    source: str | Path, *, split: str | None = None, limit: int | None = None, seed: int = 0
) -> tuple[list[Prompt], str | None]:
    """Prompts of a file, folder or Hub id: rows with ``prompt``, text or messages, and if there is one an id.

    Args:
        source: where the rows are.
        split: split to read, as in :func:`normbt.pairs.read_pairs`.
        limit: take a random sample of so many prompts; None for all.
        seed: of the sample.

    Returns:
        The prompts and the digest of the source.

    Raises:
        DataError: there is no prompt, a row has none, a prompt is empty or does not end with the user's message, or an
            id is used twice, or one of them is not valid Unicode.
    """
    opened = open_source(source, name=None, split=split, streaming=False)
    prompts: dict[str, Prompt] = {}
    others = 0
    for row in opened.rows():
        if isinstance(row.value, Unreadable):
            raise DataError(f"{opened.label} row {row.number}: {row.value.reason}.")
        if not belongs(row, opened.split):
            others += 1
            continue
        prompt = row.value.get("prompt")
        last = prompt[-1] if isinstance(prompt, list) and prompt else None
        ends_with_user = isinstance(last, Mapping) and last.get("role") == "user"
        if not (ends_with_user or (isinstance(prompt, str) and prompt.strip())):
            raise DataError(
                f'{opened.label} row {row.number}: wanted a "prompt", text or messages that end with the user, found '
                f"{type(prompt).__name__}. Columns: {readable(', '.join(map(str, row.value)))}."
            )
        named = row.value.get("prompt_id", row.value.get("id"))
        identity = f"row-{row.number}" if named is None else str(named)
        try:
            require_storable("prompt", prompt)
            require_storable("id", identity)
        except Malformed as problem:
            raise DataError(f"{opened.label} row {row.number}: {problem}. Mend the row, or take it out.") from problem
        if identity in prompts:
            raise DataError(f'{opened.label} row {row.number}: the prompt id "{identity}" was used before.')
        prompts[identity] = Prompt(identity, prompt)  # type: ignore[arg-type] - checked above
    if not prompts:
        raise no_row_of_split(opened.label, others) if others else DataError(f"{opened.label}: it holds no prompt.")
    found = list(prompts.values())
    if limit is not None and limit < len(found):
        drawn = np.random.default_rng(seed).permutation(len(found))[:limit]
        found = [found[place] for place in sorted(drawn.tolist())]
    return found, opened.digest


def sample_candidates(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    target: Path,
    *,
    samples: int,
    seed: int,
    digest: str | None,
    split: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write several answers to every prompt, some prompts at a time; a killed run goes on with the rest.

    Args:
        sampler: what answers.
        prompts: what is answered.
        target: the file, ``.jsonl``.
        samples: answers to each prompt.
        seed: of the sampling; each group of prompts has its own, so that a run that goes on gives the same answers.
        digest: of the source of the prompts.
        split: of the source that the prompts are.
        overwrite: throw away what a run with other settings left.
        progress: called with the number of prompts that are done.

    Raises:
        StateError: the file, or what was begun of it, belongs to other prompts or settings.
    """
    run = {
        "data_sha256": digest,
        "split": split,
        "prompts_sha256": _digest(prompts),
        "number_of_prompts": len(prompts),
        "samples": samples,
        "seed": seed,
        **sampler.describe(),
    }
    parts, record = Parts(target, run), target.with_name(RECORD_FILE)
    if record.is_file() and target.is_file():
        found = read_json(record)
        if found == parts.run:
            logger.info("%s is complete already; nothing was sampled.", target)
            return
        if not overwrite:
            require_same_run(found, parts.run, record)
    parts.begin(overwrite=overwrite)
    starts = range(0, len(prompts), sampler.prompts_per_part)
    for number, start in enumerate(starts):
        group = prompts[start : start + sampler.prompts_per_part]
        if not parts.has(number):
            answers = sampler(group, samples, seed=_seed_of_part(seed, number))
            parts.write(number, {"prompts": len(group)}, _rows(group, answers))
        if progress is not None:
            progress(start + len(group))
    record.unlink(missing_ok=True)
    write_lines(target, parts.lines(len(starts)))
    write_json(record, parts.run)
    parts.remove()


def write_synthetic(target: Path, *, prompts: int, samples: int, seed: int) -> None:
    """Write the built-in generator's candidates; their true reward is the column ``gold``."""
    rows = generate_candidates(prompts, samples, seed=seed)
    write_jsonl(
        target, ({"gold" if name == "true_reward" else name: cell for name, cell in row.items()} for row in rows)
    )


def _rows(prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer]]) -> Iterator[Mapping[str, Any]]:
    for prompt, several in zip(prompts, answers, strict=True):
        for index, answer in enumerate(several):
            yield {
                "id": f"{prompt.identity}/{index}",
                "prompt_id": prompt.identity,
                "prompt": prompt.prompt,
                "response": answer.text,
                "finished": answer.finished,
                "tokens": answer.tokens,
            }


def _digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of what is asked, in order, with the ids: equal for equal candidates."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.identity, prompt.prompt]).encode() + b"\n")
    return digest.hexdigest()


def _seed_of_part(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
