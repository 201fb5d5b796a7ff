"""Which checkpoints are whole, which one a run resumes from, and which are deleted."""

import os
from pathlib import Path

import pytest

from normbt.completeness import (
    COMPLETE_FILE,
    checkpoints_in,
    choose_checkpoint,
    last_complete,
    rotate,
    seal,
    what_is_missing,
)
from normbt.errors import StateError


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
        os.utime(checkpoint(folder, step) / COMPLETE_FILE, ns=(age * 10**9, age * 10**9))


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
