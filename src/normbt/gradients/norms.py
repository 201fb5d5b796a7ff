"""The public functions: gradient norm of each pair, over one set of parameters or several at once."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normbt.errors import ModelError
from normbt.gradients.check import compared
from normbt.gradients.exact import exact_squares
from normbt.gradients.ghost import ghost_squares
from normbt.gradients.pair_inputs import pair_inputs
from normbt.gradients.selection import Params, select_parameters
from normbt.head import HeadCapture
from normbt.packing import PairBatch

Method = Literal["exact", "ghost"]


def pair_gradient_norms(
    model: nn.Module,
    batch: Mapping[str, Any] | PairBatch,
    *,
    params: Params = "all",
    method: Method = "exact",
    check_pairs: int = 0,
) -> Tensor:
    r"""Norm of the gradient of the reward difference of each pair.

    .. math:: n_i = \lVert \nabla_\theta\,(r^+_i - r^-_i) \rVert_2

    The pair is the sample: what the two sequences have in common cancels before the norm is taken. The gradient of the
    Bradley-Terry loss of the pair has norm :math:`(1-\sigma(r^+_i - r^-_i))\,n_i`.

    The model runs in evaluation mode, where Transformers' gradient checkpointing is off. Nothing of it is changed: not
    ``.grad``, ``requires_grad``, the training mode or the random state.

    Args:
        model: a reward model that :func:`normbt.capture_hidden` can serve, whole on one device.
        batch: the model's inputs with ``2 * pairs`` rows, all chosen first, then all rejected, padded on either side;
            or a :class:`~normbt.packing.PairBatch`. A packed one runs inside
            :func:`normbt.attention.pair_attention`.
        params: over which parameters: ``"all"`` that require a gradient (what training would update: everything, or
            adapters and head under PEFT), ``"head"``, ``"backbone"`` (all without the head), ``"lora"``, or a predicate
            ``(name, parameter) -> bool``. See :func:`~normbt.gradients.selection.select_parameters`.
        method: how.

            - ``"exact"``: one forward and backward for each pair, right for every model.
            - ``"ghost"``: one forward and backward for all pairs, about as fast as a training step and without its
              gradients in memory. Equal to ``"exact"`` up to rounding, or an error that names the parameter: operations
              on parameters have to be matrix products, embeddings, layer or RMS norms, biases or elementwise factors.
        check_pairs: with ``"ghost"``, compare so many pairs with ``"exact"`` first, parameter by parameter; an error if
            they differ.

    Returns:
        Norms in reward units per parameter unit, shape ``(pairs,)``, not negative; float32, or float64 for a float64
        model; no gradient.

    Raises:
        DataError: the batch does not hold whole pairs.
        ModelError: the model has no usable head, is sharded, no parameter is chosen, the ghost method does not know
            how a parameter is used, or it failed the check.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # one chosen, one rejected
        >>> pair_gradient_norms(model, {"input": rows})
        tensor([5.])

    References:
        The gradient of arXiv 2512.06343, whose norm it relates to the distance of the representations.
    """
    return pair_gradient_norms_by_group(model, batch, {"": params}, method=method, check_pairs=check_pairs)[""]


def pair_gradient_norms_by_group(
    model: nn.Module,
    batch: Mapping[str, Any] | PairBatch,
    groups: Mapping[str, Params],
    *,
    method: Method = "exact",
    check_pairs: int = 0,
) -> dict[str, Tensor]:
    """:func:`pair_gradient_norms` over several sets of parameters, from one pass over the batch.

    Args:
        model: as there.
        batch: as there.
        groups: for each name a set of parameters, given as ``params`` is there; sets may overlap.
        method: as there.
        check_pairs: as there.

    Returns:
        For each name the norms, shape ``(pairs,)``. Squares of disjoint groups add up to the square of their union.

    Raises:
        ValueError: there is no group.
        DataError: as there.
        ModelError: as there.
    """
    if not groups:
        raise ValueError("groups is empty; wanted at least one name with its parameters.")
    if method not in ("exact", "ghost"):
        raise ValueError(f"method must be 'exact' or 'ghost', got {method!r}.")
    if check_pairs and method != "ghost":
        raise ValueError(
            f"check_pairs compares 'ghost' with 'exact'; with method={method!r} there is nothing to check."
        )
    capture = HeadCapture(model)
    members = {name: select_parameters(model, params) for name, params in groups.items()}
    union = {name: parameter for chosen in members.values() for name, parameter in chosen.items()}
    place = {name: number for number, name in enumerate(union)}
    pairs = pair_inputs(batch)
    if check_pairs:
        check = compared(capture, pairs.first(check_pairs), union)
        if not check.passed:
            raise ModelError(f"{check.summary()} Use method='exact'.")
    squares = (exact_squares if method == "exact" else ghost_squares)(capture, pairs, union)
    first = next(model.parameters())
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return {
        group: squares[[place[name] for name in chosen]].sum(dim=0).sqrt().to(first.device, dtype)
        for group, chosen in members.items()
    }
