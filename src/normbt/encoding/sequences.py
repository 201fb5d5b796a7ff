"""The rule that turns a prompt and an answer into one sequence of token ids."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from normbt.encoding.tokenizer import affixes, prepare_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Message = dict[str, Any]
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


class Encoded(NamedTuple):
    """Token ids of one sequence.

    Attributes:
        ids: token ids, without padding; empty when `problem` is set.
        eos_appended: EOS was added because the chat template does not close with it.
        problem: why the chat template refused the conversation, or None.
    """

    ids: list[int]
    eos_appended: bool = False
    problem: str | None = None


class Encoder:
    """Encodes texts and conversations with one tokenizer; the same rule for training and for scoring.

    * A conversation is rendered by the chat template, once, and tokenised without further special tokens.
    * A text is tokenised with the tokenizer's own special tokens. EOS is written at its end, unless the text or the
      tokenizer closes with it already. A text that begins with BOS does not get another.
    * A tokenizer without EOS (BERT) closes with its own special tokens.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.affixes = affixes(tokenizer)
        self.eos_id: int | None = tokenizer.eos_token_id  # type: ignore[assignment] - one token, not a list of them
        self._opening_ids = [one for one in (tokenizer.bos_token_id, tokenizer.cls_token_id) if one is not None]
        # A tokenizer that closes every text with EOS itself (T5, RoBERTa) would get two of them.
        self._eos_text = "" if self.eos_id is None or self.eos_id in self.affixes.closing else str(tokenizer.eos_token)
        self._adds_bos = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in self.affixes.opening

    def texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Complete texts, prompt and answer joined."""
        closed = [text if text.endswith(self._eos_text) else text + self._eos_text for text in texts]
        return [Encoded(self._without_second_bos(ids)) for ids in self._tokenize(closed, special=True)]

    def conversations(
        self, conversations: Sequence[list[Message]], options: Sequence[Mapping[str, Any]] | None = None
    ) -> list[Encoded]:
        """Complete conversations.

        Args:
            conversations: messages, prompt and answer joined.
            options: ``tools`` and other arguments of the chat template, for each conversation.
        """
        rendered = self._render(conversations, options)
        good = [text for text, problem in rendered if problem is None]
        tokenized = iter(self._tokenize(good, special=False))
        return [
            self._closed(next(tokenized)) if problem is None else Encoded([], problem=problem)
            for _, problem in rendered
        ]

    def prompt(self, prompt: str | list[Message], options: Mapping[str, Any] | None = None) -> list[int]:
        """A prompt alone, as far as it is the beginning of the sequence; to find where the answer starts."""
        if isinstance(prompt, str):
            return self._without_second_bos(self._tokenize([prompt], special=True)[0])
        if not prompt:
            return []
        awaits_answer = prompt[-1]["role"] != "assistant"
        options = {**(options or {}), "add_generation_prompt": awaits_answer}
        [(text, problem)] = self._render([prompt], [options])
        return [] if problem is not None else self._tokenize([text], special=False)[0]

    def opening_length(self, ids: Sequence[int]) -> int:
        """How many tokens at the beginning (BOS or CLS) stay when a prompt is cut."""
        return int(bool(ids) and ids[0] in self._opening_ids)

    def closing_length(self, ids: Sequence[int]) -> int:
        """How many tokens at the end close the sequence: EOS and what the template writes after it, or SEP."""
        if self.eos_id in ids[-2:]:
            return 1 if ids[-1] == self.eos_id else 2
        closing = self.affixes.closing
        return len(closing) if closing and list(ids[-len(closing) :]) == closing else 0

    def require_template(self) -> None:
        """Set the built-in chat template, and say so, if the tokenizer has none."""
        if not self.tokenizer.chat_template:
            for message in prepare_tokenizer(self.tokenizer, conversational=True):
                logger.warning(message)

    def _render(
        self, conversations: Sequence[list[Message]], options: Sequence[Mapping[str, Any]] | None
    ) -> list[tuple[str, str | None]]:
        """Text of each conversation, or why the template refused it."""
        if not conversations:
            return []
        self.require_template()
        if options is None or not any(options):
            try:
                texts = self.tokenizer.apply_chat_template(list(conversations), tokenize=False)
                return [(text, None) for text in texts]  # type: ignore[misc] - a list of texts for a list of conversations
            except Exception:  # one row at a time below finds which, and why
                options = None
        rendered = []
        for index, messages in enumerate(conversations):
            arguments = options[index] if options else {}
            try:
                rendered.append((self.tokenizer.apply_chat_template(messages, tokenize=False, **arguments), None))
            except Exception as problem:  # a template is a program of its author: it may raise anything
                rendered.append(("", f"the chat template refuses this conversation ({problem})"))
        return rendered

    def _tokenize(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        # verbose=False: that a text is longer than the model takes is our report's to say, once and with a count.
        return self.tokenizer(  # type: ignore[return-value] - lists, as no tensors are asked for
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def _without_second_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return ids[1:] if self._adds_bos and ids[:2] == [bos, bos] else ids

    def _closed(self, ids: list[int]) -> Encoded:
        # Qwen's template closes with EOS and a line break: hence the last two tokens.
        if self.eos_id is None or self.eos_id in ids[-2:]:
            return Encoded(ids)
        return Encoded([*ids, self.eos_id], eos_appended=True)


def template_options(tools: Any, chat_template_kwargs: Any) -> dict[str, Any]:
    """Arguments of the chat template from the columns that TRL reads; either may be JSON text."""
    tools = json.loads(tools) if isinstance(tools, str) else tools
    further = json.loads(chat_template_kwargs) if isinstance(chat_template_kwargs, str) else chat_template_kwargs
    return {**({"tools": tools} if tools is not None else {}), **(further or {})}


def common_prefix(*sequences: Sequence[Any]) -> int:
    """How many leading items all sequences share.

    Example:
        >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
        2
    """
    shared = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items[1:]):
            break
        shared += 1
    return shared
