"""NormBT: Bradley-Terry reward models without the representation-distance bias (arXiv 2512.06343).

`import normbt` needs torch alone and imports nothing heavy: every public name below is loaded when it is first used.
Training lives in `normbt.trainer`, which needs the extra `normbt[train]`.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from normbt import errors

if TYPE_CHECKING:
    from normbt.attachment import attach
    from normbt.gradients import pair_gradient_norms, pair_gradient_norms_by_group
    from normbt.head import capture_hidden
    from normbt.losses import bt_loss, scaled_bt_loss
    from normbt.weights import EmaState, NormBTLoss, pair_distance, pair_weights, update_ema

__all__ = [
    "EmaState",
    "NormBTLoss",
    "attach",
    "bt_loss",
    "capture_hidden",
    "errors",
    "pair_distance",
    "pair_gradient_norms",
    "pair_gradient_norms_by_group",
    "pair_weights",
    "scaled_bt_loss",
    "update_ema",
]

_MODULE_OF_NAME = {
    "EmaState": "weights",
    "NormBTLoss": "weights",
    "attach": "attachment",
    "bt_loss": "losses",
    "capture_hidden": "head",
    "pair_distance": "weights",
    "pair_gradient_norms": "gradients",
    "pair_gradient_norms_by_group": "gradients",
    "pair_weights": "weights",
    "scaled_bt_loss": "losses",
    "update_ema": "weights",
}

try:
    __version__ = version("normbt")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    """Load a public name on first use, so that `import normbt` costs nothing."""
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'normbt' has no attribute {name!r}")
    value = getattr(import_module(f"normbt.{_MODULE_OF_NAME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
