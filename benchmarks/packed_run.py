"""A whole training run, packed and padded, on the same real pairs: loss and mu of every optimizer step must agree.

    python benchmarks/packed_run.py --data ../shared/data/{hh_rlhf_test,gsm8k_solutions}.jsonl.gz

The runs train a small Llama in float32 from the same weights, with the same draws, the settings of NormBT and AdamW.
The first two differ in `--batching` alone. The third is padded again, each step in two halves: what it differs by is
what another order of sums does to such a run, Adam making much of small gradients.

Printed are the largest differences over all steps, relative to the padded run's value; one of the packed run's loss or
mu over the tolerance makes the exit status 1. Weights are printed but not judged.
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
PRINTED = (*JUDGED, "loss_unweighted", "weight_q90", "distance", "accuracy", "grad_norm")


def main() -> int:
    """Parse the command line, train twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of preference pairs")
    parser.add_argument("--model", choices=SHAPES, default="tiny", help="shape of the decoder (default: tiny)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a step, an even number (default: 8)")
    parser.add_argument("--max_length", type=int, default=256, help="longer pairs are left out (default: 256 tokens)")
    parser.add_argument("--token_budget", type=int, default=1024, help="of a packed micro-batch (default: 1024)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of AdamW (default: 1e-4, TRL's)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="of loss and mu at each step, relative (default: 1e-5)"
    )
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
    padded = trained("padded", pairs, tokenizer, options)
    packed = trained("packed", pairs, tokenizer, options)
    halves = trained("padded", pairs, tokenizer, options, micro_batches=2)
    return report(padded, packed, halves, options.tolerance)


def trained(
    batching: str, pairs: Dataset, tokenizer: Any, options: argparse.Namespace, *, micro_batches: int = 1
) -> NormBTTrainer:
    """One run from the first weights on."""
    with tempfile.TemporaryDirectory() as folder:
        config = NormBTConfig(
            output_dir=folder,
            batching=batching,
            token_budget=options.token_budget,
            per_device_train_batch_size=options.pairs // micro_batches,
            gradient_accumulation_steps=micro_batches,
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


def report(padded: NormBTTrainer, packed: NormBTTrainer, halves: NormBTTrainer, tolerance: float) -> int:
    """Print the curves' ends and largest differences; 1 if a judged one is over the tolerance."""
    print(f"\n{'':16}{'first':>10}{'last, padded':>14}{'last, packed':>14}{'packed differs':>16}{'halves differ':>15}")
    failed = False
    for name in PRINTED:
        wanted, found = logged(padded, name), logged(packed, name)
        difference, control = (max(differences(wanted, other)) for other in (found, logged(halves, name)))
        over = name in JUDGED and not difference <= tolerance
        failed |= over
        judged = f"  {'OVER' if over else 'within'} {tolerance:g}" if name in JUDGED else ""
        if over:
            judged += f" in {sum(not each <= tolerance for each in differences(wanted, found))} of {len(wanted)} steps"
        print(f"{name:16}{wanted[0]:10.6f}{wanted[-1]:14.6f}{found[-1]:14.6f}{difference:16.1e}{control:15.1e}{judged}")
    drifts = [weight_difference(padded, other) for other in (packed, halves)]
    print(f"{'weights':54}{drifts[0]:16.1e}{drifts[1]:15.1e}  (absolute)")
    return int(failed)


def differences(wanted: list[float], found: list[float]) -> list[float]:
    """Of each step, relative to the wanted value; a value that is 0 in both does not differ."""
    return [abs(a - b) / (abs(a) or 1.0) for a, b in zip(wanted, found, strict=True)]


def weight_difference(first: NormBTTrainer, second: NormBTTrainer) -> float:
    """The largest of any weight."""
    couples = zip(first.model.parameters(), second.model.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in couples)


def logged(trainer: NormBTTrainer, name: str) -> list[float]:
    """A number of every step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry and "train_loss" not in entry]


if __name__ == "__main__":
    sys.exit(main())
