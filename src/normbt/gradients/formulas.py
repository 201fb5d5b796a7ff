r"""Squared gradient norms of single operations, from what they read and the gradient of what they gave.

Everywhere ``x`` is what the operation read at the tokens of a pair, ``d`` the gradient of the reward difference by what
it gave there; both sequences of the pair are among the tokens, with the sign of the rejected one in ``d``.
"""

import torch
from torch import Tensor

_STRIP = 96  # rows of a Gram matrix computed at a time; it is symmetric, so each strip skips what the ones before had
_SCRATCH = 1 << 24  # elements of a gradient that are materialised at a time: 64 MiB in float32


def gram_costs_less(tokens: int, inputs: int, outputs: int) -> bool:
    r"""Whether :func:`gram_squares` takes fewer multiply-adds than :func:`outer_squares`.

    The two Gram matrices of a pair with :math:`T` tokens take :math:`s\,T^2(p + q)`, the gradient itself takes
    :math:`T p q`, for :math:`p` inputs and :math:`q` outputs; :math:`s`, from 1 down to 1/2, is the share of the
    symmetric matrices that is computed.

    Args:
        tokens: T.
        inputs: p.
        outputs: q.

    Returns:
        Whether the first is less.

    Example:
        >>> gram_costs_less(100, 768, 768), gram_costs_less(1000, 768, 768), gram_costs_less(100, 768, 8)
        (True, False, False)
    """
    strips = -(-tokens // _STRIP)
    share = (strips + 1) / (2 * strips)
    return share * tokens * (inputs + outputs) < inputs * outputs


def gram_squares(x: Tensor, d: Tensor, aligned: int) -> Tensor:
    r"""Squared norm of the gradient of a matrix, without the gradient.

    .. math:: \lVert \textstyle\sum_t d_t x_t^\top \rVert^2 = \sum_{t,s} (d_t \cdot d_s)(x_t \cdot x_s)

    For a pair that looks alike the terms of chosen and rejected cancel, and would leave the rounding of the large ones.
    So the sum is taken over sums and differences of tokens that stand side by side, which cancel term by term:
    :math:`d_t x_t^\top + d_s x_s^\top = \tfrac12 (d_t+d_s)(x_t+x_s)^\top + \tfrac12 (d_t-d_s)(x_t-x_s)^\top`.

    Args:
        x: shape ``(n, tokens, inputs)``.
        d: shape ``(n, tokens, outputs)``.
        aligned: the first so many tokens stand side by side with the next so many.

    Returns:
        Shape ``(n,)``, float64.

    Example:
        >>> x, d = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
        >>> gram_squares(x, d, aligned=1)  # the gradient is [[7], [2]]
        tensor([53.], dtype=torch.float64)

    References:
        Goodfellow, arXiv 1510.01799; Li et al., arXiv 2110.05679 ("ghost norm").
    """
    x, d = _rotated(x, aligned), _rotated(d, aligned)
    d[:, : 2 * aligned] *= 0.5
    total = torch.zeros(len(x), dtype=wide(x.device), device=x.device)
    for start in range(0, x.shape[1], _STRIP):
        end = start + _STRIP
        products = x[:, start:end] @ x[:, start:].mT
        products *= d[:, start:end] @ d[:, start:].mT
        width = products.shape[1]
        total += 2 * products.sum(dim=2).sum(dim=1, dtype=wide(x.device))
        total -= products[:, :, :width].sum(dim=2).sum(dim=1, dtype=wide(x.device))
    return total.clamp_min(0)  # rounding of a zero


def outer_squares(x: Tensor, d: Tensor) -> Tensor:
    r"""Squared norm of the gradient of a matrix, from the gradient.

    .. math:: \lVert \textstyle\sum_t d_t x_t^\top \rVert^2

    Args:
        x: shape ``(n, tokens, inputs)``.
        d: shape ``(n, tokens, outputs)``.

    Returns:
        Shape ``(n,)``, float64.

    Example:
        >>> x, d = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
        >>> outer_squares(x, d)
        tensor([53.], dtype=torch.float64)
    """
    pairs, _, inputs = x.shape
    outputs_at_a_time = max(1, _SCRATCH // inputs)
    pairs_at_a_time = max(1, outputs_at_a_time // d.shape[-1])
    total = torch.zeros(pairs, dtype=wide(d.device), device=d.device)
    for start in range(0, pairs, pairs_at_a_time):
        some = slice(start, start + pairs_at_a_time)
        for columns in d[some].split(outputs_at_a_time, dim=-1):
            gradient = columns.mT @ x[some]
            total[some] += gradient.square_().sum(dim=-1).sum(dim=-1, dtype=wide(d.device))
    return total


def lookup_squares(ids: Tensor, d: Tensor, pair: Tensor, pairs: int, vocabulary: int) -> Tensor:
    r"""Squared norm of the gradient of an embedding's table.

    .. math:: \sum_v \lVert \textstyle\sum_{t:\,\mathrm{id}_t=v} d_t \rVert^2

    Args:
        ids: row of the table that each token read, shape ``(tokens,)``.
        d: shape ``(tokens, outputs)``.
        pair: pair of each token, shape ``(tokens,)``.
        pairs: number of pairs.
        vocabulary: rows of the table.

    Returns:
        Shape ``(pairs,)``, float64.

    Example:
        >>> ids, d = torch.tensor([4, 7, 4]), torch.tensor([[1.0], [2.0], [3.0]])
        >>> lookup_squares(ids, d, torch.tensor([0, 0, 0]), pairs=1, vocabulary=10)  # 4: 1 + 3, 7: 2
        tensor([20.], dtype=torch.float64)
    """
    keys, place = torch.unique(pair * vocabulary + ids, return_inverse=True)
    of_keys = d.new_zeros(len(keys), d.shape[-1]).index_add_(0, place, d)
    squares = torch.zeros(pairs, dtype=wide(d.device), device=d.device)
    return squares.index_add_(0, keys // vocabulary, vector_squares(of_keys))


def vector_squares(gradient: Tensor) -> Tensor:
    r"""Squared norm of a gradient that is at hand, :math:`\lVert g_i \rVert^2`.

    Args:
        gradient: shape ``(n, size)``.

    Returns:
        Shape ``(n,)``, float64.

    Example:
        >>> vector_squares(torch.tensor([[3.0, 4.0]]))
        tensor([25.], dtype=torch.float64)
    """
    return gradient.square().sum(dim=-1).to(wide(gradient.device))


def wide(device: torch.device) -> torch.dtype:
    """The dtype that squares are added up in: float64, but float32 on Apple's devices, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(values: Tensor) -> Tensor:
    """Values in the precision that gradients are computed in: float32, or float64 if they have it."""
    return values if values.dtype == torch.float64 else values.float()


def _rotated(values: Tensor, aligned: int) -> Tensor:
    if not aligned:
        return values.clone()
    chosen, rejected = values[:, :aligned], values[:, aligned : 2 * aligned]
    return torch.cat([chosen + rejected, chosen - rejected, values[:, 2 * aligned :]], dim=1)
