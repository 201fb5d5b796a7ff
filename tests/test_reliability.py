"""What a run does when it is killed, when the disk is full, and when numbers are not finite."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from transformers import TrainerCallback

from normbt.completeness import COMPLETE_FILE, checkpoints_in, last_complete, seal, what_is_missing
from normbt.errors import ConfigError, StateError
from test_trainer import settings, train, word_pairs, word_tokenizer

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_last_bit():
    """Two kills, one of them in the middle of a checkpoint; the script takes as many as one likes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--kills", "2", "--seed", "3"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert "2 kills, 0 runs that differ" in finished.stdout
    assert "after step" in finished.stdout
    assert "in file" in finished.stdout


SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "logging_steps": 4}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, tokenizer):
    """A run of six steps with a checkpoint every two; tests that change it copy it."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder, tokenizer, word_pairs(40), **SAVING)


@pytest.fixture
def broken_run(tmp_path, finished_run):
    """The same, its last checkpoint half-written."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished_run[0], folder)
    (folder / "checkpoint-6" / COMPLETE_FILE).unlink()
    return folder


def test_every_checkpoint_is_complete_and_follows_a_log(finished_run):
    folder, trainer = finished_run
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert all(what_is_missing(path) is None for path in checkpoints_in(folder))
    assert [entry["step"] for entry in trainer.state.log_history if "mu" in entry] == [2, 4, 6]


def test_resume_passes_a_half_written_checkpoint_over(broken_run, finished_run, tokenizer, caplog):
    resumed = train(broken_run, tokenizer, word_pairs(40), resume=True, **SAVING)
    assert "checkpoint-6 is incomplete" in caplog.text
    whole = finished_run[1]
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(resumed.model.named_parameters())[name]), name
    logs = [[entry for entry in run.state.log_history if "mu" in entry] for run in (whole, resumed)]
    assert logs[0] == logs[1]
    assert what_is_missing(broken_run / "checkpoint-6") is None


def test_a_half_written_checkpoint_is_refused_with_the_name_of_the_good_one(broken_run, tokenizer):
    with pytest.raises(StateError, match=r"checkpoint-6 is incomplete.*The last complete one is .*checkpoint-4"):
        train(broken_run, tokenizer, word_pairs(40), resume=str(broken_run / "checkpoint-6"), **SAVING)


def test_a_checkpoint_cannot_run_code(broken_run, tokenizer):
    """A pickle in place of the optimizer's state, with a list of files that fits it."""
    marker = broken_run / "was-run"
    bad = broken_run / "checkpoint-6"

    class Payload:
        def __reduce__(self):
            return (Path.touch, (marker,))

    (bad / "optimizer.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    seal(bad)
    with pytest.raises(StateError, match="not plain tensors"):
        train(broken_run, tokenizer, word_pairs(40), resume=True, **SAVING | {"max_steps": 8})
    assert not marker.exists()


class _SmallDisk(TrainerCallback):
    """From some step on, files may only have a size at which the disk is full."""

    def __init__(self, step: int, most_bytes: int) -> None:
        self.step, self.most_bytes = step, most_bytes
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.most_bytes, self.before[1]))

    def undo(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("most_bytes", [2_000, 60_000], ids=["weights", "optimizer"])
def test_a_full_disk_is_one_message_and_leaves_the_last_good_checkpoint(tmp_path, tokenizer, most_bytes):
    from normbt.config import NormBTConfig
    from normbt.trainer import NormBTTrainer
    from tiny import tiny_model

    config = NormBTConfig(**settings(tmp_path, **SAVING, save_total_limit=1))
    trainer = NormBTTrainer(tiny_model("llama"), config, train_dataset=word_pairs(40), processing_class=tokenizer)
    full = _SmallDisk(4, most_bytes)
    trainer.add_callback(full)
    try:
        with pytest.raises(ConfigError, match=r"Cannot write .*checkpoint-4") as failure:
            trainer.train()
    finally:
        full.undo()
    assert "The last complete checkpoint is" in str(failure.value)
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
    resumed = train(tmp_path, tokenizer, word_pairs(40), resume=True, **SAVING)
    assert resumed.state.global_step == 6


def test_the_last_good_checkpoint_outlives_the_writing_of_the_next(tmp_path, tokenizer, monkeypatch):
    """With save_total_limit=1 the old one is still there, complete, when the new one is declared complete."""
    from normbt import trainer as module

    present = []

    def watching(folder):
        present.append([path.name for path in checkpoints_in(tmp_path) if what_is_missing(path) is None])
        seal(folder)

    monkeypatch.setattr(module, "seal", watching)
    train(tmp_path, tokenizer, word_pairs(40), **SAVING, save_total_limit=1)
    assert present == [[], ["checkpoint-2"], ["checkpoint-4"]]
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-6"]


def test_a_checkpoint_whose_head_is_lost_is_not_declared_complete(tmp_path, tokenizer, monkeypatch):
    from normbt import trainer as module
    from normbt.errors import ModelError

    def fails(*args, **kwargs):
        raise ModelError("the head was lost")

    monkeypatch.setattr(module, "check_reload", fails)
    with pytest.raises(ModelError, match="lost"):
        train(tmp_path, tokenizer, word_pairs(40), **SAVING)
    assert last_complete(tmp_path) is None


def test_no_memory_is_one_message(tmp_path, tokenizer, monkeypatch):
    from normbt.trainer import NormBTTrainer

    step = NormBTTrainer.training_step

    def hungry(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(NormBTTrainer, "training_step", hungry)
    with pytest.raises(ConfigError, match=r"Out of memory on cpu at step 4: .*20.00 GiB.*token_budget.*checkpoint-2"):
        train(tmp_path, tokenizer, word_pairs(40), **SAVING)


def test_other_errors_keep_their_traceback(tmp_path, tokenizer, monkeypatch):
    from normbt.trainer import NormBTTrainer

    def broken(self, *args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(NormBTTrainer, "training_step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path, tokenizer, word_pairs(8), max_steps=1)
