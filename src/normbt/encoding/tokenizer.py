"""Make a tokenizer fit for reward models: a pad token of its own, and a chat template where one is needed."""

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from normbt.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that vocabularies set aside for padding or for nothing, best first.
_PADS = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|vision_pad|>")
_RESERVED = re.compile(r"(<\|reserved[^|]*?(\d+)\|>|<unused(\d+)>|\[unused(\d+)\])")
NEW_PAD = "<|pad|>"

_PLAIN_TEMPLATE = """\
{{- OPENING -}}
{%- for message in messages -%}
{{ message['role'] | capitalize }}: {{ message['content'] or '' }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\\n\\nAssistant: ' }}{%- else -%}{{ CLOSING }}{%- endif -%}
"""


class Affixes(NamedTuple):
    """The special tokens a tokenizer itself puts before and after a text, as ids."""

    opening: list[int]
    closing: list[int]


def prepare_tokenizer(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    eos_token: str | None = None,
    pad_token: str | None = None,
    conversational: bool = False,
) -> list[str]:
    """Give a tokenizer a pad token that differs from EOS, and a chat template if it needs one and has none.

    A pad token that equals EOS makes Transformers pool the token *before* EOS, so that the exported model would score
    differently from the one that was trained. The pad token is, in this order: the one asked for, or else the
    tokenizer's own, if it differs from EOS; a token its vocabulary sets aside; ``<unk>`` where text can never produce
    it (byte fallback); a new ``<|pad|>``. After a new one ``len(tokenizer)`` may exceed the rows of the embedding,
    which must then be resized.

    The built-in chat template writes ``Role: content`` paragraphs between the tokenizer's own special tokens.

    Args:
        tokenizer: changed in place.
        eos_token: EOS token to set first, as text; None for the tokenizer's own.
        pad_token: pad token to set first, as text; None for the tokenizer's own.
        conversational: the data are conversations, so a chat template is needed.

    Returns:
        What was changed beyond the two tokens asked for, one sentence each; empty when the tokenizer was fit already.

    Raises:
        ConfigError: a token asked for is not in the vocabulary.
    """
    for name, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise ConfigError(f"{name} {token!r} is not in the tokenizer's vocabulary. Name a token that is.")
        setattr(tokenizer, name, token)
    messages = []
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        before = "had none" if tokenizer.pad_token_id is None else f"was EOS ({tokenizer.eos_token!r})"
        pad, why = _free_pad(tokenizer)
        if pad is None:
            pad, why = NEW_PAD, "new in the vocabulary: resize the model's embedding to len(tokenizer)"
            tokenizer.add_special_tokens({"pad_token": pad})
        else:
            tokenizer.pad_token = pad
        messages.append(f"pad token set to {pad!r} ({why}); it {before}.")
    if conversational and not tokenizer.chat_template:
        tokenizer.chat_template = plain_template(tokenizer)
        messages.append(
            "the tokenizer has no chat template: the built-in plain one was set ('User: …', 'Assistant: …')."
        )
    return messages


def affixes(tokenizer: "PreTrainedTokenizerBase") -> Affixes:
    """The special tokens a tokenizer adds around a text by its own rule, such as ``[CLS]`` and ``[SEP]``."""
    probe = "a"
    bare = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    full = list(tokenizer(probe)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return Affixes(full[:start], full[start + len(bare) :])
    return Affixes([], [])


def plain_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A readable chat template that writes the tokenizer's special tokens itself, as chat templates are expected to.

    Whoever applies the saved template, Transformers, TRL or vLLM, gets the ids that were trained on.
    """
    opening, closing = affixes(tokenizer)
    opening_text = "".join(tokenizer.convert_ids_to_tokens(opening))
    closing_text = "".join(tokenizer.convert_ids_to_tokens(closing))
    if tokenizer.eos_token is not None and tokenizer.eos_token_id not in closing:
        closing_text += str(tokenizer.eos_token)
    return _PLAIN_TEMPLATE.replace("OPENING", json.dumps(opening_text)).replace("CLOSING", json.dumps(closing_text))


def _free_pad(tokenizer: "PreTrainedTokenizerBase") -> tuple[str | None, str]:
    """A token of the vocabulary that nothing else uses, and why it was chosen."""
    vocabulary = tokenizer.get_vocab()
    template = (
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else str(tokenizer.chat_template or "")
    )
    taken = {token for name, token in tokenizer.special_tokens_map.items() if name in _ROLES}
    reserved = sorted(
        (token for token in vocabulary if _RESERVED.fullmatch(token)), key=lambda token: vocabulary[token]
    )
    for token in (*_PADS, *reserved):
        if token in vocabulary and token not in taken and token not in template:
            return token, "set aside in the vocabulary"
    unknown = tokenizer.unk_token
    backend = getattr(tokenizer, "backend_tokenizer", None)
    never_produced = backend is not None and getattr(backend.model, "byte_fallback", False)
    if unknown is not None and never_produced and unknown not in (tokenizer.eos_token, tokenizer.bos_token):
        return str(unknown), "text never produces it, bytes are the fallback"
    return None, ""


_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
