"""A whole training run, packed and padded, on the same real pairs: loss and mu of every optimizer step must agree.

    python benchmarks/packed_run.py --data ../shared/data/{hh_rlhf_test,gsm8k_solutions}.jsonl.gz
    python benchmarks/packed_run.py --adam_epsilon 1e-6 --data ...

Five runs train a small Llama from the same weights, with the same draws, the settings of NormBT and AdamW: padded and
packed in float64; padded and packed in float32; and, for scale, padded in float32 with each step in two halves and
Transformers' eager attention, which changes the order of sums and nothing else.

Two things are judged, for loss and mu, as the largest difference over all steps, relative. (1) In float64, packed
against padded: within the tolerance. Transformers computes norms and rotary embeddings in float32 in a float64 model
too, and our distance is float32, hence not zero. (2) In float32, packed against the float64 padded run: within the
tolerance, or no further from it than the float32 padded run is. One that fails makes the exit status 1.

Float32 runs are not judged against each other: AdamW divides a gradient by its own size, so where a gradient is little
but rounding, rounding becomes a whole step, in any layout. Its epsilon of 1e-8 is too small to stop that; with
`--adam_epsilon 1e-6` the runs agree far more closely. They are printed.
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
    """Parse the command line, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of preference pairs")
    parser.add_argument("--model", choices=SHAPES, default="tiny", help="shape of the decoder (default: tiny)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a step, an even number (default: 8)")
    parser.add_argument("--max_length", type=int, default=256, help="longer pairs are left out (default: 256 tokens)")
    parser.add_argument("--token_budget", type=int, default=1024, help="of a packed micro-batch (default: 1024)")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of AdamW (default: 1e-4, TRL's)")
    parser.add_argument("--adam_epsilon", type=float, default=1e-8, help="of AdamW (default: 1e-8, everybody's)")
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
    exact = trained("padded", pairs, tokenizer, options, torch.float64)
    runs = {
        "packed, float64": trained("packed", pairs, tokenizer, options, torch.float64),
        "padded": trained("padded", pairs, tokenizer, options),
        "packed": trained("packed", pairs, tokenizer, options),
        "padded, other sums": trained("padded", pairs, tokenizer, options, other_sums=True),
    }
    return report(exact, runs, options.tolerance)


def trained(
    batching: str,
    pairs: Dataset,
    tokenizer: Any,
    options: argparse.Namespace,
    dtype: torch.dtype = torch.float32,
    *,
    other_sums: bool = False,
) -> NormBTTrainer:
    """One run from the first weights on."""
    micro_batches = 2 if other_sums else 1
    model = random_decoder(options.model, tokenizer).to(dtype)
    if other_sums:
        model.set_attn_implementation("eager")
    with tempfile.TemporaryDirectory() as folder:
        config = NormBTConfig(
            output_dir=folder,
            batching=batching,
            token_budget=options.token_budget,
            per_device_train_batch_size=options.pairs // micro_batches,
            gradient_accumulation_steps=micro_batches,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            adam_epsilon=options.adam_epsilon,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        )
        trainer = NormBTTrainer(model, config, train_dataset=pairs, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        trainer.train()
    if trainer.step_plan.batching != batching:
        raise SystemExit(f"the run was to be {batching}: {trainer.step_plan.reason}")
    print(f"{batching}, {dtype}: {options.steps} steps in {time.process_time() - start:.0f} s of processor time")
    return trainer


def report(exact: NormBTTrainer, runs: dict[str, NormBTTrainer], tolerance: float) -> int:
    """Print how far each run is from another; 1 if a judged one is too far."""
    float32 = {name: run for name, run in runs.items() if name != "packed, float64"}
    print("\nLargest difference over all steps from the padded run in float64, relative:")
    print(f"{'':16}{'first':>10}{'last':>10}" + "".join(f"{name:>20}" for name in runs))
    failed = []
    for name in PRINTED:
        wanted = logged(exact, name)
        errors = {run: max(differences(wanted, logged(trainer, name))) for run, trainer in runs.items()}
        print(f"{name:16}{wanted[0]:10.6f}{wanted[-1]:10.6f}" + "".join(f"{each:20.1e}" for each in errors.values()))
        if name in JUDGED:
            failed += [f"{name} in float64"] * (not errors["packed, float64"] <= tolerance)
            failed += [f"{name} in float32"] * (not errors["packed"] <= max(tolerance, errors["padded"]))
    print("\nLargest difference from the padded run in float32, relative, and the steps over the tolerance:")
    others = ("packed", "padded, other sums")
    print(f"{'':56}" + "".join(f"{run:>20}{'over':>5}" for run in others))
    for name in PRINTED:
        wanted = logged(float32["padded"], name)
        cells = [differences(wanted, logged(float32[run], name)) for run in others]
        listed = "".join(f"{max(each):20.1e}{sum(not one <= tolerance for one in each):5}" for each in cells)
        print(f"{name:56}{listed}")
    verdict = f"too far: {', '.join(failed)}" if failed else "within"
    print(f"\n{verdict} (tolerance {tolerance:g} in float64; in float32 this, or padding's own error)")
    return int(bool(failed))


def differences(wanted: list[float], found: list[float]) -> list[float]:
    """Of each step, relative to the wanted value; a value that is 0 in both does not differ."""
    return [abs(a - b) / (abs(a) or 1.0) for a, b in zip(wanted, found, strict=True)]


def logged(trainer: NormBTTrainer, name: str) -> list[float]:
    """A number of every step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry and "train_loss" not in entry]


if __name__ == "__main__":
    sys.exit(main())
