"""ms-swift: NormBT in ``swift rlhf --rlhf_type rm``, as an external plugin.

Example:
    swift rlhf --rlhf_type rm --external_plugins PATH_OF_THIS_FILE ...
"""

from typing import Any

from swift.rlhf_trainers import RewardTrainer  # pyright: ignore[reportMissingImports] - of the host
from swift.trainers import TrainerFactory  # pyright: ignore[reportMissingImports] - of the host

from normbt.integrations.hf_trainer import NormBTMixin


class NormBTRewardTrainer(NormBTMixin, RewardTrainer):
    """ms-swift's reward trainer with NormBT."""


def register(**settings: Any) -> None:
    """Let ``--rlhf_type rm`` train with NormBT.

    Args:
        settings: of :func:`normbt.attach`: ``beta``, ``eps``, ``max_weight``, ``distance``, ``mu_init``.
    """
    # ms-swift runs this file under a name of its own; the class it is told of is the one in the package.
    from normbt.integrations import ms_swift

    ms_swift.NormBTRewardTrainer.normbt_settings = settings
    TrainerFactory.TRAINER_MAPPING["rm"] = "normbt.integrations.ms_swift.NormBTRewardTrainer"


if __name__ != "normbt.integrations.ms_swift":  # named with --external_plugins
    register()
