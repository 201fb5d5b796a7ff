"""Attention over packed pairs: one function for Transformers' attention interface, and its back ends."""

import functools
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from normbt.errors import ModelError
from normbt.last_layer import pooled_last_layer
from normbt.packing import PackedLayout

logger = logging.getLogger(__name__)

PAIR_ATTENTION = "normbt_pairs"
"""Name of :func:`attend` in Transformers' attention interface."""

_PACKABLE_LAYERS = {"full_attention", "sliding_attention"}
_UNSUPPORTED_ARGUMENTS = ("s_aux", "position_bias", "head_mask")
_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_VARLEN_MAX_HEAD_SIZE = 256
_CPU_QUERIES = 128
"""Queries of a block on a CPU."""


def packing_obstacle(model: nn.Module, device: torch.device | None = None) -> str | None:
    """Why a model's rewards would not be exact on packed pairs.

    Exact are decoders whose layers all attend causally, over everything or a sliding window, and whose attention
    goes through Transformers' interface.

    Args:
        model: a Transformers model, PEFT-wrapped or not.
        device: that it will run on; None for the one it is on.

    Returns:
        The reason, a clause for a message to people, or ``None`` if pairs can be packed.

    Example:
        >>> packing_obstacle(nn.Linear(1, 1))
        'Linear holds no Transformers model'
    """
    try:
        inner = _transformers_model(model)
    except ModelError as error:
        return str(error)
    name, config = type(inner).__name__, inner.config
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt tuning puts its own tokens in front of each row"
    if config.is_encoder_decoder:
        return f"{name} is an encoder-decoder model"
    if config.get_text_config() is not config:
        return f"{name} is a multi-modal model"
    if getattr(inner, "_is_stateful", False):
        return f"{name} has recurrent (linear-attention or state-space) layers, whose state runs from pair to pair"
    others = set(getattr(config, "layer_types", None) or ()) - _PACKABLE_LAYERS
    if others:
        return f"{name} has layers other than full and sliding-window attention ({', '.join(sorted(others))})"
    # Flash attention takes no dense mask. A model that supports it therefore hands windows and soft caps to the
    # attention function by keyword, and adds no bias to the scores.
    if not (inner._supports_attention_backend and inner._supports_flash_attn and inner._can_set_attn_implementation()):
        return f"the attention of {name} does not go through Transformers' attention interface without a dense mask"
    return _layer_obstacle(inner, device or inner.device)


def _layer_obstacle(model: PreTrainedModel, device: torch.device) -> str | None:
    layers = {name: module for name, module in model.named_modules() if isinstance(_is_causal(module), bool)}
    if not layers:
        return f"no attention layer was found in {type(model).__name__}"
    for name, layer in layers.items():
        if not _is_causal(layer):
            return f"{name} attends in both directions"
        if hasattr(layer, "sinks"):
            return f"{name} has attention sinks"
        dropout = getattr(layer, "attention_dropout", getattr(layer, "attn_dropout", 0.0))
        dropout = dropout.p if isinstance(dropout, nn.Dropout) else dropout
        if dropout:
            return f"{name} has an attention dropout of {dropout:g}; set it to 0 in the model's config"
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    if capped and device.type == "cuda" and _flash_attn() is None:
        return "its soft-capped attention needs the flash-attn package on a CUDA device"
    return None


