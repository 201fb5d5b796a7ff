"""What a run does when it is killed, when the disk is full, and when numbers are not finite."""

import math
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from datasets import Dataset
from transformers import TrainerCallback

from host_waits import HostWaits
from normbt.completeness import (
    COMPLETE_FILE,
    checkpoints_in,
    choose_checkpoint,
    last_complete,
    seal,
    what_is_missing,
)
from normbt.config import NormBTConfig
from normbt.errors import ConfigError, ModelError, StateError
from normbt.trainer import NormBTTrainer
from test_trainer import logged, settings, train, word_pairs, word_tokenizer
from tiny import tiny_model

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


@pytest.mark.parametrize(
    ("file", "engine"),
    [
        ("pytorch_model_fsdp.bin", "FSDP (FULL_STATE_DICT)"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "FSDP (SHARDED_STATE_DICT)"),
        ("global_step4/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed with 1 process"),
    ],
)
def test_a_checkpoint_of_another_engine_is_refused(broken_run, tokenizer, file, engine):
    """Transformers would say that a file is missing, or start with an empty optimizer."""
    path = broken_run / "checkpoint-4" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")
    seal(broken_run / "checkpoint-4")
    with pytest.raises(StateError, match=re.escape(f"was written under {engine}, and this run is under no engine")):
        train(broken_run, tokenizer, word_pairs(40), resume=True, **SAVING)


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
    from normbt import saving as module

    present = []

    def watching(folder):
        present.append([path.name for path in checkpoints_in(tmp_path) if what_is_missing(path) is None])
        seal(folder)

    monkeypatch.setattr(module, "seal", watching)
    train(tmp_path, tokenizer, word_pairs(40), **SAVING, save_total_limit=1)
    assert present == [[], ["checkpoint-2"], ["checkpoint-4"]]
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-6"]
    saved = torch.load(tmp_path / "checkpoint-6" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 1, "the limit was off while Transformers wrote, and is not part of the settings"


def test_a_checkpoint_whose_head_is_lost_is_not_declared_complete(tmp_path, tokenizer, monkeypatch):
    from normbt import saving as module

    def fails(*args, **kwargs):
        raise ModelError("the head was lost")

    monkeypatch.setattr(module, "check_reload", fails)
    with pytest.raises(ModelError, match="lost"):
        train(tmp_path, tokenizer, word_pairs(40), **SAVING)
    assert last_complete(tmp_path) is None


def test_no_memory_is_one_message(tmp_path, tokenizer, monkeypatch):
    step = NormBTTrainer.training_step

    def hungry(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(NormBTTrainer, "training_step", hungry)
    with pytest.raises(ConfigError, match=r"Out of memory on cpu at step 4: .*20.00 GiB.*token_budget.*checkpoint-2"):
        train(tmp_path, tokenizer, word_pairs(40), **SAVING)


def test_a_run_that_starts_anew_in_the_folder_of_another_goes_on_with_its_own_checkpoints(
    tmp_path, finished_run, tokenizer, monkeypatch, caplog
):
    """The other one's checkpoints have higher steps, and are older."""
    folder = shutil.copytree(finished_run[0], tmp_path / "run")
    step = NormBTTrainer.training_step

    def hungry(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(NormBTTrainer, "training_step", hungry)
    with pytest.raises(ConfigError, match=r"The last complete checkpoint is .*checkpoint-2: continue with"):
        train(folder, tokenizer, word_pairs(40), **SAVING)
    assert "checkpoint-6 is of an earlier run" in caplog.text
    assert choose_checkpoint(None, folder) == (folder / "checkpoint-2", [])


def test_other_errors_keep_their_traceback(tmp_path, tokenizer, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(NormBTTrainer, "training_step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train(tmp_path, tokenizer, word_pairs(8), max_steps=1)


# --- NaN and Inf ------------------------------------------------------------------------------------------------------

POISON = 40
"""A word at which the poisoned model's numbers stop being numbers; :func:`poisoned_pairs` has it in one pair."""


def poisoned_pairs(count: int = 40, bad: int = 9) -> Dataset:
    rows = word_pairs(count).to_list()
    for place, row in enumerate(rows):
        row["id"] = f"pair-{place}"
        row["chosen"] = row["chosen"].replace(f"w{POISON} ", "w41 ")
        row["rejected"] = row["rejected"].replace(f"w{POISON} ", "w41 ")
        row["prompt"] = row["prompt"].replace(f"w{POISON} ", "w41 ")
    rows[bad]["chosen"] = f"w{POISON} " + rows[bad]["chosen"]
    return Dataset.from_list(rows)


def poisoned_model(kind="llama"):
    model = tiny_model(kind)

    def poison(module, inputs, output):
        return torch.where((inputs[0] == POISON).unsqueeze(-1), torch.nan, output)

    model.get_input_embeddings().register_forward_hook(poison)
    return model


def poisoned_trainer(folder, tokenizer, *, model=None, data=None, **changes):
    config = NormBTConfig(**settings(folder, **{"max_steps": 10, "logging_steps": 5} | changes))
    return NormBTTrainer(
        model or poisoned_model(), config, train_dataset=data or poisoned_pairs(), processing_class=tokenizer
    )


def test_a_nan_stops_the_run_by_the_pairs_name_before_it_reaches_a_parameter(tmp_path, tokenizer):
    trainer = poisoned_trainer(tmp_path, tokenizer, save_strategy="steps", save_steps=5, logging_steps=100)
    with pytest.raises(ModelError, match=r"Run alone, not finite: pair-9\.") as failure:
        trainer.train()
    assert "in the gradient of step" in str(failure.value)
    assert "--on_nonfinite skip" in str(failure.value)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    # Found at the log before the checkpoint after it, which was therefore not written.
    assert trainer.state.global_step == 5
    assert last_complete(tmp_path) is None


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_a_nan_is_skipped_with_a_count(tmp_path, tokenizer, caplog, batching):
    trainer = poisoned_trainer(tmp_path, tokenizer, on_nonfinite="skip", batching=batching)
    trainer.train()
    assert sum(logged(trainer, "skipped_steps")) == 1
    assert sum(logged(trainer, "nonfinite_pairs")) == 1, "the other pairs of its row have nothing to do with it"
    assert "pair-9" in caplog.text
    assert "Those steps were not taken." in caplog.text
    for name in ("loss", "mu", "accuracy", "weight_q90", "distance"):
        assert all(math.isfinite(value) for value in logged(trainer, name)), name
    state = trainer.optimizer.optimizer.state
    assert {int(moments["step"]) for moments in state.values()} == {9}, "the optimizer has taken another step"
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_a_skipped_step_changes_nothing(tmp_path, tokenizer):
    """The run with the bad pair equals, step by step, one whose model never sees it: it has one step less."""
    changes = {"max_steps": 1, "logging_steps": 1, "on_nonfinite": "skip", "per_device_train_batch_size": 40}
    trainer = poisoned_trainer(tmp_path, tokenizer, **changes)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert logged(trainer, "skipped_steps") == [1]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert int(trainer._mean.state.count) == 0, "mu has moved in a step that was not taken"


def test_a_margin_that_is_not_finite_costs_its_own_pair_only(tmp_path, tokenizer, caplog):
    encoded = poisoned_trainer(tmp_path, tokenizer, model=tiny_model("llama"), data=word_pairs(40)).train_dataset
    rows = [row | {"margin": 0.5} for row in encoded.remove_columns("id").to_list()]
    rows[2]["margin"] = math.inf
    trainer = poisoned_trainer(
        tmp_path, tokenizer, model=tiny_model("llama"), data=Dataset.from_list(rows), on_nonfinite="skip"
    )
    trainer.train()
    assert sum(logged(trainer, "nonfinite_pairs")) == 1
    assert sum(logged(trainer, "skipped_steps")) == 0
    assert "in 1 pair: row-3." in caplog.text
    assert "not taken" not in caplog.text, "the step of this pair was taken"
    stopping = poisoned_trainer(tmp_path, tokenizer, model=tiny_model("llama"), data=Dataset.from_list(rows))
    with pytest.raises(ModelError, match=r"in 1 pair: row-3\."):
        stopping.train()


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_a_gradient_that_is_not_finite_is_never_applied(tmp_path, tokenizer, optim):
    model = tiny_model("llama")
    trainer = poisoned_trainer(tmp_path, tokenizer, model=model, data=word_pairs(40), on_nonfinite="skip", optim=optim)

    def overflow(gradient):
        return gradient * math.inf if trainer.state.global_step == 2 else gradient

    model.score.weight.register_hook(overflow)
    trainer.train()
    assert logged(trainer, "skipped_steps") == [1, 0]
    assert logged(trainer, "nonfinite_pairs") == [0, 0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_our_default_optimizer_can_leave_a_step_out(tmp_path):
    assert NormBTConfig(**settings(tmp_path)).optim == "adamw_torch_fused"


def test_a_run_in_which_every_step_is_nan_ends_even_when_it_may_skip(tmp_path, tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():
        model.score.weight.fill_(math.nan)
    trainer = poisoned_trainer(
        tmp_path, tokenizer, model=model, data=word_pairs(40), on_nonfinite="skip", max_steps=40, batching="padded"
    )
    with pytest.raises(ModelError, match=r"20 steps in a row could not be taken.*parameters are not finite"):
        trainer.train()


def test_evaluation_counts_what_is_not_finite_as_wrong(tmp_path, tokenizer, caplog):
    trainer = poisoned_trainer(tmp_path, tokenizer)
    metrics = trainer.evaluate(poisoned_pairs(8, bad=3))
    assert metrics["eval_nonfinite_pairs"] == 1
    assert "pair-3" in caplog.text
    assert math.isfinite(metrics["eval_loss"])
    right = trainer.evaluate(poisoned_pairs(8, bad=3).select([0, 1, 2, 4, 5, 6, 7]))["eval_accuracy"] * 7
    assert metrics["eval_accuracy"] == pytest.approx(right / 8)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_looking_out_for_nan_reads_nothing_from_the_device_between_logs(tmp_path, tokenizer, optim):
    reads: list[int] = []

    class Counting(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            reads.append(mode.count)

    trainer = poisoned_trainer(
        tmp_path, tokenizer, model=tiny_model("llama"), data=word_pairs(40), logging_steps=100, optim=optim
    )
    trainer.add_callback(Counting())
    with HostWaits() as mode:
        trainer.train()
    assert len(reads) == 10
    # The first step looks at the mean distance, and the last one is logged.
    assert len(set(reads[1:])) == 1, f"reads before each step: {reads}"
