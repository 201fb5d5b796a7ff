"""The last decoder layer of packed pairs, run only where the head reads it: at two tokens of each pair."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from normbt.head import LAYOUT_KEYWORD
from normbt.packing import PackedLayout


@contextmanager
def pooled_last_layer(model: nn.Module) -> Iterator[None]:
    """Compute attention and feed-forward of the last layer for the pooled tokens alone, until the context ends.

    Nothing but the head reads that layer's output, and the head reads one token of each sequence; to the other tokens
    the layer still gives keys and values. Rewards and gradients stay as they are. What the layer and the model's last
    hidden state hold at all other tokens is then without meaning, and must not be read. Batches without a layout run
    in full.

    Contexts may nest: the outermost does it. The feed-forward is the layer's child ``mlp``, as Transformers' decoders
    call it. A layer without one still saves its attention.

    Args:
        model: a Transformers decoder whose attention is :func:`normbt.attention.attend`.
    """
    hooks = _PooledTokens()
    handles = []
    attention, mlp = _last_layer(model)
    if attention is not None and _is_pooled(attention):  # scoring in a callback of a packed training run
        yield
        return
    if attention is not None:
        handles.append(attention.register_forward_pre_hook(hooks.before_attention, with_kwargs=True))
    if mlp is not None:
        handles.append(mlp.register_forward_pre_hook(hooks.before_mlp))
        handles.append(mlp.register_forward_hook(hooks.after_mlp))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _PooledTokens:
    """Hooks of the last attention and feed-forward.

    A checkpointed layer runs again in the backward, after the forwards of other batches, and its own hooks do not. So
    the layout of the batch is read from what the attention inside it is given.
    """

    def __init__(self) -> None:
        self.tokens: Tensor | None = None
        self.hidden: Tensor | None = None

    def before_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get(LAYOUT_KEYWORD) is None:
            self.tokens = None
            return None
        layout: PackedLayout = kwargs[LAYOUT_KEYWORD].pooled()
        self.tokens = layout.query_index
        return args, {**kwargs, LAYOUT_KEYWORD: layout}

    def before_mlp(self, module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        if self.tokens is None:
            return None
        self.hidden = args[0]
        return (args[0].index_select(1, self.tokens), *args[1:])

    def after_mlp(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Any:
        if self.tokens is None or self.hidden is None:
            return None
        whole = output.new_zeros(self.hidden.shape)
        self.hidden = None
        return whole.index_copy(1, self.tokens, output)


def _is_pooled(attention: nn.Module) -> bool:
    return any(
        isinstance(getattr(hook, "__self__", None), _PooledTokens) for hook in attention._forward_pre_hooks.values()
    )


def _last_layer(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Attention and feed-forward of the last layer, where they are found."""
    named = dict(model.named_modules())
    attention = [name for name, module in named.items() if isinstance(getattr(module, "is_causal", None), bool)]
    if not attention:
        return None, None
    layer = attention[-1].rpartition(".")[0]
    return named[attention[-1]], named.get(f"{layer}.mlp")
