"""Which records are right and wrong together."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any


def prompt_cluster(prompt: str) -> str:
    """Name of the cluster of all records asked with this prompt; case and white space do not count.

    Example:
        >>> prompt_cluster("Who are you?") == prompt_cluster("who  are you? ")
        True
    """
    return "prompt-" + hashlib.sha256(" ".join(prompt.split()).casefold().encode()).hexdigest()[:16]


def prompt_text(row: Mapping[str, Any]) -> str | None:
    """Text of what both answers of a pair reply to; None where prompt and answer are one text."""
    if "prompt" in row:
        return row["prompt"] if isinstance(row["prompt"], str) else _contents(row["prompt"])
    if isinstance(row["chosen"], str):
        return None
    shared = [one for one, other in zip(row["chosen"][:-1], row["rejected"][:-1], strict=False) if one == other]
    return _contents(shared)


def _contents(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(message.get("content") or "" for message in messages)
