"""PEFT on a reward model: the scoring head is always trained, and saved with the adapter."""

import copy
import logging
from typing import Any

from peft import PeftModel
from torch import nn

from normbt.errors import ModelError
from normbt.head import HeadCapture

logger = logging.getLogger(__name__)


def reward_peft_config(peft_config: Any) -> Any:
    """The same configuration for a sequence-classification model, so that PEFT trains and saves the head.

    Args:
        peft_config: a PEFT configuration, or None; it is not changed.

    Returns:
        A copy with ``task_type="SEQ_CLS"``; a warning says so where another one was given.
    """
    if peft_config is None:
        return None
    peft_config = copy.deepcopy(peft_config)
    if peft_config.task_type != "SEQ_CLS":
        logger.warning(
            "task_type %s of the PEFT configuration was replaced by SEQ_CLS, which trains and saves the scoring head.",
            peft_config.task_type,
        )
        peft_config.task_type = "SEQ_CLS"
    return peft_config


def check_head_is_trained(model: nn.Module, capture: HeadCapture) -> None:
    """Refuse an adapter under which the head would stay as it was drawn; of a whole model, only warn.

    Args:
        model: the model to train, wrapped by PEFT or not.
        capture: its head.

    Raises:
        ModelError: PEFT would neither train nor save the head.
    """
    frozen = [name for name, parameter in capture.head.named_parameters() if not parameter.requires_grad]
    if not frozen:
        return
    found = f"the scoring head {capture.name} is not trained: {', '.join(frozen)} need no gradient"
    if isinstance(model, PeftModel):
        head = capture.name.split(".")[0]
        raise ModelError(
            f"{found}, so a head that was drawn at random would stay so and would not be saved. "
            f"Use task_type='SEQ_CLS', or modules_to_save=['{head}'], in the PEFT configuration, and leave the "
            "head out of target_modules."
        )
    logger.warning("%s.", found)
