"""Over how many processes FSDP and DeepSpeed divide what a model and its training keep in memory."""

import os
from typing import Any, NamedTuple


class Shards(NamedTuple):
    """Into how many equal parts it is cut, one of them for each process.

    Attributes:
        parameters: that a process holds while it computes; 1 where it has all of them at once.
        state: gradients and the optimizer's moments.
    """

    parameters: int = 1
    state: int = 1


UNDIVIDED = Shards()
"""Each process has all of it: plain data parallelism, and one process."""


def shards_of(accelerator: Any) -> Shards:
    """How an Accelerator's engine divides a model that it prepares.

    Offloading to the host is not looked at, and ZeRO-1, which divides the moments but not the gradients, counts as
    undivided: both err towards less free memory.

    Args:
        accelerator: ``accelerate.Accelerator``.

    Returns:
        The parts.

    References:
        Rajbhandari et al. 2020, "ZeRO: Memory optimizations toward training trillion parameter models"; the sharding
        strategies of torch's FSDP.
    """
    engine, processes = accelerator.distributed_type.value, accelerator.num_processes
    if engine == "DEEPSPEED":
        stage = accelerator.state.deepspeed_plugin.zero_stage
        return Shards(parameters=processes if stage == 3 else 1, state=processes if stage >= 2 else 1)
    if engine != "FSDP":
        return UNDIVIDED
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version == 2:
        mesh = getattr(accelerator, "parallelism_config", None)
        group = mesh.dp_shard_size if mesh is not None and mesh.dp_shard_size > 1 else processes
        return Shards(parameters=group if plugin.reshard_after_forward else 1, state=group)
    strategy = (plugin.sharding_strategy or plugin.reshard_after_forward).name
    if strategy == "NO_SHARD":
        return UNDIVIDED
    group = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes))) if "HYBRID" in strategy else processes
    return Shards(parameters=group if strategy in ("FULL_SHARD", "HYBRID_SHARD") else 1, state=group)
