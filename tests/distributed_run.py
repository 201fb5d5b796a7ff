"""One training run of a tiny model, in as many processes as it is launched with; the main one writes what came out.

Run by test_distributed.py: ``python -m torch.distributed.run --nproc_per_node 2 distributed_run.py SETTINGS OUT``.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from normbt import attach, bt_loss, step_plan
from normbt.config import NormBTConfig
from normbt.trainer import NormBTTrainer
from test_reliability import poisoned_model, poisoned_pairs
from test_trainer import settings, word_pairs, word_tokenizer
from tiny import padded, random_rows, tiny_model


def let_accelerate_shard_on_cpus() -> None:
    """Accelerate asks for FSDP by ACCELERATE_USE_FSDP, and ignores it on CPUs, where torch's FSDP2 runs as well."""
    make = AcceleratorState.__init__

    def make_sharded(state, *args, fsdp_plugin=None, **kwargs):
        make(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        # Every later look at the shared state, without the plugin, starts from the kind of processes again.
        plugin = fsdp_plugin or getattr(state, "fsdp_plugin", None)
        if plugin is not None and state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = plugin

    AcceleratorState.__init__ = make_sharded


def whole_parameters(model) -> dict[str, torch.Tensor]:
    """The parameters, gathered from FSDP's shards; every process must ask."""
    state = model.state_dict()
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def is_sharded(model) -> bool:
    """Whether FSDP or ZeRO-3 keep a part of every parameter in each process."""
    by_fsdp = [isinstance(value, DTensor) for value in model.state_dict().values()]
    by_zero = [getattr(parameter, "ds_numel", 0) > parameter.numel() for parameter in model.parameters()]
    return all(by_fsdp) or all(by_zero)


def wrapped_for_processes(model: torch.nn.Module) -> torch.nn.Module:
    """The model for a plain loop: as it is, averaged by DDP, or sharded by FSDP2."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return model
    if "ACCELERATE_USE_FSDP" not in os.environ:
        return torch.nn.parallel.DistributedDataParallel(model)
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def train_attached(folder: Path) -> None:
    """Three steps of two micro-batches of four pairs, shared by the processes, in a plain loop with a handle."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    model = tiny_model("llama").train()
    normbt = attach(model)
    wrapped = wrapped_for_processes(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    log = []
    for step in range(3):
        for micro in range(2):
            rows = random_rows([4, 5, 6, 7, 8, 9, 10, 11], seed=2 * step + micro)
            share = [*rows[:4][rank::ranks], *rows[4:][rank::ranks]]
            chosen, rejected = wrapped(**padded(share)).logits.squeeze(-1).chunk(2)
            (bt_loss(chosen, rejected).mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        log.append(normbt.metrics()["mu"])
    parameters = whole_parameters(model)
    if rank == 0:
        torch.save(parameters, folder / "attached.pt")
        (folder / "attached.json").write_text(json.dumps(log))


COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier")


class Watched:
    """A collective that is under way; waiting for it is an event."""

    def __init__(self, work, events: list[str]) -> None:
        self.work, self.events = work, events

    def wait(self) -> None:
        self.events.append("wait")
        self.work.wait()


class Trace(TrainerCallback):
    """What a process does, in order: steps, backwards, optimizer steps and the collectives that Python calls.

    Those that DDP calls for gradients are not Python's.
    """

    def __init__(self, accelerator) -> None:
        self.events: list[str] = []
        self.undo = [(torch.distributed, name, getattr(torch.distributed, name)) for name in COLLECTIVES]
        self.undo.append((accelerator, "backward", accelerator.backward))
        for name in COLLECTIVES:
            setattr(torch.distributed, name, self.told(name, getattr(torch.distributed, name)))
        accelerator.backward = self.told("backward", accelerator.backward)

    def told(self, name: str, call):
        def telling(*args, **kwargs):
            started = " started" if kwargs.get("async_op") else ""
            size = f" {args[0].numel() * args[0].element_size()}" if args and torch.is_tensor(args[0]) else ""
            self.events.append(name if name == "backward" else f"{name}{size}{started}")
            result = call(*args, **kwargs)
            return Watched(result, self.events) if started else result

        return telling

    def on_step_begin(self, *args, **kwargs) -> None:
        self.events.append("step")

    def on_pre_optimizer_step(self, *args, **kwargs) -> None:
        self.events.append("optimizer")

    def stop(self) -> None:
        for owner, name, original in self.undo:
            setattr(owner, name, original)


def main(runs: dict[str, dict], folder: Path) -> None:
    find_free_bytes, rank = step_plan.free_bytes, int(os.environ.get("RANK", "0"))
    for name, changes in runs.items():
        pairs, poisoned = changes.pop("pairs"), changes.pop("poisoned", False)
        data = poisoned_pairs(pairs) if poisoned else word_pairs(pairs)
        if changes.pop("stream", False):
            data = data.to_iterable_dataset()
        free = changes.pop("free_bytes", None)  # in each process
        step_plan.free_bytes = find_free_bytes if free is None else lambda *_, here=free[rank]: here
        resume = changes.pop("resume", None)
        os.environ |= changes.pop("environment", {})  # read by Accelerate when the trainer is made
        trainer = NormBTTrainer(
            poisoned_model() if poisoned else tiny_model("llama"),
            NormBTConfig(**settings(folder / name, **({"max_steps": -1, "num_train_epochs": 1} | changes))),
            train_dataset=data,
            eval_dataset={"held-out": word_pairs(7, seed=5)},
            processing_class=word_tokenizer(),
            compute_metrics=lambda found: {"predicted": len(found.predictions)},
        )
        trace = Trace(trainer.accelerator)
        trainer.add_callback(trace)
        trainer.train(resume_from_checkpoint=resume)
        trace.stop()
        seen = {"mu": trainer.mu, "events": trace.events, "token_budget": trainer.step_plan.token_budget}
        (folder / f"{name}.process-{trainer.args.process_index}.json").write_text(json.dumps(seen))
        metrics = trainer.evaluate()
        predictions = trainer.predict(trainer.eval_dataset["held-out"]).predictions
        sharded = is_sharded(trainer.model)
        if trainer.is_deepspeed_enabled:
            parameters = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        else:
            parameters = whole_parameters(trainer.model)
        if trainer.is_world_process_zero():
            kept = ("loss", "mu", "distance", "accuracy", "num_tokens", "weight_q50")
            kept += ("skipped_steps", "nonfinite_pairs") if poisoned else ()
            logged = [entry for entry in trainer.state.log_history if "mu" in entry and "loss" in entry]
            log = [{key: entry[key] for key in kept} for entry in logged]
            metrics = {key: value for key, value in metrics.items() if "held-out" in key and "per_second" not in key}
            metrics = {key: value for key, value in metrics.items() if "runtime" not in key and "prep" not in key}
            torch.save(parameters, folder / f"{name}.pt")
            result = {"log": log, "metrics": metrics, "predictions": predictions.tolist(), "sharded": sharded}
            (folder / f"{name}.json").write_text(json.dumps(result))
    if "ACCELERATE_USE_DEEPSPEED" not in os.environ:
        train_attached(folder)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # gloo aborts a process whose peer has left while it still listens
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    let_accelerate_shard_on_cpus()
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
