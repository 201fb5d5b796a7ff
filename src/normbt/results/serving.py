"""The file by which any server can be compared with the model it serves: every field with its type."""

from pathlib import Path
from typing import TypedDict

from normbt.errors import DataError
from normbt.results.files import read_json
from normbt.results.origin import Provenance

EXPECTED_FILE = "expected_scores.json"


class ExpectedScore(TypedDict):
    """What a model makes of one text."""

    name: str
    prompt: str
    response: str
    text: str | None
    add_special_tokens: bool
    token_ids: list[int]
    score: float
    misreadings: dict[str, float]


class ExpectedScores(TypedDict):
    """``expected_scores.json``, beside a model."""

    schema_version: int
    kind: str
    dtype: str
    conversational: bool
    scores: list[ExpectedScore]
    provenance: Provenance


def read_expected_scores(folder: str | Path) -> ExpectedScores:
    """The expected scores beside a checkpoint.

    Args:
        folder: the checkpoint.

    Returns:
        The record.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = Path(folder) / EXPECTED_FILE
    if not path.is_file():
        raise DataError(
            f"{path}: no such file. normbt train writes it; for another model, see write_expected_scores in "
            "docs/serving.md."
        )
    record = read_json(path, kind="expected_scores")
    try:
        whole = all(ExpectedScore.__required_keys__ <= score.keys() for score in record["scores"])
        if not whole or not record["scores"]:
            raise KeyError("scores")
    except (KeyError, TypeError, AttributeError) as problem:
        raise DataError(f"{path}: not the expected scores of a model ({problem!r}). Write it again.") from problem
    return record  # type: ignore[return-value] - the fields that are used were looked at
