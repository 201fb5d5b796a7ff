"""Job: what this machine has, and one pair as a model sees it, with the tokens that its head reads."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from datasets import Dataset
from packaging.requirements import Requirement
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from normbt.encoding import encode_pairs, prepare_tokenizer
from normbt.errors import ConfigError, ModelError
from normbt.head import capture_hidden, find_head, unwrap
from normbt.loading import load_reward_model
from normbt.pairs import read_pairs
from normbt.results import RECORDED_PACKAGES

EXTRAS = {
    "train": "training, evaluation and the command line",
    "report": "pictures and HTML reports",
    "demo": "the small pretrained encoder of `normbt demo`",
    "fuzz": "fuzz the readers of preference data, guided by coverage",
    "dev": "work on normbt itself",
}
"""What each extra of the package is for."""

BUILT_IN_PAIR = {
    "id": "built-in",
    "prompt": "What is 17 + 25?",
    "chosen": "17 + 25 = 42.",
    "rejected": "17 + 25 = 32.",
}


@dataclass(frozen=True)
class MissingExtra:
    """An extra of the package that is not completely installed."""

    name: str
    purpose: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Token:
    """One token as text and as id."""

    text: str
    id: int


@dataclass(frozen=True)
class RenderedAnswer:
    """One side of the pair as the model gets it.

    Attributes:
        tokens: every token, prompt included.
        pooled: positions of the tokens whose last hidden state the head's input is made of.
        reward: what the model gives it.
    """

    tokens: tuple[Token, ...]
    pooled: tuple[int, ...]
    reward: float


@dataclass(frozen=True)
class ModelReport:
    """What one model makes of one pair."""

    name: str
    architecture: str
    parameters: int
    head: str
    special_tokens: dict[str, Token | None]
    prefix_length: int
    chosen: RenderedAnswer
    rejected: RenderedAnswer
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class DoctorReport:
    """What was found.

    Attributes:
        versions: version of Python and of each package; None where it is not installed.
        device: what training would run on.
        free_memory: bytes free on that device.
        missing_extras: extras that are incomplete.
        model: the model's part, where one was named.
    """

    versions: dict[str, str | None]
    device: str
    free_memory: int
    missing_extras: tuple[MissingExtra, ...]
    model: ModelReport | None = None


def examine(model: str | None = None, data: str | None = None) -> DoctorReport:
    """Look at this machine and, where one is named, at a model.

    Args:
        model: folder or Hub name of a reward model, or of a base model that is to become one.
        data: preference data whose first pair is shown; None takes a built-in pair.

    Returns:
        What was found.

    Raises:
        ConfigError: data were named and no model that could read them.
        DataError: the data hold no usable pair.
        ModelError: the model cannot be loaded, or has no usable head.
    """
    if data is not None and model is None:
        raise ConfigError("--data needs a MODEL: the doctor shows its first pair as a model reads it.")
    versions = {"normbt": _version("normbt"), "python": platform.python_version()}
    versions |= {name: _version(name) for name in RECORDED_PACKAGES}
    device, free_memory = _device()
    return DoctorReport(
        versions=versions,
        device=device,
        free_memory=free_memory,
        missing_extras=tuple(missing_extras()),
        model=None if model is None else examine_model(model, data),
    )


def missing_extras() -> Iterator[MissingExtra]:
    """The extras of this package of which something is not installed, read from its own metadata."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("normbt") or ()]
    optional = [one for one in requirements if one.name != "normbt" and one.marker]
    for extra, purpose in EXTRAS.items():
        # A package without a build for this system is not wanted here: its marker says so.
        wanted = [one.name for one in optional if one.marker and one.marker.evaluate({"extra": extra})]
        missing = tuple(package for package in wanted if _version(package) is None)
        if missing:
            yield MissingExtra(extra, purpose, missing)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> tuple[str, int]:
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}", free
    kind = "mps" if torch.backends.mps.is_available() else f"cpu, threads: {torch.get_num_threads()}"
    return kind, psutil.virtual_memory().available


