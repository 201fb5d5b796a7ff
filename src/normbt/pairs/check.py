"""What a valid preference pair is: the one place that accepts, refuses and counts rows."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from normbt.errors import DataError
from normbt.pairs.files import Row, Unreadable
from normbt.pairs.report import Tally

Message = dict[str, Any]
PAIR_COLUMNS = ("id", "prompt", "chosen", "rejected")
# Two conversations with their ratings, as in llm-blender/Unified-Feedback, stand for a chosen and a rejected one.
RATED_COLUMNS = ("conv_A", "conv_B", "conv_A_rating", "conv_B_rating")
# Columns that hold what a prompt would: without "prompt" beside them they would be ignored without a word.
_PROMPT_BY_ANOTHER_NAME = ("question", "input", "instruction", "query", "context")


class Malformed(Exception):
    """A row is not a preference pair; the message says why."""


class Tied(Exception):
    """Two answers with equal ratings: neither is preferred."""


@dataclass(frozen=True)
class Pair:
    """A checked row.

    Attributes:
        number: row number in its source.
        values: the canonical columns and the untouched rest of the row.
        conversational: answers are lists of messages, not plain text.
        explicit: there is a prompt apart from the answers.
    """

    number: int
    values: dict[str, Any]
    conversational: bool
    explicit: bool


def belongs(row: Row, split: str | None) -> bool:
    """Whether a row is of the split that is read, by its ``split`` column; rows without one are "train".

    Args:
        row: a row as its source hands it out; one that cannot be decoded belongs to every split, to be reported.
        split: ``source.split``, which is None where the source is one split already. Not what the user asked for:
            rows of a folder's or a Hub data set's split need no column that says so.

    Example:
        >>> belongs(Row(1, {"split": "test"}), "test"), belongs(Row(2, {}), "test"), belongs(Row(3, {}), None)
        (True, False, True)
    """
    return split is None or isinstance(row.value, Unreadable) or (row.value.get("split") or "train") == split


def no_row_of_split(source: str, others: int) -> DataError:
    """What to raise where all rows of a source are of other splits."""
    return DataError(
        f"{source}: none of its {others:,} rows is of the split that was asked for (rows "
        'without a "split" column count as "train").'
    )


def check_rows(rows: Iterable[Row], tally: Tally, *, split: str | None = None) -> Iterator[Pair]:
    """The valid pairs among rows; every other row is counted under what is wrong with it.

    A row is *malformed* when a column is missing or of a wrong type, *tied* when both answers are rated equal, *empty*
    when an answer has no text, *identical* when both answers are equal apart from white space at their ends. The first
    that applies counts.

    Args:
        rows: rows as a source hands them out.
        tally: counts of this source; read while the result is consumed.
        split: keep the rows of this split only, as :func:`belongs` decides.

    Returns:
        The pairs, in order.

    Example:
        >>> tally = Tally("example")
        >>> rows = [Row(1, {"prompt": "2+2?", "chosen": "4", "rejected": "5"}), Row(2, {"chosen": "4"})]
        >>> [pair.values["id"] for pair in check_rows(rows, tally)]
        ['row-1']
        >>> tally.report().reasons
        ((2, 'no "rejected" (columns: chosen)'),)
    """
    for row in rows:
        if not belongs(row, split):
            tally.add("other_split")
            continue
        tally.add("read")
        try:
            pair = canonical_pair(row)
        except Malformed as problem:
            tally.add_malformed(row.number, f"{row.file}: {problem}" if row.file else str(problem))
            continue
        except Tied:
            tally.add("tied")
            continue
        chosen, rejected = pair.values["chosen"], pair.values["rejected"]
        if _is_empty(chosen) or _is_empty(rejected):
            tally.add("empty")
        elif _stripped(chosen) == _stripped(rejected):
            tally.add("identical")
        else:
            tally.add("kept")
            tally.add("empty_prompts", int(pair.explicit and _is_empty_prompt(pair.values["prompt"])))
            yield pair


def canonical_pair(row: Row) -> Pair:
    """A row in canonical form: ``id``, ``prompt`` (when there is one), ``chosen``, ``rejected`` and the rest untouched.

    Answers stay plain text or become lists of messages, both alike; a prompt has the form of the answers. A prompt
    that the answers repeat at their beginning is not kept twice.

    Raises:
        Malformed: the row is not a preference pair.
        Tied: its answers are rated equal.
    """
    if isinstance(row.value, Unreadable):
        raise Malformed(row.value.reason)
    values = _preference(row.value) if _is_rated(row.value) else dict(row.value)
    for name in ("chosen", "rejected"):
        if name not in values:
            raise Malformed(f'no "{name}" (columns: {", ".join(map(str, values))})')
    if "margin" in values:
        values["margin"] = _finite("margin", values["margin"])
    chosen, rejected = (_text_or_messages(name, values[name]) for name in ("chosen", "rejected"))
    explicit = "prompt" in values
    prompt = _text_or_messages("prompt", values["prompt"], may_be_empty=True) if explicit else None
    conversational = not all(isinstance(part, str) for part in (chosen, rejected, prompt) if part is not None)
    if conversational:
        if explicit:
            prompt, chosen, rejected = _explicit_conversation(prompt, chosen, rejected)
        elif isinstance(chosen, str) or isinstance(rejected, str):
            raise Malformed('one answer is text and the other a conversation, and there is no "prompt"')
        _require_assistant_last(chosen=chosen, rejected=rejected)
    elif not explicit and (other := next((name for name in _PROMPT_BY_ANOTHER_NAME if name in values), None)):
        raise Malformed(f'no "prompt", but a column "{other}": rename it to "prompt" (or drop it, if it is not one)')
    canonical: dict[str, Any] = {"id": _identity(row, values)}
    if explicit:
        canonical["prompt"] = prompt
    canonical |= {"chosen": chosen, "rejected": rejected}
    canonical |= {name: value for name, value in values.items() if name not in PAIR_COLUMNS}
    for name, value in canonical.items():
        if name not in ("prompt", "chosen", "rejected"):
            require_storable(name, value)
    return Pair(row.number, canonical, conversational, explicit)


def as_conversation(prompt: str | list[Message], answer: str | list[Message]) -> tuple[list[Message], list[Message]]:
    """A prompt and its answer as messages: text becomes one user and one assistant message, an empty prompt none.

    Example:
        >>> as_conversation("2+2?", "4")
        ([{'role': 'user', 'content': '2+2?'}], [{'role': 'assistant', 'content': '4'}])
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt.strip() else []
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    return prompt, answer


