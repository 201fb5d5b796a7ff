"""Axolotl: NormBT for ``reward_model: true``, as a plugin.

Example:
    plugins:
      - normbt.integrations.axolotl_plugin.NormBTPlugin
    normbt:
      beta: 0.9
"""

from typing import Any

from axolotl.core.trainers.trl import AxolotlRewardTrainer  # pyright: ignore[reportMissingImports] - of the host
from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports] - of the host
from pydantic import BaseModel

from normbt.errors import ConfigError
from normbt.integrations.hf_trainer import NormBTMixin


class NormBTArgs(BaseModel):
    """The key ``normbt`` of Axolotl's YAML: settings of :func:`normbt.attach`."""

    normbt: dict[str, Any] | None = None


class NormBTRewardTrainer(NormBTMixin, AxolotlRewardTrainer):
    """Axolotl's reward trainer with NormBT."""

    def __init__(self, *args: Any, dataset_tags: list[str] | None = None, **kwargs: Any) -> None:
        # Axolotl passes tags to every trainer class but its own two, and its reward trainer does not take them.
        super().__init__(*args, **kwargs)


class NormBTPlugin(BasePlugin):
    """Chooses the trainer."""

    def get_input_args(self) -> str:
        """Where Axolotl finds the keys that this plugin adds to the YAML."""
        return f"{__name__}.NormBTArgs"

    def get_trainer_cls(self, cfg: Any) -> type[NormBTRewardTrainer]:
        """The trainer of a run with this plugin.

        Raises:
            ConfigError: the run does not train a reward model.
        """
        if not cfg.reward_model:
            raise ConfigError("the plugin NormBTPlugin trains reward models: set `reward_model: true` or remove it.")
        NormBTRewardTrainer.normbt_settings = dict(cfg.normbt or {})
        return NormBTRewardTrainer
