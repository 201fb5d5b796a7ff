"""Which parameters a gradient norm is taken over."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from normbt.errors import ModelError
from normbt.head import find_head

Params = Literal["all", "head", "backbone", "lora"] | Callable[[str, nn.Parameter], bool]
"""A named set of parameters, or a predicate on name and parameter."""


def select_parameters(model: nn.Module, params: Params) -> dict[str, nn.Parameter]:
    """The parameters a norm is taken over, by name.

    Args:
        model: a reward model, PEFT-wrapped or not.
        params: which ones.

            - ``"all"``: those that require a gradient, which are those that training would update: everything in a full
              model, adapters and the saved head under PEFT.
            - ``"head"``: those of the scoring head; of a head with frozen and trained parts, the trained ones.
            - ``"backbone"``: ``"all"`` without the head. May be empty: then only the head is trained.
            - ``"lora"``: the matrices of LoRA adapters, trained or not.
            - a predicate: every parameter for which ``predicate(name, parameter)`` is true, trained or not.

    Returns:
        Parameters by their name in ``model``. A parameter with several names has its first.

    Raises:
        ValueError: ``params`` is none of these.
        ModelError: no parameter is chosen.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        >>> list(select_parameters(model, "head")), list(select_parameters(model, lambda name, _: "bias" in name))
        (['1.weight', '1.bias'], ['0.bias', '1.bias'])
    """
    named = dict(model.named_parameters())
    kind = type(model).__name__
    if callable(params):
        chosen = {name: parameter for name, parameter in named.items() if params(name, parameter)}
        problem = (
            f"the predicate chose none of the {len(named)} parameters of {kind}, such as {next(iter(named), '-')}."
        )
    elif params == "all":
        chosen = _trained(named)
        problem = (
            f"no parameter of {kind} requires a gradient, so training would update nothing. Load adapters with "
            "is_trainable=True, or pass a predicate."
        )
    elif params == "head":
        in_head = set(find_head(model)[1].parameters())
        whole = {name: parameter for name, parameter in named.items() if parameter in in_head}
        chosen = _trained(whole) or whole
        problem = f"the scoring head of {kind} has no parameters."
    elif params == "backbone":
        in_head = set(find_head(model)[1].parameters())
        return {name: parameter for name, parameter in _trained(named).items() if parameter not in in_head}
    elif params == "lora":
        chosen = {name: parameter for name, parameter in named.items() if _is_lora(name)}
        problem = f"{kind} has no LoRA adapter. Wrap it with PEFT, or use another params."
    else:
        raise ValueError(f"params must be 'all', 'head', 'backbone', 'lora' or a predicate, got {params!r}.")
    if not chosen:
        raise ModelError(problem)
    return chosen


def _trained(named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def _is_lora(name: str) -> bool:
    # PEFT's names: lora_A, lora_B, lora_embedding_A, lora_magnitude_vector, each with an adapter's name after it.
    return any(part.startswith("lora_") for part in name.split("."))
