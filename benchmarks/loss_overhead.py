"""What NormBT costs over plain Bradley-Terry: step time and peak memory, side by side in one run.

    python benchmarks/loss_overhead.py
    python benchmarks/loss_overhead.py --hidden 512 --tokens 512 --rounds 20 --threads 1
    python benchmarks/loss_overhead.py --device cuda --dtype bfloat16 --hidden 2048 --layers 16 --tokens 1024

Three variants train copies of one Llama-shaped reward model on the same batches (forward, backward, AdamW step):

* `bt`      capture_hidden, then the mean Bradley-Terry loss: the base of every ratio;
* `normbt`  capture_hidden, then NormBTLoss: only the loss differs from `bt`;
* `plain`   no capture: the logits as Transformers pools them, then logsigmoid.

A fourth, `bt again`, repeats `bt`: what its ratio differs from 1 is the noise of this machine at this moment.

Time. Each round runs one step of every variant, in an order that turns from round to round, and divides by the step of
`bt` in the same round; the table shows medians of these ratios, in wall time and in the CPU time of the process, which
other users of the machine disturb less. The ratio still can't resolve a cost far below the noise, so the loss is also
timed by itself, from rewards and hidden states to their gradients, and set against the whole step.

Memory. On the CPU the peak is that of all live tensors of a training step, replayed from the allocator's events, plus
the peak resident size of a process that trains this variant alone. On CUDA it is `torch.cuda.max_memory_allocated`.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForSequenceClassification

from normbt import NormBTLoss, bt_loss, capture_hidden

PAD = 0
WARM_UP = 2
TIME_TARGET, MEMORY_TARGET = 1.01, 1.001
VARIANTS = ["bt", "normbt", "plain", "bt again"]


class Run:
    """One variant: its own model and optimizer, always from the same start."""

    def __init__(self, variant: str, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 11 // 4,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64,
            num_labels=1,
            pad_token_id=PAD,
            use_cache=False,
        )
        self.capture = variant != "plain"
        self.model = LlamaForSequenceClassification(config).to(options.device, getattr(torch, options.dtype))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        self.weighted_loss = NormBTLoss().to(options.device) if variant == "normbt" else None

    def step(self, batch: dict[str, Tensor]) -> None:
        """Forward, backward, optimizer."""
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The only place where the variants differ."""
        if not self.capture:
            chosen, rejected = self.model(**batch).logits[:, 0].chunk(2)
            return -logsigmoid(chosen - rejected).mean()
        with capture_hidden(self.model) as captured:
            self.model(**batch)
        chosen, rejected = captured.rewards.chunk(2)
        if self.weighted_loss is None:
            return bt_loss(chosen, rejected).mean()
        return self.weighted_loss(chosen, rejected, *captured.hidden.chunk(2))


