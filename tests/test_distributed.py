"""Two processes train as one does on the same pairs: mu, weights, metrics and parameters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

HERE = Path(__file__).parent

# 19 pairs in steps of 8: the last step has 3, so that with micro-batches of one a process has none in some of them.
RUNS = {
    "packed": {"batching": "packed", "token_budget": 60},
    "padded": {"batching": "padded"},
    # One pair is NaN, in one of the processes: all of them must leave that step out.
    "poisoned": {"batching": "padded", "poisoned": True, "on_nonfinite": "skip"},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folders = {}
    for processes, sizes in ((1, {"per_device_train_batch_size": 4}), (2, {"per_device_train_batch_size": 2})):
        folder = folders[processes] = tmp_path_factory.mktemp(f"processes-{processes}")
        runs = {name: run | sizes | {"pairs": 19, "gradient_accumulation_steps": 2} for name, run in RUNS.items()}
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(HERE / "distributed_run.py")]
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        finished = subprocess.run(
            [*command, json.dumps(runs), str(folder)], env=environment, capture_output=True, text=True, timeout=500
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
    return folders


@pytest.mark.slow
def test_every_process_leaves_a_step_with_nan_out(outcomes):
    log = json.loads((outcomes[2] / "poisoned.json").read_text())["log"]
    assert sum(entry["skipped_steps"] for entry in log) == sum(entry["nonfinite_pairs"] for entry in log) == 1


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_as_one(outcomes, run):
    one, two = (json.loads((outcomes[count] / f"{run}.json").read_text()) for count in (1, 2))
    assert len(one["log"]) == len(two["log"]) == 3
    for step_of_one, step_of_two in zip(one["log"], two["log"], strict=True):
        assert step_of_two == pytest.approx(step_of_one, rel=1e-5, abs=1e-6)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5, abs=1e-6)

    parameters_of_one, parameters_of_two = (torch.load(outcomes[count] / f"{run}.pt") for count in (1, 2))
    for name, parameter in parameters_of_one.items():
        torch.testing.assert_close(parameters_of_two[name], parameter, atol=1e-5, rtol=1e-5, msg=name)
