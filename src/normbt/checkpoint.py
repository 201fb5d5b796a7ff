"""What a checkpoint holds beside the model: mu and its settings; and the proof that the saved model scores the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from normbt.errors import StateError
from normbt.results import read_json, write_json

STATE_FILE = "normbt_state.json"

WHOLE = "no engine that shards"
FSDP_WHOLE = "FSDP (FULL_STATE_DICT)"
FSDP_SHARDS = "FSDP (SHARDED_STATE_DICT)"


@dataclass(frozen=True)
class TrainingState:
    """The state of the pair loss between two optimizer steps.

    Attributes:
        settings: the settings that give mu its meaning; a resumed run must have the same.
        mu: running mean of the distance, in its unit.
        updates: how many optimizer steps mu has seen.
        tokens: how many tokens the run has trained on.
    """

    settings: dict[str, Any]
    mu: float
    updates: int
    tokens: int


def loss_settings(args: Any) -> dict[str, Any]:
    """The settings of a run that give mu its meaning, out of all of them."""
    names = ("loss", "smoothing", "weighting", "distance", "beta", "eps", "max_weight")
    return {name: getattr(args, name) for name in names}


def save_state(folder: str | Path, state: TrainingState) -> None:
    """Write the state into a checkpoint's folder.

    Args:
        folder: the checkpoint.
        state: what to write.
    """
    write_json(Path(folder) / STATE_FILE, asdict(state))


def engine_of(folder: str | Path) -> str:
    """Which engine wrote a checkpoint, in words: each keeps model and optimizer in files that the others don't read.

    Args:
        folder: a complete checkpoint.

    Returns:
        One of :data:`WHOLE`, :data:`FSDP_WHOLE` and :data:`FSDP_SHARDS`, or :func:`deepspeed_of`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> engine_of(folder)
        'no engine that shards'
        >>> _ = (folder / "pytorch_model_fsdp.bin").write_bytes(b"weights")
        >>> engine_of(folder)
        'FSDP (FULL_STATE_DICT)'
    """
    folder = Path(folder)
    if (folder / "pytorch_model_fsdp.bin").is_file():
        return FSDP_WHOLE
    if (folder / "pytorch_model_fsdp_0").is_dir():
        return FSDP_SHARDS
    if parts := list(folder.glob("global_step*/*zero_pp_rank_*_optim_states.pt")):
        return deepspeed_of(len(parts))
    return WHOLE


def deepspeed_of(processes: int) -> str:
    """What :func:`engine_of` says of DeepSpeed, whose checkpoints are read by as many processes as wrote them."""
    return f"DeepSpeed with {processes} process{'es' if processes > 1 else ''}"


def load_state(folder: str | Path, settings: Mapping[str, Any]) -> TrainingState:
    """Read the state of a checkpoint that is about to be resumed.

    Args:
        folder: the checkpoint.
        settings: the settings of the run that resumes.

    Returns:
        The state.

    Raises:
        StateError: the checkpoint has no state, or was made with other settings; all differences are named.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise StateError(
            f"{folder} has no {STATE_FILE}, so mu can't be restored: wanted a checkpoint written by this trainer. "
            "Start a new run from its weights instead (pass the folder as the model)."
        )
    content = read_json(path)
    try:
        state = TrainingState(**{name: content[name] for name in TrainingState.__dataclass_fields__})
    except KeyError as missing:
        raise StateError(f"{path} lacks the field {missing}; resume from an earlier checkpoint.") from None
    differences = [
        f"{name}: {state.settings.get(name)!r} in the checkpoint, {wanted!r} now"
        for name, wanted in settings.items()
        if state.settings.get(name) != wanted
    ]
    if differences:
        raise StateError(
            f"{folder} was made with other settings ({'; '.join(differences)}). Resume with the checkpoint's settings, "
            "or start a new run from its weights (pass the folder as the model)."
        )
    return state
