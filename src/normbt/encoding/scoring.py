"""Encode what is to be scored: nothing is dropped, and what had to be cut is flagged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from normbt.encoding.overlong import cut_answer, cut_prompt, require_length, require_policy
from normbt.encoding.sequences import Encoder, Message, common_prefix
from normbt.errors import DataError
from normbt.pairs import as_conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLICIES = ("truncate", "error")

Text = str | list[Message]


def encode_conversations(
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Text | tuple[Text, Text]],
    *,
    max_length: int | None,
    overlong: str = "truncate",
) -> tuple[list[list[int]], list[bool]]:
    """Token ids of prompts with their responses, by the rule that encodes training pairs.

    Args:
        tokenizer: the tokenizer of the model; see `prepare_tokenizer`.
        rows: each a ``(prompt, response)`` pair or a complete text or conversation. Where either part is a list of
            messages the chat template is applied; plain text is joined as it is (`normbt.pairs.as_conversation` makes
            messages of it).
        max_length: tokens a sequence may have; None for no limit.
        overlong: "truncate" cuts the beginning of the prompt and, if the response alone does not fit, the end of the
            response; BOS or CLS at the beginning and EOS or SEP at the end stay. "error" refuses.

    Returns:
        Token ids of each row, and for each row whether it was cut.

    Raises:
        ConfigError: there is no such policy, or `max_length` is below 1.
        DataError: the chat template refuses a row, or a row is too long under "error".
    """
    require_policy(overlong, POLICIES)
    require_length(max_length)
    encoder = Encoder(tokenizer)
    wholes, prompts = zip(*(_whole_and_prompt(row) for row in rows), strict=True) if rows else ((), ())
    ids: list[list[int]] = [[] for _ in rows]
    spoken = [index for index, whole in enumerate(wholes) if isinstance(whole, list)]
    written = [index for index, whole in enumerate(wholes) if isinstance(whole, str)]
    for indices, encode in ((spoken, encoder.conversations), (written, encoder.texts)):
        for index, encoded in zip(indices, encode([wholes[index] for index in indices]), strict=True):
            if encoded.problem is not None:
                raise DataError(f"row {index + 1}: {encoded.problem}.")
            ids[index] = encoded.ids
    if max_length is None:
        return ids, [False] * len(ids)
    truncated = [len(one) > max_length for one in ids]
    if overlong == "error" and any(truncated):
        first = truncated.index(True)
        raise DataError(
            f"{sum(truncated):,} of {len(ids):,} rows have more than max_length={max_length} tokens (the first is row "
            f'{first + 1} with {len(ids[first]):,}). Raise max_length, or use overlong="truncate".'
        )
    for index, cut in enumerate(truncated):
        if cut:
            ids[index] = _fitted(encoder, ids[index], prompts[index], max_length)
    return ids, truncated


def _whole_and_prompt(row: Text | tuple[Text, Text]) -> tuple[Text, Text | None]:
    """The complete text or conversation of a row, and the prompt it begins with; None when that is not known."""
    if isinstance(row, str):
        return row, None
    if isinstance(row, list):
        return row, row[:-1]
    prompt, response = row
    if isinstance(prompt, str) and isinstance(response, str):
        return prompt + response, prompt
    prompt, response = as_conversation(prompt, response)
    return prompt + response, prompt


def _fitted(encoder: Encoder, ids: list[int], prompt: Any, max_length: int) -> list[int]:
    keep = encoder.opening_length(ids)
    closing = encoder.closing_length(ids)
    # Of a text whose prompt is not known the beginning goes, as if all of it were prompt.
    end = len(ids) - closing if prompt is None else common_prefix(encoder.prompt(prompt), ids)
    cut = min(len(ids) - max_length, max(0, end - keep))
    return cut_answer(cut_prompt(ids, cut, keep=keep), max_length, closing=closing)
