"""Token ids to rewards: load a reward model, and the one inference loop that every job uses.

Scores do not depend on how rows fall into batches (in float32 up to 1e-5): rows are padded on the right, pooled by
attention mask, and the head runs in float32.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from normbt.errors import ConfigError, DataError, ModelError
from normbt.head import capture_hidden, unwrap
from normbt.weights import pair_distance

logger = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = 16_384
PAIRS_IN_MEMORY = 4_096
"""Pairs whose hidden states are held at once: 128 MB at a hidden size of 4096."""

ADAPTER_CONFIG = "adapter_config.json"

_RANDOM_HEAD_MARK = "_normbt_random_head"

Progress = Callable[[int], None]
"""Called with the number of sequences done so far."""


@dataclass(frozen=True)
class Scores:
    """Rewards of sequences, in the order of the input.

    Attributes:
        rewards: shape ``(rows,)``, float32.
        hidden: what the head read, shape ``(rows, hidden)``, float32, on the CPU; None unless asked for.
        non_finite: number of rows whose reward is NaN or infinite.
        forwarded: number of distinct sequences, each of which went through the model once.
    """

    rewards: NDArray[np.float32]
    hidden: Tensor | None
    non_finite: int
    forwarded: int


@dataclass(frozen=True)
class PairScores:
    """Rewards and representation distances of pairs; every array has shape ``(pairs,)``.

    Attributes:
        chosen: rewards of the preferred answers, float32.
        rejected: rewards of the other answers, float32.
        distance: l2 distance between the two inputs of the head, float32.
        chosen_tokens: length of the preferred sequence in tokens.
        rejected_tokens: length of the other sequence in tokens.
        non_finite: number of rewards that are NaN or infinite.
    """

    chosen: NDArray[np.float32]
    rejected: NDArray[np.float32]
    distance: NDArray[np.float32]
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]
    non_finite: int


def score(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    keep_hidden: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Reward of every sequence of token ids.

    Each distinct sequence goes through the model once. Batches hold sequences of similar length, longest first, so
    that too large a batch fails at the start and not at the end.

    Args:
        model: a reward model that :func:`normbt.head.capture_hidden` can serve, on its device; its mode is restored.
        sequences: token ids of each row, complete (template, BOS and EOS included), not padded.
        batch_tokens: most tokens in a batch, padding included; a longer sequence is a batch of its own.
        keep_hidden: return the hidden states too.
        progress: called after every batch.

    Returns:
        Rewards, and the hidden states if asked for.

    Raises:
        ConfigError: ``batch_tokens`` is not positive, or a batch does not fit the device's memory.
        DataError: a sequence is empty.
        ModelError: the model has no usable head, or does not know how to pad.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens must be at least 1, found {batch_tokens}.")
    distinct: dict[tuple[int, ...], int] = {}
    row_of = [distinct.setdefault(tuple(sequence), len(distinct)) for sequence in sequences]
    if () in distinct:
        raise DataError(f"sequence {row_of.index(distinct[()])} has no tokens: there is nothing to score.")

    ids = list(distinct)
    copies = np.bincount(row_of, minlength=len(ids)) if row_of else np.zeros(0, dtype=np.int64)
    rewards = torch.zeros(len(ids))
    hidden: list[Tensor] = [torch.empty(0)] * len(ids) if keep_hidden else []
    done = 0
    with _inference(model), capture_hidden(model) as captured:
        for batch in _batches_by_length([len(row) for row in ids], batch_tokens):
            _forward(model, [ids[index] for index in batch], batch_tokens)
            rewards[batch] = captured.rewards.float().cpu()
            if keep_hidden:
                for index, state in zip(batch, captured.hidden.float().cpu(), strict=True):
                    hidden[index] = state
            done += int(copies[batch].sum())
            if progress is not None:
                progress(done)

    values = rewards.numpy()[row_of] if row_of else np.zeros(0, dtype=np.float32)
    return Scores(
        rewards=values,
        hidden=torch.stack([hidden[index] for index in row_of]) if hidden else None,
        non_finite=int((~np.isfinite(values)).sum()),
        forwarded=len(ids),
    )


def score_pairs(
    model: nn.Module,
    chosen: Sequence[Sequence[int]],
    rejected: Sequence[Sequence[int]],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: Progress | None = None,
) -> PairScores:
    """Rewards of both answers of every pair, and the distance between their representations.

    Args:
        model: as in :func:`score`.
        chosen: token ids of the preferred sequences, prompt included.
        rejected: token ids of the other sequences.
        batch_tokens: as in :func:`score`.
        progress: called with the number of sequences done so far, two for each pair.

    Returns:
        Rewards, distances and lengths.

    Raises:
        ConfigError: as in :func:`score`.
        DataError: a sequence is empty.
        ModelError: as in :func:`score`.
        ValueError: the two sides differ in number.
    """
    pairs = len(chosen)
    if pairs != len(rejected):
        raise ValueError(f"wanted as many chosen as rejected sequences, found {pairs} and {len(rejected)}")
    rewards, distances, non_finite = np.zeros((2, pairs), dtype=np.float32), np.zeros(pairs, dtype=np.float32), 0
    for start in range(0, pairs, PAIRS_IN_MEMORY):
        part = slice(start, min(start + PAIRS_IN_MEMORY, pairs))
        scores = score(
            model,
            [*chosen[part], *rejected[part]],
            batch_tokens=batch_tokens,
            keep_hidden=True,
            progress=progress and _counting_from(2 * start, progress),
        )
        assert scores.hidden is not None
        rewards[:, part] = scores.rewards.reshape(2, -1)
        distances[part] = pair_distance(*scores.hidden.chunk(2)).numpy()
        non_finite += scores.non_finite
    return PairScores(
        chosen=rewards[0],
        rejected=rewards[1],
        distance=distances,
        chosen_tokens=np.array([len(row) for row in chosen], dtype=np.int64),
        rejected_tokens=np.array([len(row) for row in rejected], dtype=np.int64),
        non_finite=non_finite,
    )


def max_positions(model: nn.Module) -> int | None:
    """Longest sequence the model can read, in tokens; None when its positions are not limited.

    Example:
        >>> from transformers import RobertaConfig, RobertaForSequenceClassification
        >>> config = RobertaConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        ...                        intermediate_size=4, max_position_embeddings=514)
        >>> max_positions(RobertaForSequenceClassification(config))  # positions start after the pad token's
        512
    """
    inner = unwrap(model)
    for module in inner.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(_text_config(inner), "max_position_embeddings", None)


def has_random_head(model: nn.Module) -> bool:
    """Whether :func:`load_reward_model` had to make up the model's head."""
    return getattr(unwrap(model), _RANDOM_HEAD_MARK, False)