def examine_model(name: str, data: str | None = None) -> ModelReport:
    """Run one pair through a model and report what it got and which tokens its head read.

    Args:
        name: folder or Hub name of a reward model, or of a base model that is to become one.
        data: preference data whose first pair is used; None takes a built-in pair.

    Returns:
        The tokens of both answers, what the head read, and what looks wrong.

    Raises:
        DataError: the data hold no usable pair.
        ModelError: the model cannot be loaded, or has no usable head.
    """
    model, tokenizer, warnings = _load(name)
    first = _first_pair(data)
    special_tokens = {kind: _special_token(tokenizer, kind) for kind in ("bos", "eos", "pad")}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        warnings.append("the pad token is EOS: plain Transformers would pool the token before EOS.")
    warnings += prepare_tokenizer(tokenizer, conversational=isinstance(first["chosen"], list))
    encoded, report = encode_pairs(Dataset.from_list([first]), tokenizer, max_length=None)
    pair: dict[str, Any] = next(iter(encoded))
    chosen = _render(model, tokenizer, pair["chosen_ids"])
    rejected = _render(model, tokenizer, pair["rejected_ids"])
    bos = tokenizer.bos_token_id
    if bos is not None and pair["chosen_ids"][:2] == [bos, bos]:
        warnings.append("the row begins with two BOS tokens: its chat template or its text writes both.")
    if report.eos_appended:
        warnings.append(
            f"the chat template does not close with EOS ({tokenizer.eos_token}): training appends it, "
            "a server that renders messages will not."
        )
    head_name, head = find_head(model)
    return ModelReport(
        name=name,
        architecture=type(unwrap(model)).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        head=f"{head_name}: {head}",
        special_tokens=special_tokens,
        prefix_length=pair["prefix_length"],
        chosen=chosen,
        rejected=rejected,
        warnings=tuple(warnings),
    )


def _first_pair(data: str | None) -> dict[str, Any]:
    if data is None:
        return dict(BUILT_IN_PAIR)
    pairs, _ = read_pairs(data)
    return next(iter(pairs))


def _load(name: str) -> tuple[nn.Module, PreTrainedTokenizerBase, list[str]]:
    try:
        return *load_reward_model(name), []
    except ModelError as error:
        # A base model that is to be trained is welcome here; what else is wrong with it is raised again.
        return *load_reward_model(name, allow_untrained_head=True), [f"the head is random. {error}"]


def _special_token(tokenizer: PreTrainedTokenizerBase, kind: str) -> Token | None:
    text = getattr(tokenizer, f"{kind}_token")
    return None if text is None else Token(text, getattr(tokenizer, f"{kind}_token_id"))


def _render(model: nn.Module, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> RenderedAnswer:
    pooled, reward = pooled_positions(model, ids)
    return RenderedAnswer(tuple(Token(str(tokenizer.decode([i])), i) for i in ids), pooled, reward)


def pooled_positions(model: nn.Module, ids: Sequence[int]) -> tuple[tuple[int, ...], float]:
    """Which tokens' last hidden states the head's input is made of, found by asking autograd, and the reward.

    No list of architectures is kept: whatever pooling the model does, a hidden state that it reads has a gradient.

    Args:
        model: a reward model.
        ids: token ids of one row, not padded.

    Returns:
        Positions in ``ids``, and the reward.

    Raises:
        ModelError: the model has no usable head, or no backbone whose output can be seen.
    """
    inner = unwrap(model)
    backbone = getattr(inner, getattr(inner, "base_model_prefix", ""), None)
    if not isinstance(backbone, nn.Module):
        raise ModelError(f"{type(inner).__name__} does not name its backbone, so the pooled token cannot be shown.")
    last_hidden: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, result: Any) -> None:
        # A model whose parameters are all frozen, such as a loaded adapter's, would leave no graph to ask.
        last_hidden.append(result[0].requires_grad_())

    hook = backbone.register_forward_hook(keep)
    device = next(model.parameters()).device
    row = torch.tensor([list(ids)], device=device)
    try:
        with capture_hidden(model) as captured:
            model(input_ids=row, attention_mask=torch.ones_like(row))
        # Weights that differ: a plain sum does not change with what goes into a LayerNorm, so its gradient is zero.
        uneven = torch.linspace(1, 2, captured.hidden.shape[-1], device=device)
        (gradient,) = torch.autograd.grad((captured.hidden.float() * uneven).sum(), last_hidden[0])
    finally:
        hook.remove()
    positions = gradient[0].ne(0).any(dim=-1).nonzero().flatten()
    return tuple(positions.tolist()), captured.rewards.item()
