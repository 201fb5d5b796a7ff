"""Proof that a saved checkpoint, loaded with plain Transformers, scores like the model that was saved."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from normbt.errors import ModelError
from normbt.head import find_head, unwrap

logger = logging.getLogger(__name__)


def check_reload(
    folder: Path,
    model: nn.Module,
    inputs: Mapping[str, Any],
    rewards: Tensor,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Reload a checkpoint with plain Transformers and compare its head and its scores with the model in memory.

    Of a PEFT checkpoint, which holds no base model, the head's parameters in the adapter file are compared. Plain
    Transformers loads every parameter in one dtype, here that of the first one: a head that has another is compared as
    far as this one shows it. The head is compared on the CPU; where the device has no room for a second model, a
    warning says that the scores were not.

    Args:
        folder: the checkpoint.
        model: the model it was saved from.
        inputs: a padded batch, as keyword arguments of the model.
        rewards: the model's rewards of that batch, shape ``(rows,)``.
        autocast: makes the context under which ``rewards`` were computed.

    Raises:
        ModelError: the head is not in the checkpoint, or head or scores differ; the message says by how much.
    """
    name, head = find_head(model)
    saved_head = {key: value.detach().cpu() for key, value in head.state_dict().items()}
    if (folder / "adapter_config.json").is_file():
        _compare_head(folder, name, saved_head, _adapter_head(folder, name, saved_head))
        return
    reloaded, info = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=next(unwrap(model).parameters()).dtype,
        output_loading_info=True,
        trust_remote_code=_brings_its_code(model),
    )
    if info["missing_keys"]:
        raise ModelError(f"{folder} lacks {', '.join(sorted(info['missing_keys']))}: the saved model is incomplete.")
    _compare_head(folder, name, saved_head, find_head(reloaded)[1].state_dict())
    try:
        again = _rewards(reloaded.to(rewards.device).eval(), inputs, rewards.device, autocast)
    except torch.OutOfMemoryError as error:
        logger.warning(
            "%s: the head was reloaded and compared, the scores were not: %s has no room for a second model (%s).",
            folder,
            rewards.device,
            str(error).splitlines()[0],
        )
        return
    # Plain Transformers runs the head in the autocast's dtype; its rounding is the only difference allowed.
    rounding = 1e-4 if again.dtype == torch.float32 else 2e-2
    difference = (again.float() - rewards.float()).abs().max().item()
    if difference > rounding * (1.0 + rewards.abs().max().item()):
        raise ModelError(
            f"{folder}, reloaded with plain Transformers, gives rewards that differ by up to {difference:.3g} from the "
            "model in memory. Do not use this checkpoint; the run is stopped so that no more are written like it."
        )


def _brings_its_code(model: nn.Module) -> bool:
    """Whether the checkpoint holds the model's own code: a copy, made as it was saved, of what runs here already."""
    inner: Any = unwrap(model)
    return any(getattr(part, "_auto_class", None) is not None for part in (inner, inner.config))


@torch.no_grad()
def _rewards(
    model: nn.Module,
    inputs: Mapping[str, Any],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Tensor:
    on_device = {key: value.to(device) if hasattr(value, "to") else value for key, value in inputs.items()}
    with autocast():
        return model(**on_device).logits.squeeze(-1)


def _adapter_head(folder: Path, name: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        # PEFT leaves `modules_to_save.<adapter>` out of the names it writes.
        parts = name.split(".")
        if "modules_to_save" in parts:
            position = parts.index("modules_to_save")
            parts = parts[:position] + parts[position + 2 :]
        saved = list(file.keys())
        ends = {parameter: ".".join([*parts, parameter]) for parameter in wanted}
        keys = {parameter: [key for key in saved if key.endswith(end)] for parameter, end in ends.items()}
        return {parameter: file.get_tensor(found[0]) for parameter, found in keys.items() if found}


def _compare_head(folder: Path, name: str, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for parameter, value in wanted.items():
        if parameter not in found:
            raise ModelError(
                f"{folder} does not hold {name}.{parameter}: the scoring head was not saved. Add it to modules_to_save."
            )
        other = found[parameter].cpu()
        if other.shape != value.shape or not torch.equal(other, value.to(other.dtype)):
            raise ModelError(f"{folder} holds another {name}.{parameter} than the model in memory: the head was lost.")
