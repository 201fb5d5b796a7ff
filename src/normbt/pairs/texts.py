"""What a row to be scored is: a pair, or one answer with its prompt; the same checks as for pairs, nothing dropped."""

from dataclasses import dataclass
from typing import Any, Literal

from normbt.pairs.check import (
    _PROMPT_BY_ANOTHER_NAME,
    Malformed,
    Message,
    Tied,
    _explicit_conversation,
    _identity,
    _is_empty,
    _is_rated,
    _require_assistant_last,
    _text_or_messages,
    canonical_pair,
    require_storable,
)
from normbt.pairs.files import Row, Unreadable

ANSWER_COLUMNS = ("response", "completion", "text")
"""The column of an answer is the first of these that a row has."""

Kind = Literal["pairs", "answers"]
Part = str | list[Message]


@dataclass(frozen=True)
class ScorableRow:
    """A checked row and the sequences it asks a reward for.

    Attributes:
        values: the row, untouched.
        identity: its own id, or one made from its place.
        kind: ``"pairs"`` for chosen and rejected, ``"answers"`` for one answer.
        texts: what is scored: of a pair two, else one. Each is a ``(prompt, answer)`` pair, or complete.
        conversational: the texts are lists of messages.
        explicit: prompt and answer are told apart.
        empty: an answer has no text.
    """

    values: dict[str, Any]
    identity: str
    kind: Kind
    texts: tuple[Part | tuple[Part, Part], ...]
    conversational: bool
    explicit: bool
    empty: bool


def scorable_row(row: Row) -> ScorableRow:
    """Check a row that is to be scored.

    A row with ``chosen`` and ``rejected`` (or two rated conversations) is a pair, as
    :func:`normbt.pairs.check_rows` takes it. Any other is an answer: ``prompt`` with ``response``, ``completion`` or
    ``text``, complete ``messages``, or a complete ``text``.

    Raises:
        Malformed: the row is neither, or one of its columns, all of which are carried through, cannot be written.

    Example:
        >>> scorable_row(Row(1, {"prompt": "2+2?", "response": "4"})).texts
        (('2+2?', '4'),)
    """
    if isinstance(row.value, Unreadable):
        raise Malformed(row.value.reason)
    is_pair = "chosen" in row.value or "rejected" in row.value or _is_rated(row.value)
    scorable = _pair(row) if is_pair else _answer(row)
    for name, value in row.value.items():
        require_storable(name, value)
    return scorable


def _pair(row: Row) -> ScorableRow:
    assert isinstance(row.value, dict)
    # The margin of a pair plays no part in its rewards.
    try:
        pair = canonical_pair(row._replace(value={name: cell for name, cell in row.value.items() if name != "margin"}))
    except Tied:
        raise Malformed("both answers are rated equal, so neither is the chosen one") from None
    answers = [pair.values["chosen"], pair.values["rejected"]]
    return ScorableRow(
        values=row.value,
        identity=pair.values["id"],
        kind="pairs",
        texts=tuple((pair.values["prompt"], answer) if pair.explicit else answer for answer in answers),
        conversational=pair.conversational,
        explicit=pair.explicit,
        empty=any(map(_is_empty, answers)),
    )


def _answer(row: Row) -> ScorableRow:
    values: Any = row.value
    name = next((name for name in ANSWER_COLUMNS if name in values), None)
    if (name is None or (name == "text" and "prompt" not in values)) and "messages" in values:
        name = "messages"
    if name is None:
        wanted = ", no ".join(f'"{column}"' for column in (*ANSWER_COLUMNS, "messages"))
        raise Malformed(f'no "chosen" and "rejected", no {wanted} (columns: {", ".join(map(str, values))})')
    answer = _text_or_messages(name, values[name])
    explicit = "prompt" in values and name != "messages"
    prompt = _text_or_messages("prompt", values["prompt"], may_be_empty=True) if explicit else None
    conversational = isinstance(answer, list) or isinstance(prompt, list)
    if name == "messages" and not conversational:
        raise Malformed('"messages" must be a list of messages, found text')
    if conversational and explicit:
        prompt, answer, _ = _explicit_conversation(prompt, answer, answer)
    elif not conversational and not explicit:
        other = next((other for other in _PROMPT_BY_ANOTHER_NAME if other in values), None)
        if other is not None or name != "text":
            hint = f', but a column "{other}": rename it' if other else ""
            raise Malformed(f'"{name}" without "prompt"{hint}')
    if isinstance(answer, list):
        _require_assistant_last(**{name: answer})
    return ScorableRow(
        values=values,
        identity=_identity(row, values),
        kind="answers",
        texts=(answer if prompt is None else (prompt, answer),),
        conversational=conversational,
        explicit=explicit,
        empty=_is_empty(answer),
    )
