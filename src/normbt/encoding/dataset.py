"""Encode a data set of pairs: batched, counted, and cached by content."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from normbt.encoding.overlong import cut_pair, require_length, require_policy
from normbt.encoding.sequences import TEMPLATE_COLUMNS, Encoded, Encoder, common_prefix, template_options
from normbt.errors import DataError
from normbt.packing import common_prefix as shareable_prefix
from normbt.pairs import DataReport, LiveReport, Tally

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

Overlong = Literal["drop", "truncate-prompt"]
KEPT_COLUMNS = ("id", "margin", "category")
# What becomes of a pair, as stored in the column "outcome" until it is counted.
OUTCOMES = ("kept", "malformed", "identical", "overlong")
_BATCH = 1000


def encode_pairs(
    dataset: "Dataset | IterableDataset",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    overlong: str = "drop",
    num_proc: int | None = None,
) -> "tuple[Dataset | IterableDataset, DataReport | LiveReport]":
    """Token ids of both sides of every pair.

    Columns of the result: ``chosen_ids`` and ``rejected_ids``, ``prefix_length`` (leading tokens both sides share; at
    least one token of each side is its own), and ``id``, ``margin`` and ``category`` where the data set has them.
    Pairs whose two sides have the same token ids are dropped and counted, whatever the policy. A data set that has
    ``chosen_ids`` and ``rejected_ids`` already is taken as encoded and only checked.

    Args:
        dataset: pairs as `normbt.pairs.read_pairs` gives them, or as TRL takes them (also with ``tools`` and
            ``chat_template_kwargs``).
        tokenizer: a tokenizer with a chat template if the pairs are conversations; see `prepare_tokenizer`.
        max_length: tokens a sequence may have; None for no limit.
        overlong: "drop" drops a pair with a longer side. "truncate-prompt" cuts the beginning of the prompt, the same
            piece on both sides, keeps BOS or CLS and both answers whole, and drops a pair only if its answers alone do
            not fit.
        num_proc: processes that encode; None uses this one. A stream is always encoded by the process that reads it.

    Returns:
        The encoded data set, and the report of this step: its ``read`` are the pairs that came in. For a stream it is
        a `LiveReport`.

    Raises:
        ConfigError: there is no such policy, or `max_length` is below 1.
        DataError: no pair is left, or conversations meet a tokenizer without chat template.
    """
    from datasets import IterableDataset

    require_policy(overlong, get_args(Overlong))
    require_length(max_length)
    encode = PairEncoder(Encoder(tokenizer), max_length, overlong)
    if isinstance(dataset, IterableDataset):
        return _encode_stream(dataset, encode)
    return _encode_dataset(dataset, encode, num_proc)


class EncodedPair(NamedTuple):
    """Both sides of a pair and what becomes of it; without ids unless it is kept."""

    outcome: str
    chosen: Sequence[int] = ()
    rejected: Sequence[int] = ()
    eos_appended: int = 0
    truncated: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class PairEncoder:
    """Encodes a batch of pairs under one length and one policy."""

    encoder: Encoder
    max_length: int | None
    overlong: str

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Columns of the encoded batch; one row for each pair, kept or not."""
        pairs = self.pairs(batch)
        return {
            **{name: batch[name] for name in KEPT_COLUMNS if name in batch},
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
            "prefix_length": [shareable_prefix(pair.chosen, pair.rejected) for pair in pairs],
            "outcome": [OUTCOMES.index(pair.outcome) for pair in pairs],
            "eos_appended": [pair.eos_appended for pair in pairs],
            "truncated": [pair.truncated for pair in pairs],
        }

    def pairs(self, batch: dict[str, list[Any]]) -> list[EncodedPair]:
        """Every pair of a batch of columns."""
        rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        sides = {name: self._encode(name, rows) for name in ("chosen", "rejected")}
        return [self._settle(*both) for both in zip(rows, sides["chosen"], sides["rejected"], strict=True)]

    def _encode(self, side: str, rows: list[dict[str, Any]]) -> list[Encoded]:
        if rows and f"{side}_ids" in rows[0]:
            return [Encoded(list(row[f"{side}_ids"])) for row in rows]
        whole = [_joined(row, side) for row in rows]
        if rows and isinstance(whole[0], list):
            return self.encoder.conversations(whole, [_options(row) for row in rows])  # type: ignore[arg-type] - a data set is all text or all messages
        return self.encoder.texts(whole)  # type: ignore[arg-type] - as above

    def _settle(self, row: dict[str, Any], chosen: Encoded, rejected: Encoded) -> EncodedPair:
        problem = chosen.problem or rejected.problem
        if problem is not None:
            return EncodedPair("malformed", problem=problem)
        if chosen.ids == rejected.ids:
            return EncodedPair("identical")
        sides, truncated = (chosen.ids, rejected.ids), False
        if self.max_length is not None and max(map(len, sides)) > self.max_length:
            cut = self._cut(row, *sides) if self.overlong == "truncate-prompt" else None
            if cut is None:
                return EncodedPair("overlong")
            sides, truncated = cut, True
        return EncodedPair("kept", *sides, chosen.eos_appended + rejected.eos_appended, truncated)

    def _cut(self, row: dict[str, Any], chosen: list[int], rejected: list[int]) -> tuple[list[int], list[int]] | None:
        assert self.max_length is not None
        prompt_length = shareable_prefix(chosen, rejected)
        # The prompt is at most what both sides share: where that is too short to cut, it need not be tokenised.
        can_fit = max(len(chosen), len(rejected)) - self.max_length <= prompt_length
        if can_fit and (prompt := _prompt_of(row)) is not None:
            prompt_length = min(prompt_length, common_prefix(self.encoder.prompt(prompt, _options(row)), chosen))
        keep = self.encoder.opening_length(chosen[:prompt_length])
        return cut_pair(chosen, rejected, max_length=self.max_length, prompt_length=prompt_length, keep=keep)


