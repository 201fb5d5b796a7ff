"""The one form that all pairs of a data set share, and how each pair is brought into it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normbt.errors import DataError
from normbt.pairs.check import PAIR_COLUMNS, Malformed, Pair, as_conversation

if TYPE_CHECKING:
    from datasets import Features

_PLAIN_MESSAGE = frozenset({"role", "content"})


@dataclass(frozen=True)
class Shape:
    """What every pair of a data set looks like."""

    conversational: bool
    explicit: bool
    margin: bool

    def __str__(self) -> str:
        if self.conversational:
            return "conversations with a prompt" if self.explicit else "complete conversations"
        return "plain text with a prompt" if self.explicit else "plain text, prompt included"

    def values(self, pair: Pair) -> dict[str, Any]:
        """The columns of a pair in this shape.

        Raises:
            Malformed: it cannot have this shape.
        """
        values = dict(pair.values)
        if pair.conversational and not self.conversational:
            raise Malformed("a conversation, where the stream began with plain text: read it with streaming=False")
        if self.conversational and not pair.conversational:
            if not pair.explicit:
                raise Malformed('plain text without a "prompt" cannot become a conversation, as the other rows are')
            values["prompt"], values["chosen"] = as_conversation(pair.values["prompt"], pair.values["chosen"])
            _, values["rejected"] = as_conversation("", pair.values["rejected"])
        if pair.explicit and not self.explicit:
            prompt = values.pop("prompt")
            values["chosen"], values["rejected"] = prompt + values["chosen"], prompt + values["rejected"]
        return values


@dataclass
class Survey:
    """What the pairs of one source look like, gathered in a first pass over them."""

    source: str
    pairs: int = 0
    conversational: int = 0
    implicit_text: int = 0
    with_column: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "margin": 0})
    first_without: dict[str, int] = field(default_factory=dict)
    message_keys: set[str] = field(default_factory=set)
    further: dict[str, set[type]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    generated_ids: int = 0

    def add(self, pair: Pair) -> None:
        """Take one pair into account.

        Raises:
            DataError: its id was seen before.
        """
        self.pairs += 1
        self.conversational += pair.conversational
        self.implicit_text += not pair.conversational and not pair.explicit
        for name in self.with_column:
            if name in pair.values:
                self.with_column[name] += 1
            else:
                self.first_without.setdefault(name, pair.number)
        if pair.conversational:
            for name in ("prompt", "chosen", "rejected"):
                for message in pair.values.get(name, ()):
                    self.message_keys.update(message)
        for name, value in pair.values.items():
            if name not in PAIR_COLUMNS:
                kinds = self.further.setdefault(name, set())
                if value is not None:
                    kinds.add(_kind(value))
        self._add_id(pair)

    def _add_id(self, pair: Pair) -> None:
        identity = pair.values["id"]
        if identity.rpartition("/")[2] == f"row-{pair.number}":
            self.generated_ids += 1  # unique by construction: not remembered, so that memory stays constant
        elif identity in self.ids:
            raise DataError(
                f'{self.source} row {pair.number}: the id "{identity}" was used before. Ids must be unique: mend them, '
                'or rename the column "id" to have ids made from row numbers.'
            )
        else:
            self.ids.add(identity)

    def require_uniform(self) -> None:
        """Refuse a source where a column that changes the meaning of a pair is in some rows only."""
        for name, count in self.with_column.items():
            if 0 < count < self.pairs:
                raise DataError(
                    f'{self.source}: {count:,} of {self.pairs:,} pairs have "{name}" and the others do not (the first '
                    f"without is row {self.first_without[name]}). Give it to all pairs or to none."
                )


def _kind(value: Any) -> type:
    """Type of a value as far as its column goes; a whole number beyond 64 bits can only be kept as text."""
    return str if isinstance(value, int) and not -(2**63) <= value < 2**63 else type(value)


def common_shape(surveys: Sequence[Survey], *, conversational: bool = False) -> Shape:
    """The shape that holds all pairs of all sources: conversations if any pair is one, a prompt if all have one.

    Raises:
        DataError: there is no such shape, or margins are in some sources only.
    """
    for survey in surveys:
        survey.require_uniform()
    conversational = conversational or any(survey.conversational for survey in surveys)
    if conversational and (stuck := [survey for survey in surveys if survey.implicit_text]):
        raise DataError(
            f"{stuck[0].source}: {stuck[0].implicit_text:,} pairs are plain text without a prompt, which cannot become "
            "conversations as the rest of the data is. Split prompt and answers, or read them apart."
        )
    with_margin = [survey.source for survey in surveys if survey.with_column["margin"]]
    if 0 < len(with_margin) < len(surveys):
        others = [survey.source for survey in surveys if not survey.with_column["margin"]]
        raise DataError(
            f"pairs of {', '.join(with_margin)} have a margin and those of {', '.join(others)} do not. "
            "Give it to all sources or to none."
        )
    explicit = all(survey.with_column["prompt"] for survey in surveys)
    return Shape(conversational, explicit, bool(with_margin))


def columns_of(shape: Shape, surveys: Iterable[Survey], declared: "Features | None") -> "Features":
    """Arrow types of every column; a further column whose type varies from row to row is kept as text.

    Args:
        shape: shape of the pairs.
        surveys: what the sources hold.
        declared: types that the source itself gives its columns, if it does.
    """
    from datasets import Features, Json, List, Value

    message_keys: set[str] = set()
    kinds: dict[str, set[type]] = {}
    for survey in surveys:
        message_keys |= survey.message_keys
        for name, found in survey.further.items():
            kinds.setdefault(name, set()).update(found)
    if not shape.conversational:
        part: Any = Value("string")
    elif message_keys <= _PLAIN_MESSAGE:
        part = List({"role": Value("string"), "content": Value("string")})
    else:
        part = List(Json())  # tool calls and the like: every message may have keys of its own
    columns: dict[str, Any] = {"id": Value("string")}
    if shape.explicit:
        columns["prompt"] = part
    columns |= {"chosen": part, "rejected": part}
    for name, found in kinds.items():
        if name == "margin":
            columns[name] = Value("float64")
        elif declared is not None and name in declared:
            columns[name] = declared[name]
        elif found and found <= {list, dict, tuple}:
            columns[name] = Json()
        else:
            columns[name] = Value(_SCALARS.get(frozenset(found), "string"))
    return Features(columns)


_SCALARS = {
    frozenset({bool}): "bool",
    frozenset({int}): "int64",
    frozenset({float}): "float64",
    frozenset({int, float}): "float64",
}
