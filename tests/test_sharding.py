"""Over how many processes each engine divides parameters and training state."""

from types import SimpleNamespace

import pytest
from torch.distributed.fsdp import ShardingStrategy

from normbt.sharding import Shards, shards_of

pytest.importorskip("accelerate")

from accelerate.utils import DistributedType


def accelerator(engine: str, **state) -> SimpleNamespace:
    return SimpleNamespace(distributed_type=DistributedType(engine), num_processes=8, state=SimpleNamespace(**state))


def zero(stage: int) -> SimpleNamespace:
    return accelerator("DEEPSPEED", deepspeed_plugin=SimpleNamespace(zero_stage=stage))


def fsdp1(strategy: ShardingStrategy) -> SimpleNamespace:
    plugin = SimpleNamespace(fsdp_version=1, sharding_strategy=strategy, reshard_after_forward=None)
    return accelerator("FSDP", fsdp_plugin=plugin)


def fsdp2(reshard: bool) -> SimpleNamespace:
    return accelerator("FSDP", fsdp_plugin=SimpleNamespace(fsdp_version=2, reshard_after_forward=reshard))


@pytest.mark.parametrize(
    ("engine", "shards"),
    [
        (accelerator("NO"), Shards(1, 1)),
        (accelerator("MULTI_GPU"), Shards(1, 1)),
        (zero(1), Shards(1, 1)),
        (zero(2), Shards(1, 8)),
        (zero(3), Shards(8, 8)),
        (fsdp2(True), Shards(8, 8)),
        (fsdp2(False), Shards(1, 8)),
        (fsdp1(ShardingStrategy.FULL_SHARD), Shards(8, 8)),
        (fsdp1(ShardingStrategy.SHARD_GRAD_OP), Shards(1, 8)),
        (fsdp1(ShardingStrategy.NO_SHARD), Shards(1, 1)),
        (fsdp1(ShardingStrategy.HYBRID_SHARD), Shards(4, 4)),
        (fsdp1(ShardingStrategy._HYBRID_SHARD_ZERO2), Shards(1, 4)),
    ],
)
def test_what_an_engine_divides(engine, shards, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert shards_of(engine) == shards


def test_a_mesh_divides_among_the_processes_of_its_shard_group():
    engine = fsdp2(True)
    engine.parallelism_config = SimpleNamespace(dp_shard_size=2)
    assert shards_of(engine) == Shards(2, 2)


@pytest.mark.parametrize("version", [1, 2])
def test_accelerates_own_plugin_is_read(version):
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
    assert shards_of(accelerator("FSDP", fsdp_plugin=plugin)) == Shards(8, 8)
