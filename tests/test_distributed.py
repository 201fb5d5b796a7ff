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

HERE = Path(__file__).parent

# 19 pairs in steps of 8: the last step has 3, so that with micro-batches of one a process has none in some of them.
RUNS = {
    "packed": {"batching": "packed", "token_budget": 60},
    "padded": {"batching": "padded", "save_strategy": "steps", "save_steps": 1},
    # One pair is NaN, in one of the processes: all of them must leave that step out.
    "poisoned": {"batching": "padded", "poisoned": True, "on_nonfinite": "skip"},
}
QUIET = {"quiet": {"batching": "packed", "logging_steps": 100}}


SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch` makes of its FSDP2 settings."""

SIZES = {1: 4, 2: 2}
"""Pairs per process and micro-batch, by number of processes: the same pairs in every step."""


def run_processes(count: int, runs: dict[str, dict], folder: Path, **variables: str) -> Path:
    """Train each of ``runs`` in ``count`` processes."""
    sizes = {"per_device_train_batch_size": SIZES[count], "pairs": 19, "gradient_accumulation_steps": 2}
    settings = json.dumps({name: run | sizes for name, run in runs.items()})
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command = [sys.executable, *(launcher if count > 1 else []), str(HERE / "distributed_run.py")]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | variables
    finished = subprocess.run(
        [*command, settings, str(folder)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return {count: run_processes(count, RUNS | QUIET, tmp_path_factory.mktemp(f"processes-{count}")) for count in SIZES}


def assert_same_run(one: Path, other: Path, steps: int = 3) -> None:
    """The last ``steps`` steps of both runs, their evaluation and their parameters."""
    one_result, other_result = (json.loads(path.with_suffix(".json").read_text()) for path in (one, other))
    assert len(one_result["log"]) == 3
    for step_of_one, step_of_other in zip(one_result["log"][-steps:], other_result["log"][-steps:], strict=True):
        assert step_of_other == pytest.approx(step_of_one, rel=1e-5, abs=1e-6)
    assert other_result["metrics"] == pytest.approx(one_result["metrics"], rel=1e-5, abs=1e-6)
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
def test_an_attached_model_moves_mu_with_the_pairs_of_all_processes(outcomes):
    one, two = (json.loads((outcomes[count] / "attached.json").read_text()) for count in SIZES)
    assert two == pytest.approx(one, rel=1e-6)
    parameters, others = (torch.load(outcomes[count] / "attached.pt") for count in SIZES)
    for name, parameter in parameters.items():
        torch.testing.assert_close(others[name], parameter, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_with_sharded_parameters_train_as_one(outcomes, tmp_path):
    """FSDP2: each process holds a part of every parameter."""
    runs = {name: RUNS[name] for name in ("packed", "padded")}
    run_processes(2, runs, tmp_path, **SHARDED)
    for name in runs:
        assert json.loads((tmp_path / f"{name}.json").read_text())["sharded"]
        assert_same_run(outcomes[1] / name, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(("wrote", "resumes"), [(1, 2), (2, 1)])
def test_a_checkpoint_of_n_processes_resumes_on_m(outcomes, tmp_path, wrote, resumes):
    checkpoint = outcomes[wrote] / "padded" / "checkpoint-1"
    run = {"resumed": RUNS["padded"] | {"resume": str(checkpoint)}}
    run_processes(resumes, run, tmp_path)
    assert_same_run(outcomes[1] / "padded", tmp_path / "resumed", steps=2)


@pytest.mark.slow
def test_a_step_between_logs_sums_over_processes_once(outcomes):
    collectives = json.loads((outcomes[2] / "quiet.json").read_text())["collectives"]
    assert len(collectives) == 3
    assert [after - before for before, after in pairwise(collectives)] == [1, 1]
