"""What people read of a pair: its prompt and answers as text, how alike the answers are, and where it belongs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rapidfuzz.distance import Indel

from normbt.suites import rewardbench
from normbt.suites.clusters import prompt_cluster

Row = Mapping[str, Any]

# Scripts without spaces between words (kana and ideographs) count character by character, as does punctuation: one
# flipped comparison in a program is one word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


class PairTexts(NamedTuple):
    """A pair as people read it; ``prompt`` is None where each answer is a whole text."""

    prompt: str | None
    chosen: str
    rejected: str


class Place(NamedTuple):
    """Where a pair belongs: columns of the data, and the cluster it is resampled with."""

    source: str | None
    category: str | None
    subset: str | None
    cluster_id: str


def pair_texts(row: Row) -> PairTexts:
    """Prompt and answers as people read them; messages as ``role: text``, a line each.

    Args:
        row: a pair as it was read. Of two complete conversations the messages they begin with are the prompt.

    Example:
        >>> messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
        >>> pair_texts({"chosen": messages, "rejected": [messages[0], {"role": "assistant", "content": "5"}]})
        PairTexts(prompt='user: 2+2?', chosen='assistant: 4', rejected='assistant: 5')
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None and not isinstance(chosen, str):
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return PairTexts(None if prompt is None else _text(prompt), _text(chosen), _text(rejected))


def word_similarity(one: str, other: str) -> float:
    r"""How alike two texts are, word by word.

    .. math:: s = \frac{2\,|\mathrm{LCS}(a, b)|}{|a| + |b|}

    where a and b are the words of the texts (marks of punctuation, and characters of scripts that write no spaces,
    count as words) and LCS is their longest common subsequence.

    Args:
        one: a text.
        other: a text.

    Returns:
        A number in ``[0, 1]``: 1 for equal words, 0 where none is shared.

    Example:
        >>> word_similarity("if a < b", "if a > b"), word_similarity("yes", "no"), word_similarity("", "")
        (0.75, 0.0, 1.0)
    """
    return float(Indel.normalized_similarity(_WORD.findall(one), _WORD.findall(other)))


def place_of(row: Row, prompt: str | None) -> Place:
    """Category and cluster of a pair; RewardBench's subsets have its sections and its clusters.

    Args:
        row: a pair as it was read.
        prompt: its prompt as text.
    """
    source, category, subset = (_or_none(row.get(name)) for name in ("source", "category", "subset"))
    official = subset in rewardbench.OFFICIAL_COUNTS
    if category is None and official:
        category = rewardbench.section_of(str(subset)).lower().replace(" ", "_")
    if not prompt:
        cluster = f"pair-{row['id']}"
    elif official:
        cluster = rewardbench.cluster_id(str(subset), prompt)
    else:
        cluster = prompt_cluster(prompt)
    return Place(source, category, subset, cluster)


def _text(value: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {_content(message)}" for message in value)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    return f"{content}{calls}" if calls else content


def _or_none(value: Any) -> str | None:
    return None if value is None else str(value)
