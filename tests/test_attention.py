"""Packed pairs give the rewards and gradients of separate sequences, whatever the model, layout and back end."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import normbt.attention
from normbt.attention import PAIR_ATTENTION, attend, packing_obstacle, pair_attention
from normbt.errors import ModelError
from normbt.head import capture_hidden
from normbt.losses import bt_loss
from normbt.packing import PackedLayout, TokenPair, build_packed, build_padded, common_prefix
from tiny import PAD, VOCABULARY, tiny_model

WINDOW = 6
SLIDING = {"sliding_window": WINDOW}


def phi3(**fields: Any) -> Any:
    from transformers import Phi3Config, Phi3ForSequenceClassification

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    tokens = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    return Phi3ForSequenceClassification(Phi3Config(**sizes, **heads, **tokens, num_labels=1, **fields)).eval()


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tiny_model("llama"),
    "qwen2": lambda: tiny_model("qwen2"),
    "qwen2-sliding": lambda: tiny_model("qwen2", use_sliding_window=True, max_window_layers=1, **SLIDING),
    "qwen3": lambda: tiny_model("qwen3"),
    "mistral-sliding": lambda: tiny_model("mistral", **SLIDING),
    "gemma2": lambda: tiny_model("gemma2", attn_logit_softcapping=2.0, query_pre_attn_scalar=3, **SLIDING),
    "gemma3-text": lambda: tiny_model(
        "gemma3-text", layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=3, **SLIDING
    ),
    "gpt-neox": lambda: tiny_model("gpt-neox"),
    "gpt2": lambda: tiny_model("gpt2"),
    "phi3": lambda: phi3(),
    "phi3-sliding": lambda: phi3(**SLIDING),
}


def model_of(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """The family's tiny model with weights large enough that every token matters to every later one."""
    model = FAMILIES[family]().to(dtype)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def words(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (count,), generator=generator).tolist()


def pair(chosen: Sequence[int], rejected: Sequence[int]) -> TokenPair:
    return TokenPair(list(chosen), list(rejected), common_prefix(chosen, rejected))


PROMPT = words(12, 0)
CASES = {
    "long prompt": pair(PROMPT + words(5, 1), PROMPT + words(9, 2)),
    "empty prompt": pair([5, *words(6, 3)], [6, *words(3, 4)]),
    "one-token answers": pair([*PROMPT, 7], [*PROMPT, 8]),
    "chosen is a prefix of rejected": pair(PROMPT, PROMPT + words(7, 5)),
    "rejected is a prefix of chosen": pair(PROMPT + words(4, 6), PROMPT),
    "one token each": pair([9], [10]),
    "longer than the window": pair(PROMPT + words(20, 7), PROMPT[:10] + words(25, 8)),
}
PAIRS = list(CASES.values())


def separate_rewards(model: Any, pairs: Sequence[TokenPair]) -> Tensor:
    """The slow twin: one forward for each sequence, no packing, no padding."""
    rewards = []
    with capture_hidden(model) as captured:
        for ids in [each.chosen_ids for each in pairs] + [each.rejected_ids for each in pairs]:
            model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
            rewards.append(captured.rewards)
    return torch.cat(rewards)


def packed_rewards(model: Any, pairs: Sequence[TokenPair], *, share: bool = True) -> Tensor:
    with capture_hidden(model) as captured:
        output = model(**build_packed(pairs, share=share).inputs)
    assert torch.equal(output.logits, captured.rewards[:, None])
    return captured.rewards


