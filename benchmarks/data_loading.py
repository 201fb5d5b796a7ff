"""How fast pairs come from the encoded data set to packed micro-batches: the host must be ahead of the device.

    python benchmarks/data_loading.py --data ../shared/data/{hh_rlhf_test,arena55k_subset,gsm8k_solutions}.jsonl.gz

Two times per pair, on one core: drawing it through the trainer's own data loader (Arrow rows to Python lists), and
laying it out (arranging the step, building the rows). Nothing is read from a device within a step, so the host does
both for the next step while an accelerator works on this one; what counts is unique tokens per second, beside what the
device can take. `device limit` is the rate at which the matrix products and attention of a Qwen2.5-0.5B-shaped model
would be done at --device_tflops, with nothing lost: the most any device of that speed could ask for.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import datasets
import torch
import transformers

from inputs import SHAPES, load_tokenizer, packed_lengths, random_decoder, sampled_pairs
from normbt.config import NormBTConfig
from normbt.cost import DecoderShape, pair_flops
from normbt.trainer import NormBTTrainer


def main() -> None:
    """Parse the command line, time each file, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of preference pairs")
    parser.add_argument("--pairs", type=int, default=64, help="of an optimizer step (default: 64)")
    parser.add_argument("--steps", type=int, default=8, help="timed (default: 8)")
    parser.add_argument("--max_length", type=int, default=1024, help="longer pairs are left out (default: 1024 tokens)")
    parser.add_argument("--token_budget", type=int, default=16_384, help="of a micro-batch (default: 16384)")
    parser.add_argument(
        "--device_tflops", type=float, default=788.0, help="of an H200's matrix products (default: 788)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    tokenizer = load_tokenizer(None)
    sizes = SHAPES["0.5b"][1]
    width, inside, layers, heads = (sizes[name] for name in ("hidden", "feed_forward", "layers", "heads"))
    per_layer = width * width * (2 + 2 * sizes["key_heads"] / heads) + 3 * width * inside
    shape = DecoderShape(layers, width, inside, width, int(layers * per_layer))
    head = ("drawing ms/pair", "layout ms/pair", "unique tok/s", "device limit", "ahead by")
    print(f"{'':28}" + "".join(f"{name:>17}" for name in head))
    for file in options.data:
        pairs = sampled_pairs(file, tokenizer, options.pairs, max_length=options.max_length)
        drawing, layout = timed(pairs, tokenizer, options)
        lengths = packed_lengths(pairs)
        tokens = sum(each.tokens for each in lengths) / len(lengths)
        device = options.device_tflops * 1e12 / (sum(pair_flops(shape, *each) for each in lengths) / len(lengths))
        rate = 1 / (drawing + layout)
        row = (f"{1e3 * drawing:.3f}", f"{1e3 * layout:.3f}", f"{rate * tokens:,.0f}", f"{device * tokens:,.0f}")
        print(f"{file.name.split('.')[0]:28}" + "".join(f"{cell:>17}" for cell in row) + f"{rate / device:>16.1f}x")


def timed(pairs: datasets.Dataset, tokenizer, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds per pair of drawing and of laying out, of the process's own time."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none"}
        config = NormBTConfig(per_device_train_batch_size=options.pairs, token_budget=options.token_budget, **settings)
        trainer = NormBTTrainer(
            random_decoder("tiny", tokenizer), config, train_dataset=pairs, processing_class=tokenizer
        )
        drawing = layout = 0.0
        loader = trainer.get_train_dataloader()
        for _ in range(options.steps):
            start = time.process_time()
            (drawn,) = loader
            drawing += time.process_time() - start
            start = time.process_time()
            trainer.step_plan.micro_batches(drawn.examples)
            layout += time.process_time() - start
    count = options.steps * options.pairs
    return drawing / count, layout / count


if __name__ == "__main__":
    main()