@contextmanager
def pair_attention(model: nn.Module, *, pooled_only: bool = False) -> Iterator[None]:
    """Make a model read packed pairs, until the context ends.

    Padded batches give the same rewards as before, through torch's own attention, so both kinds can be mixed. Keep
    the context open until the backward is done: a checkpointed layer runs again there. Nothing of it is saved with
    the model.

    Args:
        model: a model for which :func:`packing_obstacle` is ``None``; wrappers are seen through.
        pooled_only: the last layer of packed rows is run for the tokens that the head reads, see
            :func:`normbt.last_layer.pooled_last_layer`. For those who read rewards and pooled hidden states alone.

    Raises:
        ModelError: the model cannot be packed.
    """
    obstacle = packing_obstacle(model)
    if obstacle is not None:
        raise ModelError(f"pairs can't be packed for this model: {obstacle}. Use padded batches.")
    AttentionInterface.register(PAIR_ATTENTION, attend)
    AttentionMaskInterface.register(PAIR_ATTENTION, sdpa_mask)
    inner = _transformers_model(model)
    before = inner.config._attn_implementation or "eager"
    inner.set_attn_implementation(PAIR_ATTENTION)
    try:
        with pooled_last_layer(inner) if pooled_only else nullcontext():
            yield
    finally:
        inner.set_attn_implementation(before)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pair_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of one layer: within the branches of packed pairs, or as masked when there is no layout.

    Args:
        module: the attention layer.
        query: shape ``(rows, heads, tokens, head_size)``; one row when packed.
        key: shape ``(rows, key_heads, tokens, head_size)``.
        value: as ``key``.
        attention_mask: who sees whom in padded rows; packed rows ignore it.
        dropout: has to be 0 for packed rows.
        scaling: factor of the scores; ``None`` is ``head_size ** -0.5``.
        sliding_window: positions a token sees, itself included; ``None`` is all.
        softcap: scores ``s`` become ``softcap * tanh(s / softcap)``.
        pair_layout: layout of a packed row.
        **kwargs: what else the layer hands to attention functions; what would change the result is refused.

    Returns:
        Shape ``(rows, tokens, heads, head_size)``, and ``None`` in place of the attention weights.

    Raises:
        ModelError: the layer asks for something a packed row cannot give.
    """
    if pair_layout is None:
        return _attend_masked(module, query, key, value, attention_mask, dropout, scaling, softcap, kwargs), None
    _check_arguments(module, query, key, pair_layout, dropout, kwargs)
    window = getattr(module, "sliding_window", None) if sliding_window is None else sliding_window
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Rotary embeddings leave float32 queries and keys behind under autocast.
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    tokens, asking = query.shape[2], pair_layout.query_index
    if asking is not None:
        query = query.index_select(2, asking)
    back_end = _attend_varlen if _has_varlen_kernel(query, value) else _attend_segments
    mixed = back_end(query, key, value, pair_layout, scale, window, softcap)
    if asking is not None:
        mixed = mixed.new_zeros(1, tokens, *mixed.shape[2:]).index_copy(1, asking, mixed)
    return mixed, None


def _attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """All segments in one variable-length kernel, whose causality is aligned to the last query and the last key."""
    query = query[0].transpose(0, 1)
    key = key[0].transpose(0, 1).index_select(0, layout.kv_index)
    value = value[0].transpose(0, 1).index_select(0, layout.kv_index)
    bounds = (layout.cu_q, layout.cu_k, layout.max_q, layout.max_k)
    left = -1 if window is None else window - 1
    if softcap is None:
        # Imported here: older torch versions, which serve every other device, do not have it.
        from torch.nn.attention.varlen import varlen_attn

        gqa = query.shape[1] != key.shape[1]
        mixed: Any = varlen_attn(query, key, value, *bounds, scale=scale, window_size=(left, 0), enable_gqa=gqa)
    else:
        kernel = _flash_attn()
        if kernel is None:
            raise ModelError("soft-capped attention over packed pairs needs the flash-attn package on a CUDA device.")
        mixed = kernel(
            query, key, value, *bounds, softmax_scale=scale, causal=True, window_size=(left, 0), softcap=softcap
        )
    return mixed.unsqueeze(0)


def _attend_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Ordinary attention segment by segment: every device, every dtype.

    On a CPU, whose kernel computes masked scores too, a segment's queries are taken block by block, each with the keys
    that some query of the block sees.
    """
    keys = key.index_select(2, layout.kv_index).split(layout.key_lengths, dim=2)
    values = value.index_select(2, layout.kv_index).split(layout.key_lengths, dim=2)
    blocks = [
        (segment, rows)
        for segment, length in enumerate(layout.query_lengths)
        for rows in _blocks(length, _CPU_QUERIES if query.device.type == "cpu" else length)
    ]
    queries = query.split([len(rows) for _, rows in blocks], dim=2)
    gqa = query.shape[1] != key.shape[1]
    mixed = []
    for block, (segment, rows) in zip(queries, blocks, strict=True):
        # The last query of a segment sees its last key.
        offset = layout.key_lengths[segment] - layout.query_lengths[segment]
        seen = slice(0 if window is None else max(0, offset + rows.start - window + 1), offset + rows.stop)
        block_key, block_value = keys[segment][:, :, seen], values[segment][:, :, seen]
        columns = block_key.shape[2]
        if softcap is not None:
            mask = _mask(layout, len(rows), columns, window, query)
            out = _capped_attention(block, block_key, block_value, mask, scale, softcap)
        elif len(rows) == columns and (window is None or columns <= window):
            out = scaled_dot_product_attention(
                block, block_key, block_value, is_causal=True, scale=scale, enable_gqa=gqa
            )
        else:
            # torch aligns is_causal to the first query and the first key (pytorch#108108); here the last ones meet.
            mask = None if len(rows) == 1 else _mask(layout, len(rows), columns, window, query)
            out = scaled_dot_product_attention(
                block, block_key, block_value, attn_mask=mask, scale=scale, enable_gqa=gqa
            )
        mixed.append(out.transpose(1, 2))
    return torch.cat(mixed, dim=1)


