"""Cost of pairs: floating-point work and activations against what torch counts and keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from normbt.attention import pair_attention
from normbt.cost import DecoderShape, activation_bytes, decoder_shape, pair_flops, plan_memory, training_state_bytes
from normbt.errors import ConfigError
from normbt.head import capture_hidden
from normbt.packing import TokenPair, build_packed
from tiny import tiny_model

SHAPE = DecoderShape(layers=24, hidden=896, intermediate=4864, attention_width=896, matmul_parameters=358_000_000)
GIB = 2**30


def test_the_shape_is_read_from_the_model() -> None:
    model = tiny_model("llama", hidden_size=32, intermediate_size=48)
    # per layer: queries and output 32x32 each, keys and values 32x16 each, three feed-forward matrices 32x48
    assert decoder_shape(model) == DecoderShape(
        2, 32, 48, 32, matmul_parameters=2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    )


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "gpt-neox"])
def test_a_shape_with_head_size_or_width_of_its_own_is_read(kind: str) -> None:
    shape = decoder_shape(tiny_model(kind))
    assert shape.attention_width == (32 if kind == "qwen3" else 16)
    assert shape.intermediate == (64 if kind == "gpt2" else 32)


def test_adapters_leave_the_work_of_the_backbone_as_it_is() -> None:
    from peft import LoraConfig, get_peft_model

    plain = decoder_shape(tiny_model("llama"))
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    assert decoder_shape(adapted) == plain


def test_work_agrees_with_torch_s_count_of_the_matrix_products() -> None:
    """Without attention's share, the count is exact but for the head and the gradient of the first input."""
    model = tiny_model("llama").train()
    prefix, chosen, rejected = 4, 3, 5
    pair = TokenPair([9] * prefix + [8] * chosen, [9] * prefix + [7] * rejected, prefix)
    with pair_attention(model), capture_hidden(model) as captured, FlopCounterMode(display=False) as counter:
        model(**build_packed([pair]).inputs)
        captured.rewards.sum().backward()
    operations = counter.get_flop_counts()["Global"]
    products = sum(count for operation, count in operations.items() if "mm" in str(operation))
    shape = decoder_shape(model)
    without_attention = pair_flops(shape, prefix, chosen, rejected) - pair_flops(
        DecoderShape(shape.layers, shape.hidden, shape.intermediate, shape.attention_width, 0), prefix, chosen, rejected
    )
    assert products == pytest.approx(without_attention, rel=0.02)


def test_attention_counts_each_query_key_pair_of_the_causal_mask_once() -> None:
    shape = DecoderShape(layers=1, hidden=1, intermediate=1, attention_width=1, matmul_parameters=0)
    prefix, chosen, rejected = 40, 30, 20
    alone = prefix + chosen
    visible = torch.ones(alone, alone).tril().sum() + torch.ones(rejected, prefix + rejected).tril(prefix).sum()
    # the formula leaves out the half of the diagonal that is seen on top of the triangle
    expected = 12 * (float(visible) - (alone + rejected) / 2)
    assert pair_flops(shape, prefix, chosen, rejected) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_within_a_quarter_of_what_a_forward_keeps(dtype: torch.dtype) -> None:
    model = tiny_model("qwen2", hidden_size=128, intermediate_size=512, max_position_embeddings=512).to(dtype).train()
    shape = decoder_shape(model)
    pair = TokenPair([9] * 100 + [8] * 150, [9] * 100 + [7] * 150, 100)
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        pair_attention(model),
        capture_hidden(model) as captured,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        batch = build_packed([pair])
        model(**batch.inputs)
        rewards = captured.rewards
        layout = batch.inputs["pair_layout"]
    measured = sum(kept.values()) - sum(mask.untyped_storage().nbytes() for mask in layout.masks.values())
    assert rewards.requires_grad
    estimate = activation_bytes(shape, batch.processed_tokens, element_size=dtype.itemsize, checkpointing=False)
    assert measured == pytest.approx(estimate, rel=0.25)


def test_training_state_counts_only_what_is_trained() -> None:
    trained, frozen = torch.zeros(10, requires_grad=True), torch.zeros(1000)
    assert training_state_bytes([trained, frozen]) == 10 * 4 * 3


def test_checkpointing_is_off_when_the_budget_fits_and_on_when_it_does_not() -> None:
    needed = activation_bytes(SHAPE, 8192, element_size=2, checkpointing=False)
    common = {"longest_pair": 2000, "element_size": 2, "token_budget": 8192}
    assert not plan_memory(SHAPE, free_bytes=2 * needed, **common).checkpointing
    assert plan_memory(SHAPE, free_bytes=needed, **common).checkpointing  # the reserve would be gone


def test_a_default_budget_fills_memory_up_to_the_useful_size_and_holds_the_longest_pair() -> None:
    roomy = plan_memory(SHAPE, free_bytes=100 * GIB, longest_pair=2000, element_size=2)
    assert (roomy.token_budget, roomy.checkpointing) == (16_384, False)
    tight = plan_memory(SHAPE, free_bytes=6 * GIB, longest_pair=2000, element_size=2)
    assert not tight.checkpointing
    assert 2000 < tight.token_budget < 16_384
    assert tight.activation_bytes <= 0.8 * 6 * GIB
    long = plan_memory(SHAPE, free_bytes=6 * GIB, longest_pair=30_000, element_size=2)
    assert (long.token_budget, long.checkpointing) == (30_000, True)


def test_what_the_user_sets_is_kept() -> None:
    plan = plan_memory(
        SHAPE, free_bytes=GIB, longest_pair=2000, element_size=2, token_budget=99_999, checkpointing=False
    )
    assert (plan.token_budget, plan.checkpointing) == (99_999, False)
    assert plan.activation_bytes > GIB


def test_a_budget_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_budget must be a positive"):
        plan_memory(SHAPE, free_bytes=GIB, longest_pair=10, element_size=2, token_budget=0)
