"""Optimizer steps of normbt beside those of TRL's RewardTrainer: the same weights, the same pairs, one run.

    python benchmarks/step_speed.py --data ../shared/data/{hh_rlhf_test,arena55k_subset,gsm8k_solutions}.jsonl.gz
    python benchmarks/step_speed.py --model 100m --pairs 8 --repeats 1 --data ../shared/data/gsm8k_solutions.jsonl.gz
    python benchmarks/step_speed.py --model 0.5b --pairs 64 --device cuda --data ...

The contestants:

* `TRL`              trl.RewardTrainer as it comes: micro-batches of 8 pairs, gradient checkpointing on;
* `TRL tuned`        micro-batches of 2 pairs, no checkpointing, pairs sorted by Transformers' `group_by_length` (which
                     needs a `length` column and `remove_unused_columns=False`); steps are then of pairs of a kind;
* `TRL unsorted`     the same in random order, so that the pairs of a step are a random draw, as in all other trainers;
* `normbt padded`    NormBTTrainer with `--batching padded`;
* `normbt plain`     NormBTTrainer as it comes, packed, but with plain Bradley-Terry loss, as TRL's;
* `normbt`           NormBTTrainer as it comes: packed, weighted.

A step. Each trainer is inside its own `train()`, in a thread; a callback stops it after every optimizer step until its
next turn. So a step is the trainer's whole loop: drawing, collating, forwards, backwards, clipping, AdamW, metrics. The
learning rate is 0: AdamW does all its work, the weights stay, and every step of every trainer is the same step. Losses
and gradient norms of the contestants with the plain loss must agree (to 1e-5 in float32); if not, the exit status is 1.

Time. A round is one step of each contestant, in an order that turns from round to round; the first round warms up and
is not counted. Ratios are medians over rounds of ratios within a round. On the CPU they are ratios of the process's own
time (those of the wall clock are printed beside); on CUDA of the wall clock.

What is printed for each. `unique tok/s`: tokens when a common prefix counts once and padding not at all. `efficiency`:
these over the tokens the model was run on. `work`: floating-point work done (padding, prompts twice, whole squares
under dense masks, forwards run again) over that of all layers on the unique tokens; it is below 1 where the last layer
runs at the pooled tokens alone. No step can be faster than this says, only nearer to the limit. `of limit`: time that
the floating-point work of all layers on the unique tokens (forward and backward, nothing computed twice) would take at
the rate of a large matrix product measured in the same rounds, over the time taken. `peak memory`: of a process that
trains this contestant alone, resident on the CPU (Linux only), allocated on CUDA.
"""

import argparse
import dataclasses
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import RewardConfig, RewardTrainer

from inputs import SHAPES, load_tokenizer, matmul_rate, packed_lengths, random_decoder, sampled_pairs, wait_for
from normbt.config import NormBTConfig
from normbt.cost import decoder_shape, pair_flops
from normbt.trainer import NormBTTrainer

MICRO_BATCH = 8
"""Pairs of a micro-batch: Transformers' default, which TRL keeps."""
CONTESTANTS: dict[str, tuple[type[RewardTrainer], type[RewardConfig], dict[str, Any]]] = {
    "TRL": (RewardTrainer, RewardConfig, {}),
    "TRL tuned": (
        RewardTrainer,
        RewardConfig,
        {
            "per_device_train_batch_size": 2,
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
            "remove_unused_columns": False,
        },
    ),
    "TRL unsorted": (RewardTrainer, RewardConfig, {"per_device_train_batch_size": 2, "gradient_checkpointing": False}),
    "normbt padded": (NormBTTrainer, NormBTConfig, {"batching": "padded", "weighting": "none"}),
    "normbt plain": (NormBTTrainer, NormBTConfig, {"weighting": "none"}),
    "normbt": (NormBTTrainer, NormBTConfig, {}),
}
DEFAULT_CONTESTANTS = [name for name in CONTESTANTS if name != "normbt padded"]
LOSS_TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}
"""Of losses and, relative, of gradient norms: float32 on the CPU, bfloat16 on CUDA."""
TARGETS = {"TRL": 2.5, "TRL tuned": 1.5}
GEOMETRIC_TARGET = 3.3
GIB = 2**30