def gradients(model: Any, rewards: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    chosen, rejected = rewards.chunk(2)
    bt_loss(chosen, rejected).mean().backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def largest_difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    assert wanted
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


@pytest.mark.parametrize(
    ("share", "pooled_only"), [(True, False), (False, False), (True, True)], ids=["shared", "unshared", "pooled"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_and_gradients_are_those_of_separate_sequences(family: str, share: bool, pooled_only: bool) -> None:
    model = model_of(family)
    with pair_attention(model):
        wanted = separate_rewards(model, PAIRS)
        wanted_gradients = gradients(model, wanted)
    with pair_attention(model, pooled_only=pooled_only):
        found = packed_rewards(model, PAIRS, share=share)
        found_gradients = gradients(model, found)
    assert wanted.std() > 0.1
    assert (found - wanted).abs().max() <= 1e-12
    assert largest_difference(found_gradients, wanted_gradients) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_s_own_attention_agrees(family: str) -> None:
    """Against plain Transformers. Its eager attention, which soft caps need, takes a float32 softmax in float64."""
    model = model_of(family)
    wanted = separate_rewards(model, PAIRS)
    with pair_attention(model):
        found = packed_rewards(model, PAIRS)
        padded = build_padded(PAIRS, pad_token_id=PAD)
        with capture_hidden(model) as captured:
            model(**padded.inputs)
    tolerance = 1e-6 if family == "gemma2" else 1e-12
    assert (found - wanted).abs().max() <= tolerance
    assert (captured.rewards - wanted).abs().max() <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_queries_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where windows are shorter than a segment, a block leaves out the keys that none of its queries sees."""
    model = model_of(family)
    results = []
    for size in (1, 4, 1000):
        monkeypatch.setattr(normbt.attention, "_CPU_QUERIES", size)
        with pair_attention(model):
            rewards = packed_rewards(model, PAIRS)
            results.append((rewards, gradients(model, rewards)))
    wanted, wanted_gradients = results.pop()
    for found, found_gradients in results:
        assert (found - wanted).abs().max() <= 1e-12
        assert largest_difference(found_gradients, wanted_gradients) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_runs_at_the_pooled_tokens_alone(family: str) -> None:
    model = model_of(family)
    tokens, attended = [], []
    feed_forwards = [module for name, module in model.named_modules() if name.endswith(".mlp")]
    for module in feed_forwards:  # the Linear inside, for the hooks of the last layer are on the module itself
        linear = next(each for each in module.modules() if hasattr(each, "weight"))
        linear.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    batch = build_packed(PAIRS)
    attend_ = normbt.attention._attend_segments

    def counted(query: Tensor, *rest: Any) -> Tensor:
        attended.append(query.shape[2])
        return attend_(query, *rest)

    with pytest.MonkeyPatch.context() as patch, capture_hidden(model):
        patch.setattr(normbt.attention, "_attend_segments", counted)
        with pair_attention(model, pooled_only=True):
            model(**batch.inputs)
        with pair_attention(model):
            model(**batch.inputs)
    whole, pooled = batch.processed_tokens, 2 * len(PAIRS)
    assert tokens == attended == [whole, pooled, whole, whole]


@pytest.mark.parametrize("case", CASES)
def test_one_pair_is_enough(case: str) -> None:
    model = model_of("mistral-sliding")
    wanted = separate_rewards(model, [CASES[case]])
    with pair_attention(model, pooled_only=True):
        assert (packed_rewards(model, [CASES[case]]) - wanted).abs().max() <= 1e-12


answers = st.lists(st.integers(5, VOCABULARY - 1), min_size=1, max_size=10)
PROPERTY_MODELS = {family: model_of(family) for family in ("llama", "gemma2", "mistral-sliding")}


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(PROPERTY_MODELS)),
    st.lists(st.integers(5, VOCABULARY - 1), max_size=10),
    answers,
    answers,
    answers,
    st.booleans(),
)
def test_a_reward_does_not_change_with_the_other_answer(
    family: str, prompt: list[int], kept: list[int], other: list[int], another: list[int], keep_chosen: bool
) -> None:
    model = PROPERTY_MODELS[family]
    rewards = []
    with pair_attention(model, pooled_only=True), torch.no_grad():
        for changing in (other, another):
            first, second = (kept, changing) if keep_chosen else (changing, kept)
            neighbour = pair(changing, [5])
            chosen, rejected = packed_rewards(model, [pair(prompt + first, prompt + second), neighbour]).chunk(2)
            rewards.append(chosen[0] if keep_chosen else rejected[0])
    assert abs(rewards[0] - rewards[1]) <= 1e-12


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_lora_and_checkpointing_change_nothing(checkpointing: bool) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(model_of("llama"), config).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wanted = separate_rewards(model, PAIRS)
    wanted_gradients = gradients(model, wanted)
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    with pair_attention(model, pooled_only=True):
        found = packed_rewards(model, PAIRS)
        found_gradients = gradients(model, found)
    assert (found - wanted).abs().max() <= 1e-12
    assert largest_difference(found_gradients, wanted_gradients) <= 1e-6
    assert any("lora_A" in name for name in found_gradients)


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_full_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    model = model_of("qwen3").train()
    with pair_attention(model, pooled_only=True):
        wanted = gradients(model, packed_rewards(model, PAIRS))
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
        found = gradients(model, packed_rewards(model, PAIRS))
    assert largest_difference(found, wanted) <= 1e-12


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 weights", "autocast"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bfloat16_differs_from_padded_bfloat16_by_rounding(family: str, autocast: bool) -> None:
    exact = model_of(family)
    model = copy.deepcopy(exact).to(torch.float32 if autocast else torch.bfloat16)
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pair_attention(model, pooled_only=True),
    ):
        packed = packed_rewards(model, PAIRS)
        with capture_hidden(model) as captured:
            model(**build_padded(PAIRS, pad_token_id=PAD).inputs)
        padded = captured.rewards
    with torch.no_grad(), pair_attention(exact):
        wanted = separate_rewards(exact, PAIRS)
    padding_error = (padded - wanted).norm()
    assert 0 < padding_error < 0.2 * wanted.norm()
    assert (packed - wanted).norm() <= 1.5 * padding_error
    assert packed.dtype == torch.float32


def test_batches_with_and_without_layout_can_be_mixed_before_the_backward() -> None:
    """A checkpointed layer runs again in the backward and must still find the layout of its own batch."""
    model = model_of("llama").train()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    padded = build_padded(PAIRS, pad_token_id=PAD).inputs
    with pair_attention(model, pooled_only=True):
        wanted = gradients(model, packed_rewards(model, PAIRS))
        rewards = packed_rewards(model, PAIRS)
        with capture_hidden(model):
            model(**padded)
        assert largest_difference(gradients(model, rewards), wanted) <= 1e-12


def test_outside_the_context_a_packed_batch_fails_instead_of_ignoring_its_layout() -> None:
    model = model_of("llama", torch.float32)
    inputs = build_packed(PAIRS).inputs
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with pytest.raises(RuntimeError, match=r"size|shape|expand"):
            model(**inputs)


def test_no_mask_of_the_whole_row_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the device asked whether positions restart: Transformers must not look at them at all."""
    import transformers.masking_utils

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the positions were searched for separate documents")

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", refuse)
    model = model_of("mistral-sliding", torch.float32)
    with pair_attention(model):
        monkeypatch.setattr(normbt.attention, "sdpa_attention_forward", refuse)
        layout = build_packed(PAIRS).inputs["pair_layout"]
        packed_rewards(model, PAIRS)
    assert max(layout.query_lengths) < layout.tokens


def test_masks_are_built_once_for_all_layers() -> None:
    model = model_of("llama", torch.float32)
    batch = build_packed([CASES["long prompt"]])
    masks = batch.inputs["pair_layout"].masks
    with pair_attention(model), capture_hidden(model):
        model(**batch.inputs)
        built = dict(masks)
        model(**batch.inputs)
    assert len(built) == 1  # the chosen branch is square and needs none
    assert all(masks[key] is mask for key, mask in built.items())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_context_leaves_no_trace(family: str, tmp_path: Path) -> None:
    model = model_of(family, torch.float32)
    before = model.config._attn_implementation
    model.save_pretrained(tmp_path / "before")
    with pair_attention(model):
        assert model.config._attn_implementation == PAIR_ATTENTION
        model.save_pretrained(tmp_path / "during")
    assert model.config._attn_implementation == before
    saved = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "during")]
    assert saved[0] == saved[1]
    assert PAIR_ATTENTION not in json.dumps(saved)
    with pytest.raises(KeyError), pair_attention(model):
        raise KeyError
    assert model.config._attn_implementation == before


# The CUDA back ends are one call to a kernel. A plain implementation of the kernel's documented rule stands in for it,
# so that what we pass (bounds, gathered keys, window, scale, heads, soft cap) is tested where there is no GPU.


def reference_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    softcap: float | None = None,
) -> Tensor:
    """Variable-length attention over ``(tokens, heads, size)``, aligned to the last query and key of each segment."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    left, right = window_size
    groups = query.shape[1] // key.shape[1]
    mixed = []
    for segment in range(len(cu_q) - 1):
        queries = query[cu_q[segment] : cu_q[segment + 1]].transpose(0, 1)
        keys, values = (
            each[cu_k[segment] : cu_k[segment + 1]].transpose(0, 1).repeat_interleave(groups, 0)
            for each in (key, value)
        )
        rows, columns = queries.shape[1], keys.shape[1]
        assert rows <= max_q
        assert columns <= max_k
        scores = queries @ keys.transpose(1, 2) * scale
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        ahead = torch.arange(columns) - (torch.arange(rows)[:, None] + columns - rows)
        hidden = (ahead > right) | ((ahead < -left) if left >= 0 else False)
        mixed.append((scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(0, 1))
    return torch.cat(mixed)


def as_torch_kernel(*arguments: Any, enable_gqa: bool, **options: Any) -> Tensor:
    assert enable_gqa == (arguments[0].shape[1] != arguments[1].shape[1])
    return reference_kernel(*arguments, **options)


def as_flash_attn_kernel(*arguments: Any, softmax_scale: float, causal: bool, **options: Any) -> Tensor:
    assert causal
    return reference_kernel(*arguments, scale=softmax_scale, **options)


@pytest.mark.parametrize("pooled_only", [False, True], ids=["whole", "pooled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_variable_length_back_end_agrees(family: str, pooled_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_torch_kernel)
    monkeypatch.setattr(normbt.attention, "_flash_attn", lambda: as_flash_attn_kernel)
    with pair_attention(model, pooled_only=pooled_only):
        wanted = packed_rewards(model, PAIRS)
        monkeypatch.setattr(normbt.attention, "_has_varlen_kernel", lambda query, value: True)
        monkeypatch.setattr(normbt.attention, "_attend_segments", None)
        assert (packed_rewards(model, PAIRS) - wanted).abs().max() <= 1e-12


def test_the_kernel_s_name_and_arguments_exist_in_this_torch() -> None:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= set(names)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "gpt-neox"])
def test_on_cuda_rewards_and_gradients_stay_within_rounding_of_padding(family: str) -> None:
    exact = model_of(family).cuda()
    model = copy.deepcopy(exact).to(torch.bfloat16)
    packed, padded = build_packed(PAIRS).to("cuda").inputs, build_padded(PAIRS, pad_token_id=PAD).to("cuda").inputs

    def run(each: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with capture_hidden(each) as captured:
            each(**inputs)
        flat = torch.cat([gradient.flatten().double() for gradient in gradients(each, captured.rewards).values()])
        return captured.rewards.detach().double(), flat

    with pair_attention(exact), pair_attention(model):
        wanted, wanted_gradients = run(exact, padded)
        for inputs in (packed, padded):
            rewards, flat = run(model, inputs)
            assert (rewards - wanted).norm() < 0.1 * wanted.norm()
            assert (flat - wanted_gradients).norm() < 0.1 * wanted_gradients.norm()


# Models that can't be packed


def gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8, "vocab_size": 64}
    experts = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    return GptOssForSequenceClassification(GptOssConfig(**sizes, **experts, num_labels=1, pad_token_id=PAD))


def qwen3_next() -> Any:
    from transformers import Qwen3NextConfig, Qwen3NextForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    return Qwen3NextForSequenceClassification(Qwen3NextConfig(**sizes, **heads, num_experts=0, num_labels=1))


def lfm2() -> Any:
    from transformers import Lfm2Config, Lfm2Model

    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}
    return Lfm2Model(Lfm2Config(**sizes, **heads))


def bloom() -> Any:
    from transformers import BloomConfig, BloomForSequenceClassification

    return BloomForSequenceClassification(BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=64, num_labels=1))


def prompt_tuned() -> Any:
    from peft import PromptTuningConfig, get_peft_model

    return get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: tiny_model("bert"), "attends in both directions"),
        (lambda: tiny_model("modernbert"), "attends in both directions"),
        (lambda: tiny_model("gemma3-text", use_bidirectional_attention=True), "attends in both directions"),
        (lambda: tiny_model("deberta-v2"), "attention interface"),
        (lambda: tiny_model("t5"), "encoder-decoder"),
        (lambda: tiny_model("llama", attention_dropout=0.1), "attention dropout of 0.1"),
        (lambda: tiny_model("gpt2", attn_pdrop=0.2), "attention dropout of 0.2"),
        (qwen3_next, "recurrent"),
        (lfm2, r"layers other than .* \(conv\)"),
        (bloom, "attention interface"),
        (gpt_oss, "attention sinks"),
        (prompt_tuned, "prompt tuning"),
        (lambda: nn.Linear(1, 1), "no Transformers model"),
    ],
)
def test_a_model_that_would_not_be_exact_is_refused_by_name(build: Callable[[], nn.Module], reason: str) -> None:
    model = build()
    with pytest.raises(ModelError, match=reason), pair_attention(model):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_exact_is_not_refused(family: str) -> None:
    assert packing_obstacle(model_of(family)) is None


def layout_of_two_tokens() -> PackedLayout:
    return build_packed([TokenPair([5], [6], 0)]).inputs["pair_layout"]


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (3, {}, "packed row of 2 tokens"),
        (2, {"dropout": 0.1}, "attention dropout of 0.1"),
        (2, {"s_aux": torch.zeros(1)}, "uses s_aux"),
        (2, {"position_bias": torch.zeros(1)}, "uses position_bias"),
    ],
)
def test_a_layer_that_asks_for_more_than_packing_gives_is_refused(
    tokens: int, arguments: dict[str, Any], message: str
) -> None:
    states = torch.zeros(1, 1, tokens, 4)
    with pytest.raises(ModelError, match=message):
        attend(nn.Identity(), states, states, states, None, pair_layout=layout_of_two_tokens(), **arguments)


def test_a_bidirectional_layer_is_refused() -> None:
    layer = nn.Identity()
    layer.is_causal = False
    states = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ModelError, match="both directions"):
        attend(layer, states, states, states, None, pair_layout=layout_of_two_tokens())