def load_reward_model(
    name_or_path: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    attention: str | None = None,
    allow_untrained_head: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a reward model and its tokenizer from a folder, an adapter's folder, or the Hub.

    Args:
        name_or_path: a sequence-classification checkpoint with one label, or a PEFT adapter that holds the head.
        dtype: ``"auto"`` for the checkpoint's own, or ``"float32"``, ``"bfloat16"``, ``"float16"``.
        device: such as ``"cpu"`` or ``"cuda:0"``; None for the first GPU, or the CPU where there is none.
        attention: implementation of attention, such as ``"sdpa"`` or ``"eager"``; None for the library's choice.
        allow_untrained_head: put a random head on a checkpoint that has none, with a warning. Its scores mean
            nothing; it is a baseline.
        seed: of that random head.
        trust_remote_code: run Python code that the checkpoint brings along.

    Returns:
        The model, in evaluation mode on its device, and the tokenizer. A model that has no pad token takes the
        tokenizer's; scoring masks padding out, so its identity changes no score.

    Raises:
        ConfigError: ``dtype`` is unknown.
        ModelError: there is no such model, it is not a reward model, or weights are missing.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype must be auto, float32, bfloat16 or float16, found '{dtype}'.")
    name = str(name_or_path)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    weights: dict[str, Any] = {"dtype": dtype, **settings}
    if attention is not None:
        weights["attn_implementation"] = attention
    try:
        # The random head, if there is one, comes from `seed` and moves nobody else's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if (Path(name) / ADAPTER_CONFIG).is_file():
                model, tokenizer = _load_adapter(name, weights, settings, allow_untrained_head)
            else:
                _check_one_label(name, settings, allow_untrained_head)
                model, missing = _load_checkpoint(name, weights)
                _check_missing(name, model, missing, allow_untrained_head)
                tokenizer = AutoTokenizer.from_pretrained(name, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"Cannot load a reward model and its tokenizer from '{name}': {_first_line(error)}") from error
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(target)  # pyright: ignore[reportArgumentType] - a wrapper of transformers hides the signature
    text_config = _text_config(unwrap(model))
    if getattr(text_config, "pad_token_id", None) is None:
        text_config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return model.eval(), tokenizer


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions in ``lengths``, longest first, in batches of at most ``batch_tokens`` tokens after padding."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + rows]
        start += rows


def _forward(model: nn.Module, rows: Sequence[Sequence[int]], batch_tokens: int) -> None:
    """Run the model on rows padded on the right; what it gave is in the capture around this call."""
    device = next(model.parameters()).device
    longest = max(len(row) for row in rows)
    pad = _pad_token_id(model, needed=len(rows) > 1)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.as_tensor(row)
        mask[index, : len(row)] = 1
    try:
        model(input_ids=ids.to(device), attention_mask=mask.to(device))
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"A batch of {len(rows)} x {longest} tokens does not fit the memory of {device}. "
            f"Lower batch_tokens (now {batch_tokens}) or max_length."
        ) from error


