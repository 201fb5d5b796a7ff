"""Load a reward model from a folder, an adapter or the Hub, and refuse one whose head would be random."""

import contextlib
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from normbt.errors import ConfigError, ModelError
from normbt.head import unwrap

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"

_RANDOM_HEAD_MARK = "_normbt_random_head"


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
        ConfigError: ``dtype`` is unknown, or this machine has no such ``device``.
        ModelError: there is no such model, it is not a reward model, or weights are missing.
    """
    target = _device(device)
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype must be auto, float32, bfloat16 or float16, found '{dtype}'.")
    name = str(name_or_path)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    weights: dict[str, Any] = {"dtype": dtype, **settings}
    if attention is not None:
        weights["attn_implementation"] = attention
    # The random head, if there is one, comes from `seed` and moves nobody else's random numbers.
    with torch.random.fork_rng(devices=[]), loading(name):
        torch.manual_seed(seed)
        if (Path(name) / ADAPTER_CONFIG).is_file():
            model, tokenizer = _load_adapter(name, weights, settings, allow_untrained_head)
        else:
            _check_one_label(name, settings, allow_untrained_head)
            model, missing = _load_checkpoint(name, weights)
            _check_missing(name, model, missing, allow_untrained_head)
            tokenizer = AutoTokenizer.from_pretrained(name, **settings)
    model.to(target)  # pyright: ignore[reportArgumentType] - a wrapper of transformers hides the signature
    config = text_config(unwrap(model))
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return model.eval(), tokenizer


@contextlib.contextmanager
def loading(name: str, *, over: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Say in one message why a model, its weights or its tokenizer cannot be read.

    Args:
        name: what is loaded, as the user named it.
        over: whether the loading is done, where the context holds more than that; what is raised then passes.

    Raises:
        ModelError: there is no such model, it is of no known kind, a package that it needs is missing, or its weights
            are damaged or a pickle of more than tensors, of which torch runs nothing. Other errors pass.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError, pickle.UnpicklingError) as error:
        if over():
            raise
        raise ModelError(_why_not_loaded(name, error)) from error


def require_model(name: str) -> None:
    """Read a model's config and nothing more, so that a wrong name stops a job before it does anything.

    Args:
        name: folder or Hub name of a model.

    Raises:
        ModelError: there is no such model, or its kind is not known.

    Example:
        >>> require_model("./nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        normbt.errors.ModelError: Cannot load './nowhere': ...
    """
    with loading(name):
        AutoConfig.from_pretrained(name)


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
    return getattr(text_config(inner), "max_position_embeddings", None)


def has_random_head(model: nn.Module) -> bool:
    """Whether :func:`load_reward_model` had to make up the model's head."""
    return getattr(unwrap(model), _RANDOM_HEAD_MARK, False)


def text_config(model: nn.Module) -> Any:
    """The config of a model's language part, where a multi-modal model has several; None without a config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _device(wanted: str | None) -> torch.device:
    """The device of that name, which must be here: found out before a model is read that could not go there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    here = [] if accelerator is None else [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:  # a word that torch does not know
        device = None
    if device is None or (device.type != "cpu" and f"{device.type}:{device.index or 0}" not in here):
        raise ConfigError(f"There is no device '{wanted}' here. This machine has: {', '.join(['cpu', *here])}.")
    return device


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


def _why_not_loaded(name: str, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return (
            f"The weights of '{name}' are a pickle of more than plain tensors, which could run code: nothing of it was "
            "run. Take the model as safetensors."
        )
    if isinstance(error, SafetensorError):
        return f"The weights of '{name}' cannot be read ({error}). Fetch or save them again."
    return f"Cannot load '{name}': {_first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