def _joined(row: dict[str, Any], side: str) -> Any:
    return row["prompt"] + row[side] if "prompt" in row else row[side]


def _options(row: dict[str, Any]) -> dict[str, Any]:
    return template_options(*(row.get(name) for name in TEMPLATE_COLUMNS))


def _prompt_of(row: dict[str, Any]) -> Any:
    """The prompt of a row; for complete conversations the messages they share, None for complete texts."""
    if "prompt" in row:
        return row["prompt"]
    if isinstance(row.get("chosen"), list):
        shared = common_prefix(row["chosen"][:-1], row["rejected"][:-1])
        return row["chosen"][:shared]
    return None


def _encode_dataset(dataset: "Dataset", encode: PairEncoder, num_proc: int | None) -> "tuple[Dataset, DataReport]":
    import numpy
    from datasets import Features, List, Value

    require_columns(dataset.column_names)
    if not len(dataset):
        raise DataError("there is no pair to encode: the data set is empty.")
    if isinstance(dataset[0].get("chosen"), list):
        encode.encoder.require_template()
    tokens = List(Value("int32"))
    features = {name: dataset.features[name] for name in KEPT_COLUMNS if name in dataset.column_names}
    features |= {"chosen_ids": tokens, "rejected_ids": tokens, "prefix_length": Value("int32")}
    features |= {"outcome": Value("int8"), "eos_appended": Value("int8"), "truncated": Value("bool")}
    encoded = dataset.map(
        encode,
        batched=True,
        batch_size=_BATCH,
        num_proc=num_proc,
        remove_columns=[name for name in dataset.column_names if name not in features],
        features=Features(features),
        new_fingerprint=_fingerprint(dataset, encode),
        desc="Tokenizing pairs",
    )
    columns = {name: encoded.data.column(name).to_numpy() for name in ("outcome", "eos_appended", "truncated")}
    counts = numpy.bincount(columns["outcome"], minlength=len(OUTCOMES)).tolist()
    tally = Tally("encoded pairs")
    tally.add("read", len(encoded))
    for outcome, count in zip(OUTCOMES, counts, strict=True):
        tally.counts[outcome] = count
    for name in ("eos_appended", "truncated"):
        tally.add(name, int(columns[name].sum()))
    for index in numpy.flatnonzero(columns["outcome"] == OUTCOMES.index("malformed"))[:5].tolist():
        # Reasons are not stored: the few that are named are found again.
        [pair] = encode.pairs({name: [value] for name, value in dataset[index].items()})
        tally.reasons.append((index + 1, f"{dataset[index].get('id', 'pair')}: {pair.problem}"))
    report = tally.report()
    if report.kept == 0:
        limit = "" if encode.max_length is None else f" with max_length={encode.max_length}"
        raise DataError(f"no pair is left after encoding{limit}. {report.summary()}")
    if report.dropped:
        encoded = encoded.select(numpy.flatnonzero(columns["outcome"] == 0))
    return encoded.remove_columns(["outcome", "eos_appended", "truncated"]), report


