"""What a pair costs a decoder: floating-point work, activation memory, and the token budget that fits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from normbt.errors import ConfigError

LARGEST_BUDGET = 16_384
"""Tokens beyond which a larger micro-batch no longer makes matrix products faster on an accelerator."""
LARGEST_CPU_BUDGET = 2_048
"""The same on a CPU, whose caches the activations of a larger one leave."""
_MEMORY_SHARE = 0.8
"""Part of the free memory that activations may fill; the rest is for workspaces and fragmentation."""


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder that decide what a token costs.

    Attributes:
        layers: number of decoder layers.
        hidden: width of the residual stream.
        intermediate: width inside the feed-forward block.
        attention_width: query heads times head size.
        matmul_parameters: parameters that each token is multiplied with: no embedding, no head.
    """

    layers: int
    hidden: int
    intermediate: int
    attention_width: int
    matmul_parameters: int


@dataclass(frozen=True)
class MemoryPlan:
    """How a run uses its memory.

    Attributes:
        token_budget: most tokens of a micro-batch.
        checkpointing: whether layers are run again in the backward instead of keeping their activations.
        activation_bytes: estimate for a micro-batch of ``token_budget`` tokens.
    """

    token_budget: int
    checkpointing: bool
    activation_bytes: int


def decoder_shape(model: nn.Module) -> DecoderShape:
    """Read the shape of a Transformers decoder from its config and its Linear layers.

    Args:
        model: a decoder with a scoring head, PEFT-wrapped or not.

    Returns:
        Its shape.
    """
    config: Any = model.config
    config = config.get_text_config()
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weights = [numel(parameter) for name, parameter in model.named_parameters() if _is_layer_weight(name, parameter)]
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        # GPT-2 leaves its width unset when it is the usual one.
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        attention_width=config.num_attention_heads * head_size,
        matmul_parameters=sum(weights),
    )


def pair_flops(shape: DecoderShape, prefix: int, chosen: int, rejected: int) -> int:
    r"""Floating-point operations of a forward and a backward over the unique tokens of one pair.

    .. math:: 6 N T + 12 L d_a A, \qquad A = \tfrac{1}{2}(P + C)^2 + R P + \tfrac{1}{2} R^2

    Args:
        shape: the decoder.
        prefix: tokens both sequences share, P.
        chosen: further tokens of the chosen sequence, C.
        rejected: further tokens of the rejected sequence, R.

    Returns:
        Multiplications and additions counted one each; T is P + C + R, A the query-key pairs under the causal mask.

    Example:
        >>> shape = DecoderShape(layers=2, hidden=8, intermediate=16, attention_width=8, matmul_parameters=1000)
        >>> pair_flops(shape, prefix=2, chosen=2, rejected=2)
        38688
    """
    tokens = prefix + chosen + rejected
    query_key_pairs = (prefix + chosen) ** 2 / 2 + rejected * prefix + rejected**2 / 2
    return round(6 * shape.matmul_parameters * tokens + 12 * shape.layers * shape.attention_width * query_key_pairs)


def activation_bytes(shape: DecoderShape, tokens: int, *, element_size: int, checkpointing: bool) -> int:
    r"""Memory that the forward keeps for the backward.

    .. math:: T b \cdot L (11 d + 4 d_{ff}) \quad\text{or, checkpointed,}\quad T b \cdot (L d + 11 d + 4 d_{ff})

    Per layer and token that is eleven vectors of the residual width (norms, queries, keys, values, attention output)
    and four of the feed-forward width (gate, its activation, up, their product). A checkpointed run keeps the input
    of each layer and the inside of the one it works on.

    Args:
        shape: the decoder.
        tokens: tokens of the micro-batch, padding included.
        element_size: bytes of one activation: 2 under bfloat16, 4 in float32.
        checkpointing: whether layers are run again in the backward.

    Returns:
        Bytes.

    Example:
        >>> shape = DecoderShape(24, hidden=896, intermediate=4864, attention_width=896, matmul_parameters=358_000_000)
        >>> activation_bytes(shape, 16_384, element_size=2, checkpointing=False) / 2**30  # gibibytes
        21.46875
    """
    inside = 11 * shape.hidden + 4 * shape.intermediate
    kept = shape.layers * shape.hidden + inside if checkpointing else shape.layers * inside
    return tokens * element_size * kept


