"""The capture of an attached model's head: it stays in place, and hands over the scores of every forward."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normbt.errors import ConfigError, ModelError
from normbt.head import HeadCapture


class AttachedCapture(HeadCapture):
    """The capture of the head that stays in place.

    Args:
        model: as in :class:`~normbt.head.HeadCapture`, like ``head``.
        weigh: called in every forward with what the head read and the scores that the model goes on with.

    Raises:
        ConfigError: the head has such a capture already.
        ModelError: the model has no usable head.
    """

    def __init__(self, model: nn.Module, head: str | None, weigh: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__(model, head)
        if is_attached(self.head):
            raise ConfigError(
                f"head {self.name} is attached already; a second weight would be multiplied. Call remove() of the "
                "first handle."
            )
        self.weigh = weigh

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(module, "_is_replica", False):
            raise ModelError(
                "the model runs in torch.nn.DataParallel, whose threads see parts of the pairs. Start one process for "
                "each GPU (accelerate launch, torchrun), or make one GPU visible."
            )
        super()._before_forward(module, args, kwargs)

    def _forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scores = super()._forward(hidden, *args, **kwargs)
        if not self.inside_head:
            self.weigh(self.record.hidden, scores)
        return scores

    def __deepcopy__(self, memo: Any) -> "AttachedCapture":
        # PEFT copies the head it trains, weight averaging the whole model: the copy would weigh pairs by itself.
        raise ConfigError("an attached model can't be copied: attach after PEFT has wrapped it, or remove() first.")


def is_attached(head: nn.Module) -> bool:
    """Whether a handle of :func:`attach` has this head.

    Args:
        head: a scoring head, as :func:`normbt.head.find_head` gives it.

    Example:
        >>> is_attached(nn.Linear(2, 1))
        False
    """
    return isinstance(getattr(head.forward, "__self__", None), AttachedCapture)
