"""A reward model made ready for a job: loaded, with its template, its longest sequence and the checks jobs share."""

import copy
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from normbt.encoding import encode_conversations, prepare_tokenizer
from normbt.errors import ConfigError, ModelError
from normbt.head import unwrap
from normbt.loading import has_random_head, load_reward_model, max_positions
from normbt.pairs import as_conversation
from normbt.results import InferenceSettings

logger = logging.getLogger(__name__)

DEFAULT_MAX_LENGTH = 2048
"""Tokens of a sequence unless the model reads fewer; the reference implementation of RewardBench uses the same."""

Template = Literal["auto", "chat", "plain"]
TEMPLATES: tuple[Template, ...] = ("auto", "chat", "plain")

_SAMPLED = 64

Text = str | list[dict[str, Any]]


@dataclass(frozen=True)
class RewardModel:
    """A loaded reward model and how it reads text.

    Attributes:
        name: the model as the user named it.
        model: the model, in evaluation mode on its device.
        tokenizer: what encodes for it.
        max_length: most tokens of a sequence.
        template: whose chat template renders plain text: ``tokenizer``, ``built-in``, or ``none`` (joined as it is).
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    template: str = "none"

    def with_template(
        self, template: Template, *, conversations: bool, has_prompt: bool, chat_by_default: bool = False
    ) -> "RewardModel":
        """The same model with the decision how its texts are rendered.

        Args:
            template: ``"chat"``: always as a conversation, with a built-in template if the tokenizer has none.
                ``"plain"``: prompt and answer joined as they are. ``"auto"``: conversations through the template,
                plain text as it is.
            conversations: the texts are conversations, which always need a template.
            has_prompt: prompt and answer are told apart.
            chat_by_default: ``"auto"`` renders plain text through the tokenizer's own template, if it has one.

        Raises:
            ConfigError: the texts cannot be rendered that way.
        """
        if conversations and template == "plain":
            raise ConfigError("The data are conversations, which need a chat template: use template auto or chat.")
        own = bool(self.tokenizer.chat_template)
        if not (conversations or template == "chat" or (template == "auto" and chat_by_default and own)):
            return replace(self, template="none")
        if not conversations and not has_prompt:
            raise ConfigError(
                "The data are plain text without a prompt, so no conversation can be made: use template plain."
            )
        if own:
            return replace(self, template="tokenizer")
        tokenizer = copy.deepcopy(self.tokenizer)  # the caller's stays as it is
        for message in prepare_tokenizer(tokenizer, conversational=True):
            logger.info("%s", message)
        return replace(self, tokenizer=tokenizer, template="built-in")

    def encode(self, rows: Sequence[Text | tuple[Text, Text]]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each row, and whether it was cut to ``max_length``.

        Args:
            rows: each a ``(prompt, answer)`` pair or a complete text or conversation.

        Raises:
            DataError: the chat template refuses a row.
            ModelError: the tokenizer gives ids that the model does not know.
        """
        if self.template != "none":
            rows = [as_conversation(*row) if isinstance(row, tuple) else row for row in rows]
        ids, truncated = encode_conversations(self.tokenizer, rows, max_length=self.max_length)
        self._check_vocabulary(ids)
        return ids, truncated

    def settings(self, *, batch_tokens: int, batching: str) -> InferenceSettings:
        """What decides the exact value of a reward, apart from the weights."""
        return InferenceSettings(
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=str(self.model.device),
            attention=getattr(unwrap(self.model).config, "_attn_implementation", None),
            max_length=self.max_length,
            batch_tokens=batch_tokens,
            batching=batching,
            template=self.template,
            untrained_head=has_random_head(self.model),
        )

    def fingerprint(self) -> str:
        """A digest of the weights and of what the tokenizer makes of text: equal for equal rewards.

        Of every tensor up to 64 numbers are read, spread over it: training changes all of them, and a model of many
        gigabytes is told in a second.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].double().cpu()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + sample.numpy().tobytes())
        tokenizer = self.tokenizer
        described = [tokenizer.chat_template, len(tokenizer), sorted(map(str, tokenizer.special_tokens_map.items()))]
        digest.update(repr(described).encode())
        return digest.hexdigest()

    def _check_vocabulary(self, ids: Sequence[Sequence[int]]) -> None:
        """A token the embedding does not know would end in an index error, on a GPU without any explanation."""
        embedding: Any = self.model.get_input_embeddings()
        known = embedding.weight.shape[0]
        largest = max((max(row) for row in ids if row), default=0)
        if largest >= known:
            raise ModelError(
                f"The tokenizer gave the token id {largest}, the model knows {known} tokens: they do not belong "
                "together."
            )


def open_model(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    allow_untrained_head: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Load a reward model, or take a loaded one, and settle the longest sequence it is given.

    Args:
        model: folder, adapter folder or Hub id of a reward model, or a loaded one (then with its ``tokenizer``).
        tokenizer: of a loaded model.
        max_length: most tokens of a sequence; None for :data:`DEFAULT_MAX_LENGTH`, or less if the model reads less.
        dtype: as in :func:`normbt.loading.load_reward_model`, like all that follow.
        device: where to run.
        attention: implementation of attention.
        allow_untrained_head: put a random head on a checkpoint that has none.
        seed: of that head.
        trust_remote_code: run code of the checkpoint.

    Raises:
        ConfigError: a loaded model comes without its tokenizer, or ``max_length`` is more than the model reads.
        ModelError: the model cannot be loaded or has no usable head.
    """
    name = str(model)
    if isinstance(model, str | Path):
        loaded, tokenizer = load_reward_model(
            model,
            dtype=dtype,
            device=device,
            attention=attention,
            allow_untrained_head=allow_untrained_head,
            seed=seed,
            trust_remote_code=trust_remote_code,
        )
    elif tokenizer is None:
        raise ConfigError("A loaded model needs its tokenizer: pass tokenizer=tokenizer beside it.")
    else:
        loaded, name = model, getattr(model, "name_or_path", "") or type(unwrap(model)).__name__
    return RewardModel(name, loaded, tokenizer, _longest(loaded, tokenizer, max_length))


def _longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    positions = max_positions(model)
    if max_length is not None:
        if positions is not None and max_length > positions:
            raise ConfigError(
                f"max_length is {max_length}, but the model reads at most {positions} tokens. Lower max_length."
            )
        return max_length
    return min(DEFAULT_MAX_LENGTH, tokenizer.model_max_length, positions or DEFAULT_MAX_LENGTH)