def require_columns(columns: list[str]) -> None:
    """Refuse a data set without the two sides of a pair."""
    if not {"chosen", "rejected"} <= set(columns) and not {"chosen_ids", "rejected_ids"} <= set(columns):
        raise DataError(f'a pair needs "chosen" and "rejected" (or their ids). Columns found: {", ".join(columns)}.')


def _encode_stream(dataset: "IterableDataset", encode: PairEncoder) -> "tuple[IterableDataset, LiveReport]":
    columns = dataset.column_names or list(next(iter(dataset)))
    require_columns(columns)
    encode_stream = _StreamEncoder(encode, Tally("encoded pairs"))
    removed = [name for name in columns if name not in KEPT_COLUMNS]
    encoded = dataset.map(encode_stream, batched=True, batch_size=_BATCH, remove_columns=removed)
    return encoded, LiveReport([encode_stream.tally])


@dataclass
class _StreamEncoder:
    """Encodes the pairs that pass through, drops and counts."""

    encode: PairEncoder
    tally: Tally

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Columns of the kept pairs of a batch."""
        encoded = self.encode(batch)
        outcomes = [OUTCOMES[code] for code in encoded.pop("outcome")]
        for outcome in outcomes:
            self.tally.add("read")
            if outcome != "malformed":
                self.tally.add(outcome)
        if "malformed" in outcomes:
            self._add_reasons(batch)
        for name in ("eos_appended", "truncated"):
            self.tally.add(name, sum(encoded.pop(name)))
        kept = [index for index, outcome in enumerate(outcomes) if outcome == "kept"]
        return {name: [values[index] for index in kept] for name, values in encoded.items()}

    def _add_reasons(self, batch: dict[str, list[Any]]) -> None:
        first = self.tally.counts["read"] - len(batch["chosen"]) + 1
        for offset, pair in enumerate(self.encode.pairs(batch)):
            if pair.problem is not None:
                self.tally.add_malformed(first + offset, pair.problem)


def longest_sequence(dataset: "Dataset | IterableDataset") -> int | None:
    """Tokens of the longest sequence in an encoded data set.

    Args:
        dataset: a result of :func:`encode_pairs`.

    Returns:
        Tokens, or None for a stream, whose end is not known.

    Example:
        >>> from datasets import Dataset
        >>> longest_sequence(Dataset.from_dict({"chosen_ids": [[1, 2], [1]], "rejected_ids": [[1], [1, 2, 3]]}))
        3
    """
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        return None
    sides = ("chosen_ids", "rejected_ids")
    batches: Any = dataset.select_columns(list(sides)).iter(batch_size=1000)
    return max(len(ids) for batch in batches for side in sides for ids in batch[side])


def _fingerprint(dataset: "Dataset", encode: PairEncoder) -> str:
    """Changes with the pairs, with everything of the tokenizer that matters, with the settings and with this code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    tokenizer = encode.encoder.tokenizer
    settings = {
        "pairs": dataset._fingerprint,
        "max_length": encode.max_length,
        "overlong": encode.overlong,
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "affixes": encode.encoder.affixes,
        "tokenizer": _tokenizer_content(tokenizer),
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _tokenizer_content(tokenizer: "PreTrainedTokenizerBase") -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs]
    content = json.loads(backend.to_str())
    # These two are what the last call happened to ask for, not what the tokenizer is.
    return {name: value for name, value in content.items() if name not in ("truncation", "padding")}