class Elapsed(dict[str, float]):
    """Seconds of one step by the `wall` clock and of the process's own time, `cpu`."""


class WorkCounter:
    """Counts the tokens a model is run on, and the floating-point work of their forward and backward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.tokens = self.flops = 0
        self._shape = decoder_shape(model)
        self._in_forward = False  # a checkpointed layer runs again in the backward
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave)
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split(".")):
                module.register_forward_pre_hook(self._count_linear)

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._in_forward = True
        self.tokens += kwargs["input_ids"].numel()
        shape = self._shape
        if "pair_layout" in kwargs:
            # The last layer's attention is asked by two tokens of a pair.
            shape = dataclasses.replace(shape, matmul_parameters=0, layers=shape.layers - 1)
            self.flops += sum(pair_flops(shape, *pair) for pair in kwargs["pair_layout"].pairs)
        else:
            rows, tokens = kwargs["input_ids"].shape
            self.flops += 12 * shape.layers * shape.attention_width * rows * tokens**2  # a dense mask: the square

    def _leave(self, *args: Any) -> None:
        self._in_forward = False

    def _count_linear(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if self._in_forward:
            self.flops += 6 * module.weight.numel() * args[0].numel() // args[0].shape[-1]


class Contestant(TrainerCallback):
    """A trainer inside its own `train()`, let run for one optimizer step at a time."""

    def __init__(self, name: str, pairs: Dataset, tokenizer: Any, options: argparse.Namespace, folder: str) -> None:
        trainer_class, config_class, changes = CONTESTANTS[name]
        size = changes.get("per_device_train_batch_size", MICRO_BATCH)
        settings = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": len(pairs) // size,
            "max_steps": options.repeats + 1,
            "learning_rate": 0.0,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": options.device == "cpu",
            "bf16": options.device == "cuda",
            "output_dir": folder,
        }
        model = random_decoder(options.model, tokenizer)
        self.counter = WorkCounter(model)
        self.trainer = trainer_class(
            model, config_class(**settings | changes), train_dataset=pairs, processing_class=tokenizer, callbacks=[self]
        )
        self.trainer.remove_callback(PrinterCallback)
        self.device = options.device
        self.steps: list[Elapsed] = []
        self.step_tokens = self.step_flops = 0
        self._error: BaseException | None = None
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._train, daemon=True).start()

    def step(self) -> None:
        """Run one optimizer step and keep its time."""
        tokens, flops = self.counter.tokens, self.counter.flops
        wall, own = time.perf_counter(), time.process_time()
        self._resume()
        wait_for(self.device)
        self.steps.append(Elapsed(wall=time.perf_counter() - wall, cpu=time.process_time() - own))
        self.step_tokens = self.counter.tokens - tokens
        # A checkpointed step runs its forwards, a third of forward and backward, once more.
        again = 4 / 3 if self.trainer.args.gradient_checkpointing else 1
        self.step_flops = again * (self.counter.flops - flops)

    def finish(self) -> None:
        """Let the trainer leave its loop after the last step; its log is complete then."""
        self._resume()

    def logged(self, name: str) -> list[float]:
        """A number the trainer logged, for every step."""
        return [entry[name] for entry in self.trainer.state.log_history if name in entry and "train_loss" not in entry]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop until the next turn."""
        self._done.release()
        self._turn.acquire()

    def _resume(self) -> None:
        self._turn.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def _train(self) -> None:
        self._turn.acquire()
        try:
            self.trainer.train()
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()


@dataclass(frozen=True)
class Result:
    """What one set gave: times of every round, and the numbers that do not depend on time."""

    steps: dict[str, list[Elapsed]]
    processed_tokens: dict[str, int]
    processed_flops: dict[str, float]
    unique_tokens: int
    flops: int
    matmul_rate: float
    agreed: bool

    def ratio(self, base: str, name: str, clock: str) -> float:
        """Median over rounds of `base`'s time over `name`'s, so above 1 where `name` is faster."""
        rounds = zip(self.steps[base], self.steps[name], strict=True)
        return statistics.median(slow[clock] / fast[clock] for slow, fast in rounds)

    def seconds(self, name: str, clock: str) -> float:
        """Median time of a step."""
        return statistics.median(step[clock] for step in self.steps[name])