def training_state_bytes(parameters: Iterable[Tensor]) -> int:
    """Memory that gradients and Adam's two moments will take, none of it allocated before the first step.

    Args:
        parameters: the model's parameters; frozen ones take nothing.

    Returns:
        Bytes.

    Example:
        >>> training_state_bytes(nn.Linear(4, 2).parameters())
        120
    """
    return sum(3 * numel(each) * each.element_size() for each in parameters if each.requires_grad)


def numel(parameter: Tensor) -> int:
    """Entries of a parameter; of all its parts where ZeRO-3 has cut it up, which leaves an empty tensor in its place.

    Example:
        >>> numel(nn.Linear(3, 2).weight)
        6
    """
    return getattr(parameter, "ds_numel", parameter.numel())


def plan_memory(
    shape: DecoderShape,
    *,
    free_bytes: int,
    longest_pair: int,
    element_size: int,
    token_budget: int | None = None,
    checkpointing: bool | None = None,
    largest_budget: int = LARGEST_BUDGET,
) -> MemoryPlan:
    """Choose what was left open of token budget and checkpointing: the fastest that the estimate says will fit.

    Checkpointing costs a third of the step, so it is chosen only when the budget does not fit without it. A default
    budget is at least the longest pair: such a pair runs in any case.

    Args:
        shape: the decoder.
        free_bytes: memory free for activations, with the training state already taken off.
        longest_pair: tokens of the longest pair in the data.
        element_size: bytes of one activation.
        token_budget: most tokens of a micro-batch; ``None`` chooses.
        checkpointing: ``None`` chooses.
        largest_budget: bound of a budget that is chosen: beyond it, a larger micro-batch is no faster.

    Returns:
        The plan. Its estimate can exceed ``free_bytes`` when nothing fits.

    Raises:
        ConfigError: the budget is not positive.

    Example:
        >>> shape = DecoderShape(24, hidden=896, intermediate=4864, attention_width=896, matmul_parameters=358_000_000)
        >>> plan_memory(shape, free_bytes=80 * 2**30, longest_pair=1500, element_size=2)
        MemoryPlan(token_budget=16384, checkpointing=False, activation_bytes=23...)
        >>> plan_memory(shape, free_bytes=4 * 2**30, longest_pair=1500, element_size=2, token_budget=8192).checkpointing
        True
    """
    if token_budget is not None and token_budget < 1:
        raise ConfigError(f"token_budget must be a positive number of tokens, got {token_budget}.")

    def needed(tokens: int, checkpointed: bool) -> int:
        return activation_bytes(shape, tokens, element_size=element_size, checkpointing=checkpointed)

    usable = _MEMORY_SHARE * free_bytes
    if checkpointing is None:
        checkpointing = needed(token_budget or longest_pair, False) > usable
    if token_budget is None:
        fitting = int(usable // needed(1, checkpointing))
        token_budget = max(longest_pair, min(fitting, largest_budget))
    return MemoryPlan(token_budget, checkpointing, needed(token_budget, checkpointing))


def _is_layer_weight(name: str, parameter: Tensor) -> bool:
    # Decoder layers are numbered in every Transformers model; embeddings and heads are not. LoRA's own matrices are
    # left out: they are small, and the backbone's work is what the step is measured against.
    numbered = any(part.isdigit() for part in name.split("."))
    return numbered and len(getattr(parameter, "ds_shape", parameter.shape)) == 2 and "lora_" not in name