def _pad_token_id(model: nn.Module, *, needed: bool) -> int:
    """A token id to fill rows up with. It is masked out, so any id the embedding knows will do."""
    pad = getattr(_text_config(unwrap(model)), "pad_token_id", None)
    if pad is None and needed:
        # Transformers' own forward refuses a batch then, before anybody looks at the mask.
        raise ModelError(
            f"{type(unwrap(model)).__name__} has no pad_token_id in its config, so it refuses batches of several rows. "
            "Set model.config.pad_token_id to the tokenizer's pad token."
        )
    return pad if pad is not None and pad >= 0 else 0


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _counting_from(start: int, progress: Progress) -> Progress:
    return lambda done: progress(start + done)


def _check_one_label(name: str, settings: Mapping[str, Any], allow_untrained_head: bool) -> None:
    config = AutoConfig.from_pretrained(name, **settings)
    architecture = (config.architectures or ["a model"])[0]
    if "SequenceClassification" in architecture:
        if config.num_labels != 1:
            raise ModelError(
                f"'{name}' is a {architecture} with {config.num_labels} labels: it is a classifier. "
                "A reward model has one (num_labels=1)."
            )
    elif not allow_untrained_head:
        raise ModelError(
            f"'{name}' is a {architecture}: it has no scoring head, and a random one would give meaningless rewards. "
            "Train a reward model from it first (normbt train), or pass --allow_untrained_head to use it as a baseline."
        )


def _load_checkpoint(name: str, settings: Mapping[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """The model with one label, and the names of the weights that the checkpoint did not hold."""
    try:
        model, information = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, output_loading_info=True, **settings
        )
    except SafetensorError as error:
        raise ModelError(f"The weights of '{name}' cannot be read ({error}). Fetch or save them again.") from error
    except RuntimeError as error:  # shapes that do not fit
        raise ModelError(f"The weights of '{name}' do not fit a model of one label: {_first_line(error)}") from error
    return model, set(information["missing_keys"])


def _load_adapter(
    name: str, weights: Mapping[str, Any], settings: Mapping[str, Any], allow_untrained_head: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A PEFT adapter on its base model; the head must be in one of the two."""
    from peft import PeftConfig, PeftModel, load_peft_weights

    base_name = PeftConfig.from_pretrained(name).base_model_name_or_path
    if not base_name:
        raise ModelError(f"{Path(name) / ADAPTER_CONFIG} does not name its base model (base_model_name_or_path).")
    base, missing = _load_checkpoint(base_name, weights)
    saved = load_peft_weights(name, device="cpu")
    held = {key.removeprefix("base_model.model.").replace(".modules_to_save", ""): saved[key] for key in saved}
    _check_missing(f"{name} (on {base_name})", base, missing - held.keys(), allow_untrained_head)
    own_tokenizer = (Path(name) / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(name if own_tokenizer else base_name, **settings)
    embedding = next(name for name, module in base.named_modules() if module is base.get_input_embeddings())
    if f"{embedding}.weight" in held:  # training added a token, such as a pad token: the base must have room for it
        base.resize_token_embeddings(held[f"{embedding}.weight"].shape[0], mean_resizing=False)
    return PeftModel.from_pretrained(base, name), tokenizer  # type: ignore[return-value] - it wraps the model


def _check_missing(name: str, model: PreTrainedModel, missing: set[str], allow_untrained_head: bool) -> None:
    """Refuse random weights: never in the backbone; in the head (and a pooler before it) only when asked for."""
    prefix = f"{model.base_model_prefix}."
    backbone = sorted(key for key in missing if key.startswith(prefix) and ".pooler." not in key)
    if backbone:
        raise ModelError(
            f"{name} lacks {len(backbone)} weights of {type(model).__name__} (first: {backbone[0]}). "
            "They would be random: the checkpoint is incomplete or of another architecture."
        )
    if not missing:
        return
    head = ", ".join(sorted(missing))
    if not allow_untrained_head:
        raise ModelError(
            f"{name} does not hold the scoring head ({head}); a random one would give meaningless rewards. "
            "Save the head with the checkpoint (PEFT: task_type SEQ_CLS and modules_to_save), "
            "or pass --allow_untrained_head to use it as a baseline."
        )
    logger.warning("%s has no trained scoring head: %s is RANDOM, and so are the rewards.", name, head)
    setattr(model, _RANDOM_HEAD_MARK, True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
