"""What a subclass of a ``transformers.Trainer`` needs to train an attached model, resume and log."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from normbt.attachment import Attachment, attach
from normbt.attachment.pairs import Layout
from normbt.errors import StateError

STATE_FILE = "normbt_attachment.json"
"""What a checkpoint holds of the attachment."""


class NormBTMixin:
    """Put before a ``transformers.Trainer`` whose loss is made of reward differences: it then trains with NormBT.

    The model is attached when the trainer has been made, so that it is the one that PEFT has wrapped. mu is saved in
    every checkpoint and restored on resume; what the weighting did is logged as ``normbt/mu`` and so on.

    Attributes:
        normbt_layout: as in :func:`normbt.attach`.
        normbt_head: the same.
        normbt_settings: further settings of :func:`normbt.attach`: ``beta``, ``eps``, ``max_weight``, ``distance``,
            ``mu_init``.
        normbt: the attachment.

    Raises:
        StateError: a checkpoint to resume has no attachment's state, or one of other settings.
    """

    normbt_layout: ClassVar[Layout] = "halves"
    normbt_head: ClassVar[str | None] = None
    normbt_settings: ClassVar[Mapping[str, Any]] = {}
    normbt: Attachment

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        self.normbt = attach(trainer.model, self.normbt_layout, head=self.normbt_head, **self.normbt_settings)
        trainer.add_callback(_StepEnd(self.normbt))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log what the trainer logs and, in training, what the weighting did in the latest step."""
        parent: Any = super()
        if "loss" in logs:
            logs.update({f"normbt/{name}": value for name, value in self.normbt.metrics().items()})
        parent.log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        parent: Any = super()
        parent._save_optimizer_and_scheduler(output_dir)
        trainer: Any = self
        if trainer.args.should_save:
            text = json.dumps(self.normbt.state_dict(), indent=2)
            (Path(output_dir) / STATE_FILE).write_text(text + "\n", encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        parent: Any = super()
        parent._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.is_file():
            raise StateError(
                f"{checkpoint} has no {STATE_FILE}, so mu can't be restored: wanted a checkpoint of a run with NormBT. "
                "Start a new run from its weights instead."
            )
        self.normbt.load_state_dict(json.loads(path.read_text(encoding="utf-8")))


class _StepEnd(TrainerCallback):
    """Moves mu where the optimizer holds no parameter of the model (DeepSpeed); elsewhere it has moved already."""

    def __init__(self, normbt: Attachment) -> None:
        self.normbt = normbt

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.normbt.step()