def _is_rated(values: Mapping[str, Any]) -> bool:
    return "chosen" not in values and "rejected" not in values and all(name in values for name in RATED_COLUMNS)


def _preference(values: Mapping[str, Any]) -> dict[str, Any]:
    """Two rated answers as a preference for the higher rating, by a margin of their difference."""
    ratings = [_finite(name, values[name]) for name in RATED_COLUMNS[2:]]
    if ratings[0] == ratings[1]:
        raise Tied
    chosen, rejected = RATED_COLUMNS[:2] if ratings[0] > ratings[1] else RATED_COLUMNS[1::-1]
    preference = {name: value for name, value in values.items() if name not in RATED_COLUMNS}
    preference |= {"chosen": values[chosen], "rejected": values[rejected], "margin": abs(ratings[0] - ratings[1])}
    return preference


def _explicit_conversation(
    prompt: str | list[Message] | None, chosen: str | list[Message], rejected: str | list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt and answers as messages; answers that are complete conversations give up the prompt they begin with."""
    prompt_messages, chosen = as_conversation(prompt or "", chosen)
    _, rejected = as_conversation("", rejected)
    complete = [messages[0]["role"] != "assistant" and messages[0]["role"] != "tool" for messages in (chosen, rejected)]
    if complete == [False, False]:
        return prompt_messages, chosen, rejected
    if complete != [True, True]:
        raise Malformed("one answer begins like a complete conversation and the other does not")
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    # A system message may stand before the prompt that the "prompt" column repeats.
    repeated = prompt_messages[-1]["content"] if prompt_messages else None
    if repeated is not None and all(message.get("content") != repeated for message in chosen[:shared]):
        raise Malformed('"chosen" and "rejected" are complete conversations that do not begin with "prompt"')
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _text_or_messages(name: str, value: Any, *, may_be_empty: bool = False) -> str | list[Message]:
    if isinstance(value, str):
        _require_unicode(name, value)
        return value
    if value is None:
        raise Malformed(f'"{name}" is null')
    if not isinstance(value, list | tuple):
        raise Malformed(f'"{name}" must be text or a list of messages, found {type(value).__name__}')
    if not value and not may_be_empty:
        raise Malformed(f'"{name}" is an empty list of messages')
    return [_message(name, index, message) for index, message in enumerate(value)]


def _message(name: str, index: int, message: Any) -> Message:
    where = f'message {index} of "{name}"'
    if not isinstance(message, dict):
        raise Malformed(f"{where} must be an object, found {type(message).__name__}")
    # Arrow gives every message the keys of all messages; a null key is one the message does not have.
    message = {key: value for key, value in message.items() if value is not None}
    if not message.keys() <= {"role", "content"}:
        require_storable(name, message)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise Malformed(f'{where} has no "role" (keys: {", ".join(map(str, message))})')
    _require_unicode(name, role)
    if content is None and message.get("tool_calls"):
        return message
    if not isinstance(content, str):
        found = "no content" if content is None else f"content of type {type(content).__name__}"
        raise Malformed(f"{where} must have text as content, found {found}")
    _require_unicode(name, content)
    return message


def _require_unicode(name: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:  # JSON can spell half of a surrogate pair; no tokenizer can read it
        raise Malformed(f'"{name}" holds a lone surrogate at character {problem.start}: not valid Unicode') from problem


def require_storable(name: str, value: Any) -> None:
    """Refuse what no column can hold: text that is not Unicode, at any depth, and values nested too deeply to write."""
    if isinstance(value, int | float):
        value = None
    try:
        _require_unicode(name.encode("ascii", "backslashreplace").decode(), name)
        if isinstance(value, str):
            _require_unicode(name, value)
        elif value is not None:
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as problem:
        raise Malformed(f'"{name}" holds a lone surrogate: not valid Unicode') from problem
    except RecursionError as problem:
        raise Malformed(f'"{name}" is nested too deeply') from problem


def _require_assistant_last(**answers: Any) -> None:
    for name, messages in answers.items():
        if messages[-1]["role"] != "assistant":
            raise Malformed(f'"{name}" must end with a message of the assistant, found role "{messages[-1]["role"]}"')


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        found = "null" if value is None else type(value).__name__
        raise Malformed(f'"{name}" must be a number, found {found}')
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise Malformed(f'"{name}" must be finite, found {number}')
    return number


def _identity(row: Row, values: dict[str, Any]) -> str:
    """The id of a pair: its own, or its place in the source.

    Numbers are often counted anew in each subset (RewardBench's are), so the subset goes before them.
    """
    identity = values.get("id")
    if identity is None:
        return f"{row.file}/row-{row.number}" if row.file else f"row-{row.number}"
    if isinstance(identity, str) and identity:
        return identity
    if isinstance(identity, int) and not isinstance(identity, bool):
        subset = values.get("subset")
        return f"{subset}/{identity}" if isinstance(subset, str) else str(identity)
    raise Malformed(f'"id" must be text or a whole number, found {identity!r}')


def _is_empty(answer: str | list[Message]) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return not (answer[-1].get("content") or "").strip() and not answer[-1].get("tool_calls")


def _is_empty_prompt(prompt: str | list[Message]) -> bool:
    if isinstance(prompt, str):
        return not prompt.strip()
    return not any((message.get("content") or "").strip() for message in prompt)


def _stripped(answer: str | list[Message]) -> Any:
    if isinstance(answer, str):
        return answer.strip()
    return [{**message, "content": (message.get("content") or "").strip()} for message in answer]
