"""Tiny reward models, tokenizers and batches, built in code: the Hub is never needed.

transformers and peft are imported when a builder is called, so that a test of formulas does not pay for them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PAD, BOS, EOS = 0, 1, 2
"""Special token ids of every tiny model; real tokens are :data:`FIRST_WORD` to ``VOCABULARY - 1``."""
FIRST_WORD = 5
VOCABULARY = 64
HIDDEN = 16

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = {"num_key_value_heads": 2}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_FULL_ATTENTION = {"sliding_window": None}
_ENCODER_DECODER = {"decoder_start_token_id": PAD}

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _SIZES | _GROUPED),
    "qwen2": ("Qwen2", _SIZES | _GROUPED),
    "qwen3": ("Qwen3", _SIZES | _GROUPED | {"head_dim": 8}),
    "gemma2": ("Gemma2", _SIZES | _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3-text": ("Gemma3Text", _SIZES | _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "mistral": ("Mistral", _SIZES | _GROUPED | _FULL_ATTENTION),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "gpt-neox": ("GPTNeoX", _SIZES),
    "bert": ("Bert", _SIZES | _NO_DROPOUT),
    "roberta": ("Roberta", _SIZES | _NO_DROPOUT | {"type_vocab_size": 1}),
    "modernbert": (
        "ModernBert",
        _SIZES | {"cls_token_id": BOS, "sep_token_id": EOS, "attn_implementation": "sdpa"},
    ),
    "deberta-v2": (
        "DebertaV2",
        _SIZES
        | _NO_DROPOUT
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "pooler_hidden_size": HIDDEN,
            "pooler_dropout": 0.0,
        },
    ),
    "t5": (
        "T5",
        _ENCODER_DECODER
        | {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": 4,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 4,
            "dropout_rate": 0.0,
            "classifier_dropout": 0.0,
        },
    ),
    "bart": (
        "Bart",
        _ENCODER_DECODER
        | {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 128,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
        },
    ),
}

DECODERS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3-text", "mistral", "gpt2", "gpt-neox")
"""Token-level heads: the head reads every token, the model picks one."""
ENCODERS = ("bert", "roberta", "modernbert", "deberta-v2")
"""Pooled heads: the model picks a token first, the head reads that."""
ENCODER_DECODERS = ("t5", "bart")
"""Pooled heads at the last EOS; every row must hold the same number of them."""


def tiny_model(kind: str = "llama", *, seed: int = 0, num_labels: int = 1, **settings: Any) -> Any:
    """A sequence-classification model of a known architecture, in evaluation mode, without dropout.

    Args:
        kind: one of :data:`DECODERS`, :data:`ENCODERS`, :data:`ENCODER_DECODERS`.
        seed: of the weights. Matrices are drawn with standard deviation 0.3, so that rewards differ and context counts.
        num_labels: outputs of the head.
        settings: override fields of the model's config.
    """
    import transformers

    name, sizes = _KINDS[kind]
    config_class = getattr(transformers, f"{name}Config")
    fields = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "num_labels": num_labels}
    config = config_class(**(sizes | fields | settings))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_rows(lengths: Sequence[int], *, seed: int = 0, bos: bool = True, eos: bool = True) -> list[list[int]]:
    """Token ids of one row per length: words between BOS and EOS, no special token among them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        words = torch.randint(FIRST_WORD, VOCABULARY, (length - bos - eos,), generator=generator).tolist()
        rows.append([BOS] * bos + words + [EOS] * eos)
    return rows


def padded(rows: Sequence[Sequence[int]], *, side: str = "right", pad: int = PAD) -> dict[str, Tensor]:
    """A batch ``{"input_ids", "attention_mask"}`` of rows padded to the longest one."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