def main() -> int:
    """Parse the command line, race the contestants on every set, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of preference pairs")
    parser.add_argument("--model", choices=SHAPES, default="small", help="shape of the decoder (default: small)")
    parser.add_argument(
        "--pairs", type=int, default=16, help="pairs of an optimizer step, a multiple of 8 (default 16)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds counted (default: 3)")
    parser.add_argument("--max_length", type=int, default=1024, help="longer pairs are left out (default: 1024 tokens)")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=DEFAULT_CONTESTANTS, metavar="NAME")
    parser.add_argument("--tokenizer", help="folder or Hub id; default: the tokenizer of the demo's encoder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing of pairs (default: 0)")
    parser.add_argument(
        "--memory", action="store_true", help="also measure each one's peak memory, in runs of their own"
    )
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # one of those runs
    options = parser.parse_args()
    if options.pairs % MICRO_BATCH:
        parser.error(f"--pairs must be a multiple of {MICRO_BATCH}, got {options.pairs}")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] - a long run is followed in a file
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's own use of Transformers' older names
    tokenizer = load_tokenizer(options.tokenizer)
    if options.alone:
        print_peak(options, tokenizer)
        return 0
    print_header(options, tokenizer)
    results = []
    for file in options.data:
        pairs = encoded_pairs(file, tokenizer, options)
        result = race(pairs, tokenizer, options)
        memory = {name: peak_bytes(name, file, options) for name in options.contestants if options.memory}
        print_table(file, pairs, result, memory, options)
        results.append(result)
    print_verdict(results, options)
    return 0 if all(result.agreed for result in results) else 1


def encoded_pairs(file: Path, tokenizer: Any, options: argparse.Namespace) -> Dataset:
    """The pairs of one step, with the column that `group_by_length` needs."""
    pairs = sampled_pairs(file, tokenizer, options.pairs, max_length=options.max_length, seed=options.seed)
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in pairs]
    return pairs.add_column("length", lengths)


def race(pairs: Dataset, tokenizer: Any, options: argparse.Namespace) -> Result:
    """Step by step, all contestants in turn."""
    with tempfile.TemporaryDirectory() as folder:
        contestants = [Contestant(name, pairs, tokenizer, options, folder) for name in options.contestants]
        rates = []
        for turn in range(options.repeats + 1):
            start = turn % len(contestants)
            for contestant in contestants[start:] + contestants[:start]:
                contestant.step()
            rates.append(matmul_rate(options.device))
        for contestant in contestants:
            contestant.finish()
    lengths = packed_lengths(pairs)
    shape = decoder_shape(contestants[0].trainer.model)
    named = dict(zip(options.contestants, contestants, strict=True))
    return Result(
        steps={name: each.steps[1:] for name, each in named.items()},
        processed_tokens={name: each.step_tokens for name, each in named.items()},
        processed_flops={name: each.step_flops for name, each in named.items()},
        unique_tokens=sum(each.tokens for each in lengths),
        flops=sum(pair_flops(shape, *each) for each in lengths),
        matmul_rate=statistics.median(rates),
        agreed=losses_agree(named, LOSS_TOLERANCE[options.device]),
    )


def losses_agree(contestants: dict[str, Contestant], tolerance: float) -> bool:
    """Print the losses and gradient norms that must be equal, and whether they are."""
    plain = [name for name in contestants if name != "normbt"]
    agreed = True
    for number, relative in (("loss", False), ("grad_norm", True)):
        values = {name: contestants[name].logged(number) for name in plain}
        everything = [value for steps in values.values() for value in steps]
        difference = max(everything) - min(everything)
        difference /= max(everything) if relative else 1.0
        agreed &= difference <= tolerance
        listed = ", ".join(f"{name} {steps[0]:.7f}" for name, steps in values.items())
        print(f"\n{number} with the plain loss: {listed}; largest difference {difference:.1e}", end="")
    print(f" ({'agree' if agreed else 'DIFFER'}, tolerance {tolerance:g})")
    return agreed


def peak_bytes(name: str, file: Path, options: argparse.Namespace) -> int:
    """Peak memory of a process that takes two steps with one contestant."""
    command = [sys.executable, __file__, "--alone", "--contestants", name, "--data", str(file), "--repeats", "1"]
    for flag in ("model", "pairs", "max_length", "device", "threads", "seed"):
        command += [f"--{flag}", str(getattr(options, flag))]
    command += ["--tokenizer", options.tokenizer] if options.tokenizer else []
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(options: argparse.Namespace, tokenizer: Any) -> None:
    """The other side of :func:`peak_bytes`."""
    (file,), (name,) = options.data, options.contestants
    with tempfile.TemporaryDirectory() as folder:
        contestant = Contestant(name, encoded_pairs(file, tokenizer, options), tokenizer, options, folder)
        for _ in range(options.repeats + 1):
            contestant.step()
        contestant.finish()
    if options.device == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:
        # Not ru_maxrss: a child starts with its parent's.
        (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        print(int(peak.split()[1]) * 1024)


def print_header(options: argparse.Namespace, tokenizer: Any) -> None:
    """What was run, on what, when."""
    family, sizes = SHAPES[options.model]
    parameters = sum(each.numel() for each in random_decoder(options.model, tokenizer).parameters())
    where = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, {options.threads} thread"
    )
    precision = "bfloat16 autocast" if options.device == "cuda" else "float32"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {options.device}: {where}, {precision}")
    print(f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{family[1].__name__} of {parameters / 1e6:.0f} M parameters, random weights: {sizes}")
    print(f"tokenizer {Path(tokenizer.name_or_path).name}, {len(tokenizer)} tokens; {options.repeats} rounds")


def print_table(
    file: Path, pairs: Dataset, result: Result, memory: dict[str, int], options: argparse.Namespace
) -> None:
    """One set: a row for each contestant."""
    clock = "wall" if options.device == "cuda" else "cpu"
    limit = result.flops / result.matmul_rate
    print(
        f"\n{file.name}: {len(pairs)} pairs a step, {result.unique_tokens} unique tokens, "
        f"{result.flops / 1e9:.0f} Gflop, limit {limit:.2f} s at {result.matmul_rate / 1e9:.0f} Gflop/s"
    )
    bases = [name for name in TARGETS if name in options.contestants]
    head = "".join(f"{'x ' + base:>11}{'(wall)':>8}" for base in bases)
    print(
        f"{'':15}{'cpu s':>8}{'wall s':>8}{head}{'pairs/s':>9}{'unique tok/s':>14}{'efficiency':>12}{'work':>7}"
        f"{'of limit':>10}{'peak memory':>13}"
    )
    for name in options.contestants:
        seconds = result.seconds(name, clock)
        ratios = "".join(
            f"{result.ratio(base, name, clock):11.2f}{result.ratio(base, name, 'wall'):8.2f}" for base in bases
        )
        peak = f"{memory[name] / GIB:9.2f} GiB" if memory else "-"
        print(
            f"{name:15}{result.seconds(name, 'cpu'):8.2f}{result.seconds(name, 'wall'):8.2f}{ratios}"
            f"{len(pairs) / seconds:9.2f}{result.unique_tokens / seconds:14.0f}"
            f"{result.unique_tokens / result.processed_tokens[name]:12.2f}"
            f"{result.processed_flops[name] / result.flops:7.2f}{limit / seconds:10.2f}{peak:>13}"
        )


def print_verdict(results: list[Result], options: argparse.Namespace) -> None:
    """How many times as fast as TRL normbt is over all sets, against what it is meant to be."""
    if "normbt" not in options.contestants:
        return
    clock = "wall" if options.device == "cuda" else "cpu"
    print()
    for base, target in TARGETS.items():
        if base in options.contestants:
            ratios = [result.ratio(base, "normbt", clock) for result in results]
            mean = math.exp(statistics.mean(map(math.log, ratios)))
            goal = f"target {target}" + (f", {GEOMETRIC_TARGET} in the mean" if base == "TRL" else "")
            listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"normbt over {base}: {listed}; geometric mean {mean:.2f} ({goal})")


if __name__ == "__main__":
    sys.exit(main())
