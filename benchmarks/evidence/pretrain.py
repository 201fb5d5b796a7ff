"""Pretrain a small Llama on the texts of the training pairs: the decoder of the experiment `evidence-decoder`.

    python -m benchmarks.evidence.pretrain runs/decoder-5m --data ../shared/data

A byte-level BPE vocabulary and 5.3 M parameters, both learned on prompts and answers (chosen and rejected alike, once
each) of the train splits alone. One pass over `--tokens` tokens in blocks of 256, AdamW, cosine schedule, bfloat16
autocast. The folder holds `pretraining.json`: tokens, steps, hardware, and the loss on blocks that were held out.
A copy is docs/results/decoder-pretraining.json.
"""

import argparse
import json
import math
import platform
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from normbt.pairs import read_pairs

SOURCES = ("hh_rlhf_test", "gsm8k_solutions", "arena55k_subset", "codexglue_refine", "ultrafeedback_1k")
BLOCK = 256
VOCABULARY = 8_192
HELD_OUT = 64
"""Blocks that the loss is measured on and that aren't trained on."""


def main() -> None:
    """Parse the command line, pretrain, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference files")
    parser.add_argument("--tokens", type=int, default=800_000)
    parser.add_argument("--blocks_per_step", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    texts = list(training_texts(options.data))
    random.Random(options.seed).shuffle(texts)
    tokenizer = learned_tokenizer(texts)
    blocks = token_blocks(texts, tokenizer, options.tokens + HELD_OUT * BLOCK)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1_024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    settings = TrainingArguments(
        str(options.folder / "trainer"),
        num_train_epochs=1,
        per_device_train_batch_size=options.blocks_per_step,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_strategy="no",
        report_to="none",
        seed=options.seed,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model, settings, train_dataset=as_dataset(blocks[HELD_OUT:]), eval_dataset=as_dataset(blocks[:HELD_OUT])
    )
    before = trainer.evaluate()["eval_loss"]
    result = trainer.train()
    after = trainer.evaluate()["eval_loss"]
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)
    record = {
        "parameters": model.num_parameters(),
        "tokens": (len(blocks) - HELD_OUT) * BLOCK,
        "steps": result.global_step,
        "held_out_loss_before": before,
        "held_out_loss": after,
        "perplexity": math.exp(after),
        "seconds": result.metrics["train_runtime"],
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    (options.folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def training_texts(folder: Path) -> Iterator[str]:
    """Each conversation of the train splits once, as plain text."""
    seen: set[int] = set()
    for source in SOURCES:
        rows, _ = read_pairs(str(folder / f"{source}.jsonl.gz"), split="train")
        for row in rows:
            for side in ("chosen", "rejected"):
                text = "\n".join(part for field in ("prompt", side) for part in parts(row[field]))
                if hash(text) not in seen:
                    seen.add(hash(text))
                    yield text


def parts(field: Any) -> list[str]:
    """What is said in a prompt or an answer: text, or messages."""
    return [field] if isinstance(field, str) else [turn["content"] for turn in field]


def learned_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE vocabulary of the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts[:8_000], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", bos_token="<|begin|>", eos_token="<|end|>"
    )


def token_blocks(texts: list[str], tokenizer: PreTrainedTokenizerFast, tokens: int) -> list[list[int]]:
    """The texts one after another, cut into blocks."""
    stream: list[int] = []
    for text in texts:
        if len(stream) >= tokens:
            break
        stream += [*tokenizer.encode(text, add_special_tokens=False)[: 4 * BLOCK], tokenizer.eos_token_id]
    return [stream[start : start + BLOCK] for start in range(0, min(len(stream), tokens) - BLOCK + 1, BLOCK)]


def as_dataset(blocks: list[list[int]]) -> Dataset:
    """Blocks that predict themselves."""
    return Dataset.from_dict({"input_ids": blocks, "labels": blocks})


if __name__ == "__main__":
    main()