def make_batch(seed: int, options: argparse.Namespace) -> dict[str, Tensor]:
    """Random rows, chosen half first, padded on the right; half to all of `tokens` long."""
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * options.pairs
    lengths = torch.randint(options.tokens // 2, options.tokens + 1, (rows,), generator=generator)
    lengths[0] = options.tokens  # every batch has the same shape
    mask = torch.arange(options.tokens).expand(rows, -1) < lengths[:, None]
    ids = torch.randint(PAD + 1, options.vocabulary, mask.shape, generator=generator) * mask
    return {"input_ids": ids.to(options.device), "attention_mask": mask.long().to(options.device)}


def seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall time and CPU time of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def time_steps(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU time of each measured step of each variant; entry i of all variants is from the same round."""
    runs = {variant: Run(variant, options) for variant in VARIANTS}
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    for round_ in range(WARM_UP + options.rounds):
        batch = make_batch(round_, options)
        turn = round_ % len(VARIANTS)
        for variant in VARIANTS[turn:] + VARIANTS[:turn]:
            taken = seconds(lambda: runs[variant].step(batch), options.device)  # noqa: B023 - called at once
            if round_ >= WARM_UP:
                times[variant].append(taken)
        show_progress(round_ + 1, WARM_UP + options.rounds)
    return times


def time_losses(options: argparse.Namespace, repeats: int = 200) -> dict[str, float]:
    """Median time of the loss alone, from leaf rewards and representations to gradients."""
    clock = 0 if options.device == "cuda" else 1
    torch.manual_seed(0)
    rewards = torch.randn(2, options.pairs, device=options.device, requires_grad=True)
    hidden = torch.randn(2, options.pairs, options.hidden, device=options.device, dtype=getattr(torch, options.dtype))
    module = NormBTLoss().to(options.device)
    losses: dict[str, Callable[[], Tensor]] = {
        "bt": lambda: bt_loss(*rewards).mean(),
        "normbt": lambda: module(*rewards, *hidden),
    }
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(repeats):
        for name, loss in losses.items():
            times[name].append(seconds(lambda: loss().backward(), options.device)[clock])  # noqa: B023 - called at once
    return {name: statistics.median(taken[repeats // 10 :]) for name, taken in times.items()}


def peak_tensor_bytes(variant: str, options: argparse.Namespace) -> int:
    """Most bytes in live tensors at any moment of a training step, optimizer state included."""
    run = Run(variant, options)
    batch = make_batch(0, options)
    run.step(batch)  # creates the optimizer state
    run.optimizer.zero_grad()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run.step(batch)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    held = [*run.model.parameters(), *run.model.buffers(), *states, *batch.values()]
    if run.weighted_loss is not None:
        held += run.weighted_loss.buffers()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run.step(batch)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = sum(tensor.untyped_storage().nbytes() for tensor in held)
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def peak_resident_bytes(variant: str, options: argparse.Namespace) -> int:
    """Peak resident size of a fresh process that trains this variant for three steps."""
    command = [sys.executable, __file__, "--only", variant, *sys.argv[1:]]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def train_alone(options: argparse.Namespace) -> None:
    """The child process of `peak_resident_bytes`: three steps, then its own peak on standard output."""
    run = Run(options.only, options)
    for seed in range(3):
        run.step(make_batch(seed, options))
    print(own_peak())


def own_peak() -> int:
    """Peak resident bytes of this process; Linux counts the parent's in `ru_maxrss` of a child, not in VmHWM."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def show_progress(done: int, total: int) -> None:
    """One line that counts, on terminals only."""
    if sys.stderr.isatty():
        print(f"\rround {done}/{total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def describe(options: argparse.Namespace) -> str:
    """Hardware, versions and shapes: what the numbers belong to."""
    on_cuda = options.device == "cuda"
    device = torch.cuda.get_device_name() if on_cuda else f"{processor_name()}, {os.cpu_count()} cores"
    parameters = sum(parameter.numel() for parameter in Run("bt", options).model.parameters())
    return (
        f"{device}; {torch.get_num_threads()} threads; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}\n"
        f"{parameters / 1e6:.1f} M parameters ({options.layers} layers, hidden {options.hidden}, vocabulary "
        f"{options.vocabulary}), {options.dtype}; {options.pairs} pairs x {options.tokens} tokens per answer; "
        f"{options.rounds} rounds after {WARM_UP} of warm-up"
    )


def processor_name() -> str:
    """Linux has the model's name in a file; elsewhere `platform` knows it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parse() -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8, help="pairs per step (default 8)")
    parser.add_argument("--tokens", type=int, default=256, help="longest answer with its prompt (default 256)")
    parser.add_argument("--hidden", type=int, default=256, help="width, a multiple of 64 (default 256)")
    parser.add_argument("--layers", type=int, default=4, help="default 4")
    parser.add_argument("--vocabulary", type=int, default=32000, help="default 32000")
    parser.add_argument("--rounds", type=int, default=16, help="measured steps of each variant (default 16)")
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's own choice)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)  # the process whose memory is measured
    options = parser.parse_args()
    if options.hidden % 64:
        parser.error(f"--hidden must be a multiple of 64, got {options.hidden}")
    return options


def main() -> None:
    """Measure, print the table, and say whether the targets are met."""
    options = parse()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.only:
        return train_alone(options)
    print(describe(options), flush=True)

    times = time_steps(options)
    memory = {variant: peak_tensor_bytes(variant, options) for variant in VARIANTS}
    resident = {}
    if options.device == "cpu":
        resident = {variant: peak_resident_bytes(variant, options) for variant in VARIANTS}
    losses = time_losses(options)

    ratios = {
        variant: [
            statistics.median(mine[clock] / base[clock] for mine, base in zip(times[variant], times["bt"], strict=True))
            for clock in (0, 1)
        ]
        for variant in VARIANTS
    }
    columns = [("step, s", 10), ("ratio", 9), ("CPU, s", 10), ("ratio", 9), ("tensors, MB", 14), ("ratio", 10)]
    print("\n" + " " * 10 + "".join(f"{title:>{width}}" for title, width in [*columns, ("RSS, MB", 11)]))
    for variant in VARIANTS:
        wall, cpu = (statistics.median(taken[clock] for taken in times[variant]) for clock in (0, 1))
        print(
            f"{variant:10}{wall:10.4f}{ratios[variant][0]:9.4f}{cpu:10.4f}{ratios[variant][1]:9.4f}"
            f"{memory[variant] / 1e6:14.3f}{memory[variant] / memory['bt']:10.6f}"
            + (f"{resident[variant] / 1e6:11.1f}" if resident else f"{'-':>11}")
        )
    # CPU time where the CPU does the work; on CUDA it would only count the launches.
    clock, clock_name = (0, "wall time") if options.device == "cuda" else (1, "CPU time")
    step = statistics.median(taken[clock] for taken in times["bt"])
    added = losses["normbt"] - losses["bt"]
    print(
        f"\nloss alone, forward and backward: bt {1e3 * losses['bt']:.3f} ms, normbt {1e3 * losses['normbt']:.3f} ms; "
        f"the difference is {100 * added / step:.3f} % of a step"
    )
    noise = max(abs(ratio - 1) for ratio in ratios["bt again"])
    print(f"noise: the repeated `bt` differs from `bt` by up to {100 * noise:.2f} %")
    for name, found, target in (
        (f"step time, whole steps ({clock_name})", ratios["normbt"][clock], TIME_TARGET),
        ("step time, from the loss alone", 1 + added / step, TIME_TARGET),
        ("peak memory", memory["normbt"] / memory["bt"], MEMORY_TARGET),
    ):
        print(f"{name}: {found:.5f} x plain BT, target {target}: {'met' if found <= target else 'NOT met'}")
    return None


if __name__ == "__main__":
    main()
