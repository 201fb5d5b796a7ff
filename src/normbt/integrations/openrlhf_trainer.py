"""OpenRLHF: NormBT in ``openrlhf.cli.train_rm``, by a subclass of its trainer.

Example:
    deepspeed --module normbt.integrations.openrlhf_trainer --model.model_name_or_path ... --data.dataset ...
"""

import json
import runpy
from pathlib import Path
from typing import Any

import openrlhf.trainer.rm_trainer as host  # pyright: ignore[reportMissingImports] - of the host

from normbt.attachment import attach
from normbt.errors import ConfigError, StateError

STATE_FILE = "normbt_attachment.json"


class NormBTRewardModelTrainer(host.RewardModelTrainer):
    """OpenRLHF's reward trainer with NormBT; mu is saved beside DeepSpeed's checkpoint and restored with it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.packing_samples:
            raise ConfigError("NormBT needs one row for each answer: remove --ds.packing_samples.")
        model = self.strategy._unwrap_model(self.model)
        self.normbt = attach(model, "halves", head=model.value_head_prefix)

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        """Train, from the saved mu if OpenRLHF goes on from a checkpoint."""
        if consumed_samples:
            path = self._state_file(consumed_samples // args.train.batch_size)
            if not path.is_file():
                raise StateError(f"{path} is missing, so mu can't be restored: wanted a checkpoint made with NormBT.")
            self.normbt.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        super().fit(args, consumed_samples, num_update_steps_per_epoch)

    def save_logs_and_checkpoints(
        self, args: Any, global_step: int, step_bar: Any, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        """OpenRLHF calls this after every optimizer step."""
        self.normbt.step()  # DeepSpeed's optimizer holds parameters of its own
        logs = {f"normbt_{name}": value for name, value in self.normbt.metrics().items()}
        super().save_logs_and_checkpoints(args, global_step, step_bar, {**(logs_dict or {}), **logs}, client_states)
        saves = global_step % args.ckpt.save_steps == 0 and not self.disable_ds_ckpt
        if saves and self.strategy.is_rank_0():
            path = self._state_file(global_step)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.normbt.state_dict(), indent=2) + "\n", encoding="utf-8")

    def _state_file(self, global_step: int) -> Path:
        return Path(self.args.ckpt.path) / f"global_step{global_step}" / STATE_FILE


if __name__ == "__main__":
    host.RewardModelTrainer = NormBTRewardModelTrainer  # train_rm takes it from there
    runpy.run_module("openrlhf.cli.train_rm", run_name="__main__")