def _blocks(length: int, size: int) -> list[range]:
    return [range(start, min(start + size, length)) for start in range(0, length, size)]


def _mask(layout: PackedLayout, rows: int, columns: int, window: int | None, like: Tensor) -> Tensor:
    """Additive mask, lower-right aligned, shape ``(rows, columns)``; built once for all layers."""
    key = (rows, columns, window, like.dtype)
    if key not in layout.masks:
        visible = torch.ones(rows, columns, dtype=torch.bool, device=like.device).tril(columns - rows)
        if window is not None:
            visible = visible.triu(columns - rows - window + 1)
        layout.masks[key] = torch.zeros(rows, columns, dtype=like.dtype, device=like.device).masked_fill(
            ~visible, float("-inf")
        )
    return layout.masks[key]


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Soft-capped attention in plain tensor algebra, with the softmax in float32 or better."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + mask
    # Transformers' eager attention takes float32 for float64 too. Its sums then depend on the width of the row, and
    # the prefix of a pair would differ by 6e-8 from the same tokens in the other sequence.
    softmax_dtype = torch.promote_types(query.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=softmax_dtype).to(query.dtype) @ value


def _attend_masked(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """What the layer computes on an ordinary batch, with the mask Transformers made for it."""
    if softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
    rows, columns = query.shape[2], key.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
    # A large finite number instead of minus infinity: a padding token may see nothing at all.
    hidden = max(torch.finfo(query.dtype).min, torch.finfo(torch.float32).min) / 2
    mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, hidden)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _capped_attention(query, key, value, mask, scale, softcap).transpose(1, 2)


def _check_arguments(
    module: nn.Module, query: Tensor, key: Tensor, layout: PackedLayout, dropout: float, kwargs: dict[str, Any]
) -> None:
    layer = type(module).__name__
    if query.shape[0] != 1 or query.shape[2] != layout.tokens or key.shape[2] != layout.tokens:
        raise ModelError(
            f"{layer} got queries of shape {tuple(query.shape)} and keys of shape {tuple(key.shape)} for a packed row "
            f"of {layout.tokens} tokens. Packed rows can't be split over devices, extended or cached."
        )
    if dropout:
        raise ModelError(f"{layer} has an attention dropout of {dropout:g}; packed pairs need 0. Use padded batches.")
    if _is_causal(module) is False:
        raise ModelError(f"{layer} attends in both directions; packed pairs need causal attention. Use padded batches.")
    given = [name for name in _UNSUPPORTED_ARGUMENTS if kwargs.get(name) is not None]
    if given:
        raise ModelError(f"{layer} uses {', '.join(given)}, which packed pairs do not support. Use padded batches.")


def _has_varlen_kernel(query: Tensor, value: Tensor) -> bool:
    head_size = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in _VARLEN_DTYPES
        and head_size == value.shape[-1]
        and head_size <= _VARLEN_MAX_HEAD_SIZE
    )


@functools.cache
def _flash_attn() -> Any:
    try:
        return importlib.import_module("flash_attn").flash_attn_varlen_func
    except ImportError:
        return None


def _is_causal(module: nn.Module) -> Any:
    return getattr(module, "is_causal", None)


def _transformers_model(model: nn.Module) -> PreTrainedModel:
    """The outermost Transformers model inside any wrappers."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise ModelError(f"{type(model).__name__} holds no Transformers model")
