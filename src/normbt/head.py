"""Find the scoring head of a reward model, pool what it reads by attention mask, and run it in float32."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normbt.errors import ModelError

logger = logging.getLogger(__name__)

LAYOUT_KEYWORD = "pair_layout"
"""Name under which a packed batch's layout travels through the model's forward."""


_SHOWN = 8  # modules that an error names; a backbone taken for a head has hundreds


def last_token(attention_mask: Tensor) -> Tensor:
    """Position of the pooled token of each row: the rightmost one the attention mask keeps.

    Args:
        attention_mask: 1 for real tokens, 0 for padding on either side, shape ``(rows, tokens)``.

    Returns:
        Positions, shape ``(rows,)``, int64. A row without any real token gives position 0.

    Example:
        >>> last_token(torch.tensor([[1, 1, 0], [0, 1, 1]]))
        tensor([1, 2])
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (positions * attention_mask.ne(0)).argmax(dim=-1)


def pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The hidden state of each row's last real token: the one pooling rule of token-level heads.

    The pad token's id plays no part, so a pad token that equals EOS is read correctly.

    Args:
        hidden: what the head would read, shape ``(rows, tokens, hidden)``. May have more tokens than the mask: tokens
            put in front by the model, such as prompt tuning's, are skipped.
        attention_mask: 1 for real tokens, 0 for padding on either side, shape ``(rows, tokens)``.

    Returns:
        Shape ``(rows, hidden)``, gradient kept.

    Example:
        >>> pool(torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    prepended = hidden.shape[1] - attention_mask.shape[1]
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, last_token(attention_mask).to(hidden.device) + prepended]


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """The module that turns the hidden state into the reward: the last Linear of one output, outside the backbone.

    Adapters are seen through: of a head that PEFT trains and saves, the active copy is returned; a LoRA layer on the
    head is returned as a whole.

    Args:
        model: a sequence-classification model with one label, PEFT-wrapped or not, or any module that ends in a
            Linear of one output.

    Returns:
        Name of the head inside the unwrapped model, and the head.

    Raises:
        ModelError: there is no such module, or several; the message names what was seen.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> find_head(model)
        ('2', Linear(in_features=8, out_features=1, bias=True))
    """
    inner = unwrap(model)
    backbone = getattr(inner, getattr(inner, "base_model_prefix", "") or "", None)
    in_backbone = set(backbone.modules()) if isinstance(backbone, nn.Module) and backbone is not inner else set()

    linears: dict[str, nn.Module] = {}
    skipped: tuple[str, ...] = ()
    for name, module in inner.named_modules():
        if module in in_backbone or f"{name}.".startswith(skipped):
            continue
        if _is_saved_copy_wrapper(module):
            skipped += (f"{name}.original_module.", *_inactive_copies(name, module))
        elif _output_size(module) is not None:
            linears[name] = module
            skipped += (f"{name}.",)  # the parts of a LoRA layer are not heads of their own

    heads = {name: module for name, module in linears.items() if _output_size(module) == 1}
    if len(heads) == 1:
        return next(iter(heads.items()))
    seen = ", ".join(f"{name} ({_output_size(module)} outputs)" for name, module in list(linears.items())[-_SHOWN:])
    seen = f"{f'{len(linears)}, the last ones ' if len(linears) > _SHOWN else ''}{seen or 'none'}"
    if heads:
        raise ModelError(
            f"{type(inner).__name__} has {len(heads)} Linear modules of one output outside its backbone "
            f"({', '.join(heads)}); a reward model has exactly one scoring head. Linear modules seen: {seen}."
        )
    children = ", ".join(f"{name} ({type(module).__name__})" for name, module in inner.named_children())
    raise ModelError(
        f"{type(inner).__name__} has no scoring head: wanted one Linear with one output outside the backbone. "
        f"Linear modules seen there: {seen}. Top-level modules: {children}. "
        "Load the model with AutoModelForSequenceClassification and num_labels=1."
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel``, compile and PEFT wrappers.

    Args:
        model: any module.

    Returns:
        The innermost model; ``model`` itself when nothing wraps it.

    Example:
        >>> head = nn.Linear(2, 1)
        >>> unwrap(head) is head
        True
    """
    model = _callable_model(model)
    while hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator] - PEFT's method, which torch takes for a submodule
    return model


class CapturedHidden:
    """What the head read and gave in the latest forward inside :func:`capture_hidden`."""

    def __init__(self) -> None:
        self._hidden: Tensor | None = None
        self._rewards: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """What the head read at the pooled token, shape ``(rows, hidden)``, in the model's own dtype, gradient kept."""
        return self._get(self._hidden)

    @property
    def rewards(self) -> Tensor:
        """What the head gave, shape ``(rows,)``, float32 (float64 for a float64 model), gradient kept."""
        return self._get(self._rewards)

    def _get(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise ModelError("the scoring head has not run: call the model inside `with capture_hidden(model)`.")
        return value


@contextmanager
def capture_hidden(model: nn.Module) -> Iterator[CapturedHidden]:
    r"""Capture the pooled hidden state h that produced the logits of each forward of ``model``.

    .. math:: r = w_s \cdot h + b_s

    Inside the context the model's own forward runs with two changes to its head: a token-level head reads only the
    pooled token (see :func:`pool`), and the head runs in float32, also under autocast. The logits the model returns
    are therefore ``head(h)`` in float32, whatever the padding side, and also when the pad token is EOS. The first
    forward proves that nothing stands between the head and the logits. Outside the context the model is unchanged.

    Pooling knows both padding sides; a model's position ids may not. Models with rotary positions give the same rewards
    either way. With absolute positions (GPT-2) left padding shifts the text unless ``position_ids`` are passed, and
    models that pool their first token (BERT and its kin) or last EOS (T5, BART) follow their own rule: pad those on
    the right.

    Args:
        model: a reward model that :func:`find_head` can serve; PEFT-wrapped and ``DistributedDataParallel`` too. It
            is called as usual, with ``attention_mask`` where rows are padded.

    Yields:
        The record of the latest forward.

    Raises:
        ModelError: the model has no usable head, the logits are not the head's output, or rows are padded on the
            right and no attention mask was given.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> with capture_hidden(model) as captured:
        ...     logits = model(torch.ones(4, 3))
        >>> captured.hidden.shape, torch.equal(model[1](captured.hidden), logits)
        (torch.Size([4, 2]), True)

    References:
        The h of arXiv 2512.06343: "last-layer hidden state" read by the linear scoring head.
    """
    with HeadCapture(model).installed() as captured:
        yield captured


class HeadCapture:
    """:func:`capture_hidden` for loops: finds and proves the head once, and is installed around each forward.

    Args:
        model: a reward model that :func:`find_head` can serve.
        head: name of the head inside the unwrapped model; None finds it.

    Attributes:
        name: name of the head inside the unwrapped model.
        head: the head.

    Raises:
        ModelError: the model has no usable head.

    Example:
        >>> capture = HeadCapture(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)))
        >>> with capture.installed() as captured:
        ...     _ = capture.model(torch.ones(4, 3))
        >>> capture.name, captured.rewards.shape
        ('1', torch.Size([4]))
    """

    def __init__(self, model: nn.Module, head: str | None = None) -> None:
        self.model = _callable_model(model)
        self.name, self.head = find_head(model) if head is None else (head, _named_head(model, head))
        self.head_forward = self.head.forward
        self.record = CapturedHidden()
        self.arguments: dict[str, Any] = {}
        self.under_way = False
        self.proven = False
        self.inside_head = False

    @contextmanager
    def installed(self) -> Iterator[CapturedHidden]:
        """The context in which the model's forwards are captured; yields the record of the latest one."""
        hooks = [
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            # Before other hooks on the output: FSDP's must see the logits that the loss is built from.
            self.model.register_forward_hook(self._after_forward, prepend=True),
        ]
        # Another capture, or Accelerate's device hooks, may have replaced the forward of this instance before us.
        replaced = self.head.__dict__.get("forward")
        self.head_forward = self.head.forward
        self.head.forward = self._forward
        try:
            yield self.record
        finally:
            del self.head.forward
            if replaced is not None:
                self.head.forward = replaced
            for hook in hooks:
                hook.remove()
            self.under_way = False

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.under_way = True
        self.arguments = dict(kwargs)
        if args:
            names = inspect.signature(module.forward).parameters
            self.arguments.update(zip(names, args, strict=False))
        self.record._hidden = self.record._rewards = None

    def _forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stands in for the head's forward: pool, then the head in float32."""
        if self.inside_head:
            return self.head_forward(hidden, *args, **kwargs)
        if not self.under_way:
            raise ModelError(
                f"head {self.name} ran outside a forward of the {type(self.model).__name__} whose head is captured, so "
                "its attention mask is unknown. Call that model, not one inside it."
            )
        pooled = self._pooled(hidden)
        rewards = self._in_float32(pooled)
        if rewards.shape != (len(pooled), 1):
            raise ModelError(f"head {self.name} gave {tuple(rewards.shape)} for {len(pooled)} rows; wanted one reward.")
        self.record._hidden, self.record._rewards = pooled, rewards.squeeze(-1)
        if hidden.dim() == 2:
            return rewards
        # Whichever token the model's own rule picks, it finds the reward of the pooled one.
        rows = rewards if self._layout is None else rewards[:1]
        return rows.unsqueeze(1).expand(hidden.shape[0], hidden.shape[1], 1)

    def _pooled(self, hidden: Tensor) -> Tensor:
        if hidden.dim() == 2:
            return hidden
        if hidden.dim() != 3:
            raise ModelError(f"head {self.name} read a tensor of shape {tuple(hidden.shape)}; 2 or 3 axes are known.")
        if self._layout is not None:
            return hidden[0].index_select(0, torch.cat([self._layout.last_chosen, self._layout.last_rejected]))
        mask = self._attention_mask(hidden)
        if len(mask) != len(hidden) or mask.shape[1] > hidden.shape[1]:
            raise ModelError(
                f"head {self.name} read {hidden.shape[0]} rows of {hidden.shape[1]} tokens, and the attention mask has "
                f"{mask.shape[0]} of {mask.shape[1]}: rows that the model packs or unpads can't be pooled."
            )
        return pool(hidden, mask)

    def _in_float32(self, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            hidden = pooled if pooled.dtype == torch.float64 else pooled.float()
            parameters = dict(self.head.named_parameters())
            if all(parameter.dtype == hidden.dtype for parameter in parameters.values()):
                return self.head_forward(hidden)
            self.inside_head = True
            try:
                widened = {name: parameter.to(hidden.dtype) for name, parameter in parameters.items()}
                return torch.func.functional_call(self.head, widened, (hidden,))
            finally:
                self.inside_head = False

    @property
    def _layout(self) -> Any:
        return self.arguments.get(LAYOUT_KEYWORD)

    def _attention_mask(self, hidden: Tensor) -> Tensor:
        mask, ids = self.arguments.get("attention_mask"), self.arguments.get("input_ids")
        if mask is None:
            pad = _pad_token_id(self.model)
            if ids is not None and pad is not None and bool((ids[:, -1] == pad).any()):
                raise ModelError(
                    "input_ids end in pad tokens and there is no attention_mask; the pooled token can't be told. "
                    "Pass attention_mask."
                )
            return hidden.new_ones(hidden.shape[:2], dtype=torch.long)
        if mask.dim() != 2:
            raise ModelError(f"attention_mask must have shape (rows, tokens) to pool by, got {tuple(mask.shape)}.")
        return mask

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.under_way = False
        if self.record._rewards is None:
            raise ModelError(
                f"{type(self.model).__name__} did not run its head {self.name} in this forward. If adapters were "
                "switched or disabled, open the capture again after that."
            )
        rewards = self.record.rewards
        if self._layout is not None:
            return _with_logits(output, rewards.unsqueeze(-1))
        if not self.proven:
            self._prove(output, rewards)
            self.proven = True
        return None

    def _prove(self, output: Any, rewards: Tensor) -> None:
        candidates = _reward_outputs(output, len(rewards))
        if not candidates:
            logits = _logits(output)
            found = f"logits of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(output).__name__
            raise ModelError(
                f"{type(self.model).__name__} returned {found}; wanted one reward for each of the {len(rewards)} rows. "
                "Load it with num_labels=1."
            )
        if not any(_equal_up_to_rounding(candidate, rewards) for candidate in candidates):
            raise ModelError(
                f"the logits of {type(self.model).__name__} are not the output of its head {self.name}: something "
                "changes them on the way, and the distance of what the head reads would not be the one that matters."
            )
        self._warn_if_exported_differently()

    def _warn_if_exported_differently(self) -> None:
        ids, mask = self.arguments.get("input_ids"), self.arguments.get("attention_mask")
        pad = _pad_token_id(self.model)
        if ids is None or mask is None or pad is None or ids.shape != mask.shape:
            return
        if bool(((ids == pad) & mask.ne(0)).gather(1, last_token(mask).unsqueeze(1)).any()):
            logger.warning(
                "The pooled token has the id of the pad token (%d), so plain Transformers, which pools by id, would "
                "read the token before it and give other scores. Give the tokenizer and the model's config a pad "
                "token of its own.",
                pad,
            )


def _named_head(model: nn.Module, name: str) -> nn.Module:
    inner = unwrap(model)
    modules = dict(inner.named_modules())
    if name in modules:
        return modules[name]
    children = ", ".join(name for name, _ in inner.named_children())
    raise ModelError(f"{type(inner).__name__} has no module {name!r} to take for its head; it has {children}, ...")


def _callable_model(model: nn.Module) -> nn.Module:
    """The module whose forward carries hooks: inside DDP and compile, around PEFT."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _output_size(module: nn.Module) -> int | None:
    # A LoRA layer carries the Linear it adapts as `base_layer`.
    linear = getattr(module, "base_layer", module)
    return linear.out_features if isinstance(linear, nn.Linear) else None


def _is_saved_copy_wrapper(module: nn.Module) -> bool:
    """PEFT's wrapper of a module that is trained and saved whole: the original beside one copy per adapter."""
    return hasattr(module, "original_module") and isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict)


def _inactive_copies(name: str, wrapper: nn.Module) -> list[str]:
    active = set(wrapper.active_adapters)  # type: ignore[arg-type]
    copies: nn.ModuleDict = wrapper.modules_to_save  # type: ignore[assignment]
    return [f"{name}.modules_to_save.{adapter}." for adapter in copies if adapter not in active]


def _pad_token_id(model: nn.Module) -> int | None:
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, "pad_token_id", None)


def _logits(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    return output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)


def _reward_outputs(output: Any, rows: int) -> list[Tensor]:
    """What may be the rewards: the logits; without a name, every tensor of one value for each row, or row and token."""
    logits = _logits(output)
    if logits is None and isinstance(output, tuple | list):
        known = [value for value in output if isinstance(value, Tensor) and value.is_floating_point()]
        return [value for value in known if value.dim() and len(value) == rows and value.dim() <= 2]
    return [logits] if isinstance(logits, Tensor) and logits.numel() == rows else []


def _equal_up_to_rounding(logits: Tensor, rewards: Tensor) -> bool:
    # Rounding to the dtype of the logits is all that may lie between: small rewards must not hide a soft cap.
    rounding = 4 * max(torch.finfo(logits.dtype).eps, torch.finfo(rewards.dtype).eps)
    rows = logits.reshape(len(rewards), -1).to(rewards.dtype)
    return torch.allclose(rows, rewards.unsqueeze(1).expand_as(rows), rtol=rounding, atol=0.0, equal_nan=True)


def _with_logits(output: Any, logits: Tensor) -> Any:
    if not isinstance(output, dict):
        raise ModelError(f"a packed forward needs a model that returns a dict of outputs, got {type(output).__name__}.")
    output["logits"] = logits
    return output
