"""Two processes train as one does on the same pairs, whole or sharded: mu, weights, metrics and parameters."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from distributed_run import COLLECTIVES
from normbt.checkpoint import STATE_FILE

HERE = Path(__file__).parent

# 19 pairs in steps of 8: the last step has 3, so that with micro-batches of one a process has none in some of them.
# 17 pairs: the last step has one, and the other process none at all.
RUNS = {
    "packed": {"batching": "packed", "token_budget": 60},
    "padded": {"batching": "padded", "save_strategy": "steps", "save_steps": 1},
    "idle": {"batching": "packed", "pairs": 17},
    "grouped": {"batching": "packed", "train_sampling_strategy": "group_by_length"},
    # The pairs of each process are its own, and need 4 and 2 micro-batches in the first step, 2 and 4 in the last.
    "stream": {"batching": "packed", "token_budget": 36, "pairs": 24, "stream": True, "max_steps": 3},
    # The first process has ample memory, the second nearly none.
    "memory": {"batching": "packed", "token_budget": None, "free_bytes": [2**40, 1000]},
    # One pair is NaN, in one of the processes: all of them must leave that step out.
    "poisoned": {"batching": "padded", "poisoned": True, "on_nonfinite": "skip"},
}
QUIET = {
    "quiet": {"batching": "packed", "token_budget": 60, "logging_steps": 100},
    "idle-quiet": {"batching": "packed", "token_budget": 60, "pairs": 17, "logging_steps": 100},
    # Without a log, a checkpoint is the first to ask for mu.
    "unlogged": {"batching": "padded", "save_strategy": "steps", "save_steps": 1, "logging_strategy": "no"},
}

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch` makes of its FSDP2 settings."""

SIZES = {1: 4, 2: 2}
"""Pairs per process and micro-batch, by number of processes: the same pairs in every step."""


