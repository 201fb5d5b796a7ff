"""A whole training run, packed and padded, on the same real pairs: loss and mu of every optimizer step must agree.

    python benchmarks/packed_run.py --data ../shared/data/{hh_rlhf_test,gsm8k_solutions}.jsonl.gz

Both runs train a small Llama in float32 from the same weights, with the same draws, the settings of NormBT and AdamW.
They differ in `--batching` alone. The largest differences over all steps are printed; one of loss or mu over the
tolerance makes the exit status 1. Weights drift apart by rounding as they do between any two orders of a sum, so the
final weights are printed but not judged.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset, concatenate_datasets
from transformers import PrinterCallback

from inputs import SHAPES, load_tokenizer, random_decoder, sampled_pairs
from normbt.config import NormBTConfig
from normbt.trainer import NormBTTrainer

JUDGED = ("loss", "mu")
PRINTED = (*JUDGED, "distance", "accuracy", "grad_norm")


def main() -> int:
    """Parse the command line, train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of preference pairs")
    parser.add_argument("--model", choices=SHAPES, default="tiny", help="shape of the decoder (default: tiny)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a step (default: 8)")
    parser.add_argument("--max_length", type=int, default=256, help="longer pairs are left out (default: 256 tokens)")
    parser.add_argument("--token_budget", type=int, default=1024, help="of a packed micro-batch (default: 1024)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of AdamW (default: 1e-4, TRL's)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of loss and mu at each step (default: 1e-5)")
    parser.add_argument("--tokenizer", help="folder or Hub id; default: the tokenizer of the demo's encoder")
    options = parser.parse_args()

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    tokenizer = load_tokenizer(options.tokenizer)
    count = -(-options.steps * options.pairs // len(options.data))
    files = [sampled_pairs(file, tokenizer, count, max_length=options.max_length) for file in options.data]
    pairs = concatenate_datasets(files)
    runs = {batching: trained(batching, pairs, tokenizer, options) for batching in ("padded", "packed")}
    return report(runs["padded"], runs["packed"], options.tolerance)


def trained(batching: str, pairs: Dataset, tokenizer: Any, options: argparse.Namespace) -> NormBTTrainer:
    """One run from the first weights on."""
    with tempfile.TemporaryDirectory() as folder:
        config = NormBTConfig(
            output_dir=folder,
            batching=batching,
            token_budget=options.token_budget,
            per_device_train_batch_size=options.pairs,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        )
        trainer = NormBTTrainer(
            random_decoder(options.model, tokenizer), config, train_dataset=pairs, processing_class=tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        trainer.train()
    if trainer.step_plan.batching != batching:
        raise SystemExit(f"the run was to be {batching}: {trainer.step_plan.reason}")
    print(f"{batching}: {options.steps} steps in {time.process_time() - start:.0f} s of processor time")
    return trainer


def report(padded: NormBTTrainer, packed: NormBTTrainer, tolerance: float) -> int:
    """Print both curves' ends and largest differences; 1 if a judged one is over the tolerance."""
    print(f"\n{'':12}{'first step':>12}{'last, padded':>14}{'last, packed':>14}{'largest difference':>20}")
    failed = False
    for name in PRINTED:
        left, right = logged(padded, name), logged(packed, name)
        difference = max(abs(a - b) for a, b in zip(left, right, strict=True))
        over = name in JUDGED and not difference <= tolerance
        failed |= over
        judged = f"  {'OVER' if over else 'within'} {tolerance:g}" if name in JUDGED else ""
        print(f"{name:12}{left[0]:12.6f}{left[-1]:14.6f}{right[-1]:14.6f}{difference:20.1e}{judged}")
    parameters = zip(padded.model.parameters(), packed.model.parameters(), strict=True)
    print(f"weights: largest difference {max(float((a - b).detach().abs().max()) for a, b in parameters):.1e}")
    return int(failed)


def logged(trainer: NormBTTrainer, name: str) -> list[float]:
    """A number of every step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry and "train_loss" not in entry]


if __name__ == "__main__":
    sys.exit(main())
