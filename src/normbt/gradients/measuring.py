"""Borrow a model for a measurement, and give it back as it was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from normbt.errors import ModelError


@contextmanager
def measuring(model: nn.Module, differentiated: Iterable[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, and gradients for some parameters only, until the context ends.

    Evaluation mode makes the norms reproducible (no dropout) and switches off the gradient checkpointing of
    Transformers. Training modes, ``requires_grad`` and the random state are put back, after an exception too; ``.grad``
    is left to the code inside.

    Args:
        model: any module whose parameters are whole on this device.
        differentiated: parameters that require a gradient inside; no other does.

    Raises:
        ModelError: the parameters are sharded over devices.
    """
    parameters = list(model.parameters())
    if any(hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id") for parameter in parameters):
        raise ModelError(
            f"the parameters of {type(model).__name__} are sharded (FSDP or ZeRO-3); per-pair gradient norms need the "
            "whole model on one device. Load the checkpoint unsharded."
        )
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in parameters]
    wanted = set(differentiated)
    devices = {parameter.device for parameter in parameters if parameter.device.type == "cuda"}
    try:
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(parameter in wanted)
        with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