def run_processes(
    count: int, runs: dict[str, dict], folder: Path, *, python: str = sys.executable, **variables: str
) -> Path:
    """Train each of ``runs`` in ``count`` processes, one after the other."""
    sizes = {"per_device_train_batch_size": SIZES[count], "pairs": 19, "gradient_accumulation_steps": 2}
    settings = json.dumps({name: sizes | run for name, run in runs.items()})
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    launched = launcher if count > 1 or variables else []
    command = [python, *launched, str(HERE / "distributed_run.py")]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables
    finished = subprocess.run(
        [*command, settings, str(folder)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert finished.returncode == 0, finished.stderr[-9000:]
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return {count: run_processes(count, RUNS | QUIET, tmp_path_factory.mktemp(f"processes-{count}")) for count in SIZES}


STATE_DICT_TYPES = {"FULL_STATE_DICT": "padded", "SHARDED_STATE_DICT": "shards"}
"""The run that leaves checkpoints of each kind."""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """FSDP2 runs by number of processes. Each resumes checkpoints of the other: two processes write before one does."""
    folders = {count: tmp_path_factory.mktemp(f"sharded-{count}") for count in SIZES}
    runs = {"packed": RUNS["packed"]}
    for kind, name in STATE_DICT_TYPES.items():
        runs[name] = RUNS["padded"] | {"environment": {"FSDP_STATE_DICT_TYPE": kind}}

    def resumed_from(count: int) -> dict[str, dict]:
        return {
            f"{kind} from {count}": runs[name] | {"resume": str(folders[count] / name / "checkpoint-1")}
            for kind, name in STATE_DICT_TYPES.items()
        }

    run_processes(2, runs, folders[2], **SHARDED)
    written = {name: runs[name] for name in STATE_DICT_TYPES.values()}
    run_processes(1, written | resumed_from(2), folders[1], **SHARDED)
    run_processes(2, resumed_from(1), folders[2], **SHARDED)
    return folders


def assert_same_run(one: Path, other: Path, steps: int = 3) -> None:
    """The last ``steps`` steps of both runs, their evaluation and their parameters."""
    one_result, other_result = (json.loads(path.with_suffix(".json").read_text()) for path in (one, other))
    assert len(one_result["log"]) == 3
    for step_of_one, step_of_other in zip(one_result["log"][-steps:], other_result["log"][-steps:], strict=True):
        assert step_of_other == pytest.approx(step_of_one, rel=1e-5, abs=1e-6)
    assert other_result["metrics"] == pytest.approx(one_result["metrics"], rel=1e-5, abs=1e-6)
    assert one_result["metrics"]["eval_held-out_predicted"] == len(one_result["predictions"]) == 7
    for pair, other_pair in zip(one_result["predictions"], other_result["predictions"], strict=True):
        assert other_pair == pytest.approx(pair, rel=1e-4, abs=1e-5)
    parameters, other_parameters = (torch.load(path.with_suffix(".pt")) for path in (one, other))
    for name, parameter in parameters.items():
        torch.testing.assert_close(other_parameters[name], parameter, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_every_process_leaves_a_step_with_nan_out(outcomes):
    log = json.loads((outcomes[2] / "poisoned.json").read_text())["log"]
    assert sum(entry["skipped_steps"] for entry in log) == sum(entry["nonfinite_pairs"] for entry in log) == 1


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_as_one(outcomes, run):
    assert_same_run(outcomes[1] / run, outcomes[2] / run)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_an_attached_model_moves_mu_with_the_pairs_of_all_processes(outcomes, sharded, engine):
    folders = (outcomes[1], {"DDP": outcomes, "FSDP2": sharded}[engine][2])
    one, two = (json.loads((folder / "attached.json").read_text()) for folder in folders)
    assert two == pytest.approx(one, rel=1e-6)
    parameters, others = (torch.load(folder / "attached.pt") for folder in folders)
    for name, parameter in parameters.items():
        torch.testing.assert_close(others[name], parameter, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["packed", "padded"])
def test_two_processes_with_sharded_parameters_train_as_one(outcomes, sharded, run):
    """FSDP2: each process holds a part of every parameter."""
    assert json.loads((sharded[2] / f"{run}.json").read_text())["sharded"]
    assert_same_run(outcomes[1] / run, sharded[2] / run)


@pytest.mark.slow
@pytest.mark.parametrize("state_dict_type", STATE_DICT_TYPES)
@pytest.mark.parametrize(("wrote", "resumes"), [(1, 2), (2, 1)])
def test_a_sharded_checkpoint_of_n_processes_resumes_on_m(outcomes, sharded, wrote, resumes, state_dict_type):
    """FSDP2, whose checkpoint is whole (as our configuration has it) or in shards."""
    resumed = sharded[resumes] / f"{state_dict_type} from {wrote}"
    assert json.loads(resumed.with_suffix(".json").read_text())["sharded"]
    assert_same_run(outcomes[1] / "padded", resumed, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(("wrote", "resumes"), [(1, 2), (2, 1)])
def test_a_checkpoint_of_n_processes_resumes_on_m(outcomes, tmp_path, wrote, resumes):
    checkpoint = outcomes[wrote] / "padded" / "checkpoint-1"
    run = {"resumed": RUNS["padded"] | {"resume": str(checkpoint)}}
    run_processes(resumes, run, tmp_path)
    assert_same_run(outcomes[1] / "padded", tmp_path / "resumed", steps=2)


def steps_of(events: list[str]) -> list[list[str]]:
    """What happened in each step, from its beginning to that of the next."""
    starts = [place for place, event in enumerate(events) if event == "step"]
    return [events[start + 1 : stop] for start, stop in pairwise([*starts, len(events)])]


def process(folder: Path, run: str, number: int) -> dict:
    return json.loads((folder / f"{run}.process-{number}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("run", ["quiet", "idle-quiet"])
def test_a_step_sums_eight_bytes_over_the_processes_while_it_goes_on(outcomes, run):
    """The sum is started before the step's last backward and waited for in the next step; nothing else is called."""
    for number in range(2):
        *steps, last = steps_of(process(outcomes[2], run, number)["events"])
        assert len(steps) == 2
        for place, step in enumerate(steps):
            waits = ["wait"] if place else []
            backwards = step.count("backward")
            assert backwards > 1
            assert step == [*waits, *["backward"] * (backwards - 1), "all_reduce 8 started", "backward", "optimizer"]
        assert last.index("all_reduce 8 started") < last.index("optimizer")


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS | QUIET)
def test_all_processes_run_equally_many_micro_batches(outcomes, run):
    """Else FSDP and ZeRO-3 would wait for ever, and so would ``weighting=batch``."""
    first, second = (process(outcomes[2], run, number) for number in range(2))
    counts = [[step.count("backward") for step in steps_of(one["events"])] for one in (first, second)]
    assert counts[0] == counts[1]
    if run == "stream":
        assert counts[0] == [4, 2, 4]


@pytest.mark.slow
def test_all_processes_keep_to_the_least_memory_of_any(outcomes):
    budgets = [process(outcomes[2], "memory", number)["token_budget"] for number in range(2)]
    assert budgets == [34, 34]  # both sequences of the longest pair: such a pair runs in any case
    assert process(outcomes[1], "memory", 0)["token_budget"] == 2048


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS | QUIET)
def test_all_processes_call_the_same_collectives_in_the_same_order_and_have_the_same_mu(outcomes, run):
    first, second = (process(outcomes[2], run, number) for number in range(2))
    collectives = [[event for event in one["events"] if event.startswith(COLLECTIVES)] for one in (first, second)]
    assert collectives[0] == collectives[1]
    assert first["mu"] == second["mu"]


@pytest.mark.slow
def test_one_process_calls_no_collective(outcomes):
    assert set(process(outcomes[1], "quiet", 0)["events"]) == {"step", "backward", "optimizer"}


@pytest.mark.slow
@pytest.mark.parametrize("count", SIZES)
def test_a_checkpoint_waits_for_the_mu_of_its_step(outcomes, count):
    states = [
        [json.loads((outcomes[count] / run / f"checkpoint-{step}" / STATE_FILE).read_text()) for step in (1, 2, 3)]
        for run in ("padded", "unlogged")
    ]
    assert [state["updates"] for state in states[0]] == [1, 2, 3]
    assert states[0] == states[1]


# --- DeepSpeed, where it is installed ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[2, 3])
def deepspeed_run(request, tmp_path_factory) -> Path:
    """Two processes under ZeRO-2 or 3, and a run that resumes the first one's checkpoint.

    Needs the Python of an environment with DeepSpeed, which compiles an operator for the CPU with g++ at its first run:

        NORMBT_DEEPSPEED_PYTHON=.../bin/python pytest tests/test_distributed.py -k deepspeed
    """
    python = os.environ.get("NORMBT_DEEPSPEED_PYTHON") or pytest.skip("NORMBT_DEEPSPEED_PYTHON names no Python")
    folder = tmp_path_factory.mktemp(f"zero-{request.param}")
    # Parameters below the threshold, which are all of a tiny model's, would stay whole in every process.
    zero = {"stage": request.param, "stage3_param_persistence_threshold": 0}
    zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config = folder / "deepspeed.json"
    config.write_text(json.dumps({"zero_optimization": zero} | dict.fromkeys(sizes, "auto")))
    # Accelerate ignores DeepSpeed where the CPU was asked for, and needs to be told of gloo where it was not.
    on_cpu = RUNS["padded"] | {"use_cpu": False, "ddp_backend": "gloo", "dataloader_pin_memory": False}
    variables = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config)}
    variables |= {"DS_ACCELERATOR": "cpu", "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"}
    resumed = on_cpu | {"resume": str(folder / "padded" / "checkpoint-1")}
    # One run at a time: once ZeRO-3 is in force in a process, it also cuts up the next model while that is made.
    for runs in ({"padded": on_cpu}, {"resumed": resumed}):
        run_processes(2, runs, folder, python=python, **variables)
    assert json.loads((folder / "padded.json").read_text())["sharded"] == (request.param == 3)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("run", "steps"), [("padded", 3), ("resumed", 2)])
def test_two_processes_under_deepspeed_train_as_one(outcomes, deepspeed_run, run, steps):
    assert_same_run(outcomes[1] / "padded", deepspeed_run / run, steps=steps)
