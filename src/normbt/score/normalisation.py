"""Mean and deviation of a model's rewards on a data set, kept in a file beside the model."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from normbt.errors import ConfigError, DataError, ModelError
from normbt.results import (
    NORMALISATION_FILE,
    SCHEMA_VERSION,
    Normalisation,
    NormalisationFile,
    RewardMoments,
    read_json,
    write_json,
)


def normalisation_path(model: str) -> Path:
    """Where the normalisation of a model is kept.

    Raises:
        ConfigError: the model is not a local folder.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise ConfigError(
            f"'{model}' is not a local folder, and the normalisation is saved beside the model. "
            "Save or download the model into a folder first."
        )
    return folder / NORMALISATION_FILE


def read_normalisation(model: str | Path, name: str, *, weights: str | None = None) -> Normalisation:
    """The entry of a data set in the file beside a model.

    Args:
        model: the model's folder.
        name: name of the data set.
        weights: fingerprint that the model must have had when the entry was made; None accepts any.

    Raises:
        ConfigError: there is no such entry; the message names those there are.
        ModelError: it was made with other weights.
    """
    path = normalisation_path(str(model))
    entries = _read(path)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise ConfigError(
            f"{path} has no data set '{name}' (it has: {known}). Make it with --fit_normalisation {name}."
        )
    if weights is not None and entries[name]["weights"] != weights:
        raise ModelError(
            f"The entry '{name}' of {path} was made with other weights than the model has now. "
            f"Make it anew with --fit_normalisation {name}."
        )
    return entries[name]


def save_normalisation(
    model: str, name: str, moments: RewardMoments, *, data: str, digest: str | None, weights: str
) -> Normalisation:
    """Add the entry of a data set to the file beside a model, in place of an earlier one of that name.

    Raises:
        DataError: all rewards are equal, so that nothing can be divided by their deviation.
    """
    if not moments["count"] or moments["mean"] is None or not moments["std"]:
        raise DataError(
            f"The {moments['count']:,} finite rewards of {data} have no spread (standard deviation "
            f"{moments['std']}), so they cannot be normalised."
        )
    path = normalisation_path(model)
    entry = Normalisation(
        mean=moments["mean"],
        std=moments["std"],
        count=moments["count"],
        data=data,
        data_sha256=digest,
        weights=weights,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    entries: Mapping[str, Normalisation] = {**_read(path), name: entry}
    record = NormalisationFile(schema_version=SCHEMA_VERSION, kind="reward_normalisation", datasets=dict(entries))
    write_json(path, record)
    return entry


def _read(path: Path) -> dict[str, Normalisation]:
    return read_json(path, kind="reward_normalisation")["datasets"] if path.is_file() else {}
