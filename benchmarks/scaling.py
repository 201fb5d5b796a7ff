"""What several processes cost: step time at 1 and 2 processes, the bytes NormBT adds to the wire, and a plan on paper.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --plan

The first trains a small Llama-shaped reward model with NormBTTrainer in one process and in two (gloo, one thread each,
the same pairs per process), with `weighting normbt` and `weighting none` in turn, and prints the median step time and
every all-reduce that Python asks for in a step. Gradients are averaged by DistributedDataParallel outside Python; their
bytes are the parameters times four.

The second is arithmetic, not measurement: the floating-point work of a pair from normbt.cost, the bytes of the
gradients, and the all-reduce of NormBT, on 8 to 512 GPUs of the speed, network and latency that the flags assume.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

STEPS, WARM_UP = 12, 3
GPUS = (8, 16, 32, 64, 128, 256, 512)


def measure(arguments: argparse.Namespace) -> None:
    """Print the table of one and two processes."""
    print("| processes | weighting | step, s | vs one process | all-reduces per step | their bytes | gradient bytes |")
    print("|---|---|---|---|---|---|---|")
    base: dict[str, float] = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            command = [sys.executable, *launcher, __file__, "--child", folder, "--hidden", str(arguments.hidden)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            results: dict[str, Any] = json.loads((Path(folder) / "results.json").read_text())
        for weighting, found in results.items():
            ratio = found["step"] / base.setdefault(weighting, found["step"])
            print(
                f"| {processes} | {weighting} | {found['step']:.3f} | {ratio:.2f} | {found['calls']:g} | "
                f"{found['bytes']:g} | {found['gradient_bytes'] if processes > 1 else 0:,} |"
            )


def child(folder: Path, hidden: int) -> None:
    """One process of a measurement: train with both weightings in turn, twice; the main process writes."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback

    from normbt.config import NormBTConfig
    from normbt.trainer import NormBTTrainer

    calls: list[int] = []
    all_reduce = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    times: list[float] = []
    counts: list[tuple[int, int]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began, self.before = time.perf_counter(), len(calls)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter() - self.began)
            counts.append((len(calls) - self.before, sum(calls[self.before :])))

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 500, (8 * 2 * STEPS, 3, 48), generator=generator).tolist()
    rows = [{"chosen_ids": p + c, "rejected_ids": p + r, "prefix_length": 48} for p, c, r in ids]
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    results: dict[str, dict[str, Any]] = {name: {"step": [], "calls": 0, "bytes": 0} for name in ("normbt", "none")}
    for _ in range(2):
        for weighting, found in results.items():
            torch.manual_seed(0)
            sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": 4}
            sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512, "pad_token_id": 0}
            model = LlamaForSequenceClassification(LlamaConfig(**sizes, num_labels=1))
            times.clear()
            counts.clear()
            config = NormBTConfig(
                output_dir=str(folder / "run"), weighting=weighting, max_steps=STEPS, per_device_train_batch_size=8,
                logging_steps=STEPS, save_strategy="no", report_to="none", bf16=False, use_cpu=True, disable_tqdm=True,
                gradient_checkpointing=False,
            )  # fmt: skip
            NormBTTrainer(
                model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Clock()]
            ).train()
            found["step"].append(statistics.median(times[WARM_UP:]))
            # The last step logs; the ones before show what a step costs.
            found["calls"], found["bytes"] = counts[WARM_UP]
            found["gradient_bytes"] = sum(p.numel() * p.element_size() for p in model.parameters())
    for found in results.values():
        found["step"] = min(found["step"])
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / "results.json").write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def plan(arguments: argparse.Namespace) -> None:
    """Print the plan on paper: an 8B decoder, whole gradients averaged once per step and not overlapped."""
    from normbt.cost import DecoderShape, pair_flops

    shape = DecoderShape(
        layers=32, hidden=4096, intermediate=14336, attention_width=4096, matmul_parameters=6_979_321_856
    )
    parameters = 7_504_932_864  # with the embedding, without a language-model head
    work = pair_flops(shape, prefix=300, chosen=200, rejected=200)
    compute = arguments.pairs_per_gpu * work / (arguments.tflops * 1e12 * arguments.utilisation)
    print(
        "| GPUs | pairs per step | compute, s | gradients, s | NormBT's all-reduce, s | its share | pairs per second |"
    )
    print("|---|---|---|---|---|---|---|")
    for gpus in GPUS:
        ring = 2 * (gpus - 1) / gpus * parameters * 2  # bytes through each GPU, bf16
        gradients = ring / (arguments.gigabytes_per_second * 1e9)
        added = 2 * math.log2(gpus) * arguments.latency_us * 1e-6  # eight bytes: latency alone, up and down a tree
        step = compute + gradients + added
        pairs = arguments.pairs_per_gpu * gpus
        print(
            f"| {gpus} | {pairs:,} | {compute:.2f} | {gradients:.2f} | {added:.6f} | {100 * added / step:.4f}% | "
            f"{pairs / step:,.0f} |"
        )


def main() -> None:
    """Measure, or print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256, help="width of the measured model")
    parser.add_argument("--plan", action="store_true", help="print the plan on paper instead")
    parser.add_argument("--tflops", type=float, default=989.0, help="plan: peak of one GPU in bf16, without sparsity")
    parser.add_argument("--utilisation", type=float, default=0.4, help="plan: share of the peak that is reached")
    parser.add_argument("--gigabytes_per_second", type=float, default=50.0, help="plan: network of one GPU")
    parser.add_argument("--latency_us", type=float, default=10.0, help="plan: one hop between two GPUs")
    parser.add_argument("--pairs_per_gpu", type=int, default=32, help="plan: pairs per GPU and optimizer step")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.hidden)
    elif arguments.plan:
        plan(arguments)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
