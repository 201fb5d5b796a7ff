"""Proof that a saved checkpoint, loaded with plain Transformers, scores like the model that was saved."""

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


def check_reload(
    folder: Path,
    model: nn.Module,
    inputs: Mapping[str, Any],
    rewards: Tensor,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Reload a checkpoint with plain Transformers and compare its head and its scores with the model in memory.

    Of a PEFT checkpoint, which holds no base model, the head's parameters in the adapter file are compared.

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
        folder, dtype=next(unwrap(model).parameters()).dtype, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ModelError(f"{folder} lacks {', '.join(sorted(info['missing_keys']))}: the saved model is incomplete.")
    _compare_head(folder, name, saved_head, find_head(reloaded)[1].state_dict())
    reloaded = reloaded.to(rewards.device).eval()
    on_device = {key: value.to(rewards.device) if hasattr(value, "to") else value for key, value in inputs.items()}
    with torch.no_grad(), autocast():
        again = reloaded(**on_device).logits.squeeze(-1)
    # Plain Transformers runs the head in the autocast's dtype; its rounding is the only difference allowed.
    rounding = 1e-4 if again.dtype == torch.float32 else 2e-2
    difference = (again.float() - rewards.float()).abs().max().item()
    if difference > rounding * (1.0 + rewards.abs().max().item()):
        raise ModelError(
            f"{folder}, reloaded with plain Transformers, gives rewards that differ by up to {difference:.3g} from the "
            "model in memory. Do not use this checkpoint; the run is stopped so that no more are written like it."
        )


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
        if other.shape != value.shape or not torch.equal(other.to(value.dtype), value):
            raise ModelError(f"{folder} holds another {name}.{parameter} than the model in memory: the head was lost.")
