"""Steps of an encoder, which is padded: pairs in the order drawn, as TRL pads them, against similar lengths together.

    python benchmarks/padded_steps.py --data ../shared/data/{hh_rlhf_test,arena55k_subset,gsm8k_solutions}.jsonl.gz

Both compute the same loss of the same pairs on the packaged MiniLM, forward and backward, without an optimizer. They
take turns, on new pairs each round. Times are processor time of the process, with one thread; ratios are medians over
rounds. `padding` is the share of the processed tokens that is padding.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from inputs import load_tokenizer, sampled_pairs
from normbt.batches import MicroBatch
from normbt.losses import bt_loss
from normbt.packaged_encoder import PACKAGED_ENCODER, locate_model
from normbt.step_plan import StepPlan, make_step_plan


def main() -> None:
    """Parse the command line and print one table for each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="preference files (.jsonl.gz)")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a step (default: 16)")
    parser.add_argument("--max_length", type=int, default=512, help="longer pairs are left out (default: 512)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(None)
    model = AutoModelForSequenceClassification.from_pretrained(locate_model(PACKAGED_ENCODER), num_labels=1).eval()
    by_length = make_step_plan(
        model,
        batching="padded",
        token_budget=None,
        checkpointing=False,
        longest_sequence=options.max_length,
        pairs_per_draw=options.pairs,
        pad_token_id=tokenizer.pad_token_id,
        pad_to_multiple_of=None,
        low_precision=False,
    )
    plans = {
        "order drawn, one micro-batch": replace(by_length, token_budget=options.pairs * 2 * options.max_length),
        "by length": by_length,
    }
    print(f"MiniLM, {options.pairs} pairs a step, at most {options.max_length} tokens, {by_length.reason}")
    for file in options.data:
        print_steps(file, model, plans, options)


def print_steps(file: Path, model: PreTrainedModel, plans: dict[str, StepPlan], options: argparse.Namespace) -> None:
    """Time the plans in turn and print a row for each."""
    rows = sampled_pairs(
        file, load_tokenizer(None), options.pairs * (options.rounds + 1), max_length=options.max_length
    )
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    padding: dict[str, list[float]] = {name: [] for name in plans}
    for number in range(options.rounds + 1):
        examples = list(rows.select(range(number * options.pairs, (number + 1) * options.pairs)))
        losses = []
        for name, plan in plans.items():
            batches = plan.micro_batches(examples)
            elapsed, loss = step(model, batches, options.pairs)
            losses.append(loss)
            if number:  # the first round warms up
                seconds[name].append(elapsed)
                padding[name].append(padded_share(batches))
        if abs(losses[0] - losses[1]) > 1e-5 * abs(losses[0]):
            raise SystemExit(f"{file.name}: the losses differ: {losses}")
    first = next(iter(plans))
    print(f"\n{file.name}\n{'':32}{'seconds':>10}{'ratio':>8}{'padding':>9}")
    for name, times in seconds.items():
        ratio = statistics.median(slow / fast for slow, fast in zip(seconds[first], times, strict=True))
        print(f"{name:32}{statistics.median(times):10.2f}{ratio:8.2f}{statistics.mean(padding[name]):9.0%}", flush=True)


def step(model: PreTrainedModel, batches: Sequence[MicroBatch], pairs: int) -> tuple[float, float]:
    """Processor seconds of forward and backward, and the loss."""
    model.zero_grad(set_to_none=True)
    start, total = time.process_time(), 0.0
    for batch in batches:
        loss = bt_loss(*model(**batch.inputs).logits.squeeze(-1).chunk(2)).sum() / pairs
        loss.backward()
        total += float(loss)
    return time.process_time() - start, total


def padded_share(batches: Sequence[MicroBatch]) -> float:
    """Padding among the tokens that are processed."""
    return 1 - sum(batch.tokens for batch in batches) / sum(batch.inputs["input_ids"].numel() for batch in batches)


if __name__ == "__main__":
    main()
