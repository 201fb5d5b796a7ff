"""Which checkpoints are whole, which one a run resumes from, and which are deleted."""

import os
import shutil
from pathlib import Path

import pytest

from normbt.completeness import (
    COMPLETE_FILE,
    checkpoints_in,
    choose_checkpoint,
    last_complete,
    rotate,
    seal,
    warn_of_another_run,
    what_is_missing,
)
from normbt.errors import StateError
from normbt.results import read_json, write_json


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)  # 5 MB: more than both ends that are hashed
    (path / "shards" / "0.distcp").write_bytes(b"shard")
    if complete:
        seal(path)
    return path


def damage(path: Path, kind: str) -> None:
    weights = path / "model.safetensors"
    if kind == "no list":
        (path / COMPLETE_FILE).unlink()
    elif kind == "half a list":
        (path / COMPLETE_FILE).write_text('{"files": {"model.saf')
    elif kind == "another list":
        (path / COMPLETE_FILE).write_text('{"files": [1]}')
    elif kind == "missing file":
        (path / "shards" / "0.distcp").unlink()
    elif kind == "half a file":
        os.truncate(weights, 1000)
    elif kind == "blank tail":
        weights.write_bytes(weights.read_bytes()[:-1000] + bytes(1000))
    elif kind == "blank head":
        weights.write_bytes(bytes(8) + weights.read_bytes()[8:])


DAMAGES = {
    "no list": "which is written last",
    "half a list": "is damaged",
    "another list": "is damaged",
    "missing file": r"shards/0\.distcp is missing",
    "half a file": "1,000 bytes of 5,120,000",
    "blank tail": "not what was written",
    "blank head": "not what was written",
}


def test_a_sealed_checkpoint_is_complete(tmp_path):
    assert what_is_missing(checkpoint(tmp_path, 1)) is None


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_recognised_passed_over_and_refused_by_name(tmp_path, kind):
    good, bad = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    damage(bad, kind)
    with pytest.raises(StateError, match=rf"checkpoint-10 is incomplete: .*{DAMAGES[kind]}.*checkpoint-9"):
        choose_checkpoint(bad, tmp_path)
    chosen, passed_over = choose_checkpoint(None, tmp_path)
    assert chosen == good == last_complete(tmp_path)
    assert len(passed_over) == 1
    assert "checkpoint-10 is incomplete" in passed_over[0]


def test_a_run_without_a_complete_checkpoint_cannot_be_resumed(tmp_path):
    with pytest.raises(StateError, match="nothing to resume from"):
        choose_checkpoint(None, tmp_path / "nowhere")
    checkpoint(tmp_path, 1, complete=False)
    with pytest.raises(StateError, match=r"checkpoint-1 is incomplete.*nothing to resume from"):
        choose_checkpoint(None, tmp_path)
    with pytest.raises(StateError, match="no such checkpoint"):
        choose_checkpoint(tmp_path / "checkpoint-7", tmp_path)


def test_steps_are_numbers_and_other_folders_no_checkpoints(tmp_path):
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    for other in ("checkpoint-x", "checkpoint-3-old", "my-checkpoint-4"):
        (tmp_path / other).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


def left(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in checkpoints_in(folder)]


def aged(folder: Path, *steps: int) -> None:
    """Checkpoints completed one after another."""
    for age, step in enumerate(steps):
        path = checkpoint(folder, step) / COMPLETE_FILE
        write_json(path, read_json(path) | {"completed_ns": age})


@pytest.mark.parametrize("copied", [False, True])
def test_the_last_checkpoint_is_the_one_that_was_completed_last(tmp_path, copied):
    """A run of 600 steps, and then another in its folder that was killed after step 100 and inside step 150."""
    folder = tmp_path / "run"
    aged(folder, 200, 400, 600, 100)
    checkpoint(folder, 150, complete=False)
    if copied:  # by something that gives the copies times of their own, in no order of the steps
        folder = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
        for age, step in enumerate((100, 600, 200, 400)):
            os.utime(folder / f"checkpoint-{step}" / COMPLETE_FILE, ns=(age, age))
    chosen, passed_over = choose_checkpoint(None, folder)
    assert chosen == last_complete(folder) == folder / "checkpoint-100"
    assert [message.split(" is ")[0] for message in passed_over] == [str(folder / "checkpoint-150")]
    with pytest.raises(StateError, match=r"The last complete one is .*checkpoint-100"):
        choose_checkpoint(folder / "checkpoint-150", folder)
    rotate(folder / "checkpoint-100", 2)
    assert left(folder) == [100, 150, 600]


@pytest.mark.parametrize(("times", "last"), [((1, 1, 1), 600), ((1, 3, 2), 200)], ids=["equal", "different"])
def test_lists_without_a_time_are_as_old_as_their_files_and_the_step_decides_between_equals(tmp_path, times, last):
    for step, time in zip((600, 200, 400), times, strict=True):
        path = checkpoint(tmp_path, step) / COMPLETE_FILE
        write_json(path, {"files": read_json(path)["files"]})
        os.utime(path, ns=(time, time))
    assert last_complete(tmp_path) == tmp_path / f"checkpoint-{last}"


def test_another_run_in_the_folder_is_warned_of(tmp_path, caplog):
    checkpoint(tmp_path, 1, complete=False)
    warn_of_another_run(tmp_path)
    warn_of_another_run(tmp_path / "nowhere")
    assert not caplog.records
    checkpoint(tmp_path, 2)
    warn_of_another_run(tmp_path)
    assert f"{tmp_path / 'checkpoint-2'} is of an earlier run" in caplog.text


def test_rotation_keeps_the_limit_and_does_not_count_half_written_ones(tmp_path):
    aged(tmp_path, 1, 2, 3)
    checkpoint(tmp_path, 4, complete=False)
    assert rotate(tmp_path / "checkpoint-3", None) == []
    assert rotate(tmp_path / "checkpoint-3", 3) == []
    assert rotate(tmp_path / "checkpoint-3", 2) == [tmp_path / "checkpoint-1"]
    assert left(tmp_path) == [2, 3, 4]


def test_rotation_keeps_the_best_and_the_newest(tmp_path):
    aged(tmp_path, 1, 2, 3)
    rotate(tmp_path / "checkpoint-3", 1, keep=[str(tmp_path / "checkpoint-1"), None])
    assert left(tmp_path) == [1, 3]


def test_a_run_resumed_from_an_early_step_keeps_what_it_writes(tmp_path):
    aged(tmp_path, 6, 8, 4)  # resumed from before step 4, which is now the newest
    rotate(tmp_path / "checkpoint-4", 1)
    assert left(tmp_path) == [4]
