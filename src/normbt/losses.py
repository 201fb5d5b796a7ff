"""Bradley-Terry losses of each pair: margin inside or outside the sigmoid, label smoothing, auxiliary terms."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bt_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float | None = 0.0, *, smoothing: float = 0.0) -> Tensor:
    r"""Bradley-Terry loss of each pair, not reduced.

    .. math:: \ell_i = -(1-s)\log\sigma(z_i) - s\log\sigma(-z_i), \qquad z_i = r^+_i - r^-_i - m_i

    Args:
        chosen: rewards of the preferred answers, shape ``(pairs,)``.
        rejected: rewards of the other answers, shape ``(pairs,)``.
        margin: lead the preferred answer should have, in reward units; scalar or ``(pairs,)``. None is 0.
        smoothing: share of labels believed flipped, in ``[0, 0.5)``.

    Returns:
        Loss in nats, shape ``(pairs,)``, float32 or wider.

    Raises:
        ValueError: shapes differ, or ``smoothing`` is outside ``[0, 0.5)``.

    Example:
        >>> bt_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor([0.1269, 0.6931])

    References:
        Bradley and Terry (1952); margin inside: Llama 2, arXiv 2307.09288, eq. 2; smoothing: the label-smoothed
        baseline of arXiv 2512.06343.
    """
    if not 0.0 <= smoothing < 0.5:
        raise ValueError(f"smoothing must be in [0, 0.5), got {smoothing}: at 0.5 the labels carry no information.")
    lead = _lead(chosen, rejected)
    if margin is not None:
        lead = lead - _per_pair(margin, lead)  # Llama 2, eq. 2
    loss = -logsigmoid(lead)
    return loss if smoothing == 0.0 else (1.0 - smoothing) * loss - smoothing * logsigmoid(-lead)


def scaled_bt_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float) -> Tensor:
    r"""Bradley-Terry loss of each pair with the margin outside the sigmoid ("scaled BT"), not reduced.

    .. math:: \ell_i = -m_i \log\sigma(r^+_i - r^-_i)

    Args:
        chosen: rewards of the preferred answers, shape ``(pairs,)``.
        rejected: rewards of the other answers, shape ``(pairs,)``.
        margin: strength of the preference, a factor without unit; scalar or ``(pairs,)``.

    Returns:
        Loss in nats, shape ``(pairs,)``, float32 or wider.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> scaled_bt_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0]))
        tensor([0.1269, 1.3863])

    References:
        HelpSteer2-Preference, arXiv 2410.01257, "Scaled Bradley-Terry".
    """
    lead = _lead(chosen, rejected)
    return -_per_pair(margin, lead) * logsigmoid(lead)


def centering_term(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Auxiliary term that pulls the rewards of each pair towards mean zero, as TRL's ``center_rewards_coefficient``.

    .. math:: c_i = (r^+_i + r^-_i)^2

    Args:
        chosen: rewards of the preferred answers, shape ``(pairs,)``.
        rejected: rewards of the other answers, shape ``(pairs,)``.

    Returns:
        Term of each pair, in squared reward units, shape ``(pairs,)``.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> centering_term(torch.tensor([2.0, 1.0]), torch.tensor([0.0, -1.0]))
        tensor([4., 0.])

    References:
        Eisenstein et al. (2023), arXiv 2312.09244, eq. 2.
    """
    _lead(chosen, rejected)
    return (_widened(chosen) + _widened(rejected)).square()


def sum_to_zero_term(chosen: Tensor, rejected: Tensor, *, counted: Tensor | None = None) -> Tensor:
    r"""Batch-wise sum-to-zero regularisation (BSR): the squared mean reward of all answers, the same for each pair.

    .. math:: b = \Bigl(\frac{1}{2n}\sum_{i=1}^{n} (r^+_i + r^-_i)\Bigr)^2

    It belongs to the rewards it is given: over micro-batches it is the BSR of each micro-batch, not of their union.

    Args:
        chosen: rewards of the preferred answers, shape ``(pairs,)``.
        rejected: rewards of the other answers, shape ``(pairs,)``.
        counted: which pairs the mean is over, shape ``(pairs,)``, boolean; None for all.

    Returns:
        Term in squared reward units, repeated to shape ``(pairs,)`` so that its mean is the term; 0 where no pair
        counts.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> sum_to_zero_term(torch.tensor([2.0, 1.0]), torch.tensor([0.0, 1.0]))
        tensor([1., 1.])

    References:
        Hong et al. (2025), arXiv 2505.07271; the mean in place of the sum, as in the authors' code.
    """
    _lead(chosen, rejected)
    both = _widened(chosen) + _widened(rejected)
    if counted is None:
        counted = torch.ones_like(both, dtype=torch.bool)
    # Masked, not selected: the size of a selection is a number that the host has to read.
    mean = torch.where(counted, both, 0.0).sum() / (2 * counted.sum()).clamp_min(1)
    return mean.square().expand(chosen.shape)


def _lead(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The reward difference of each pair; the one check of shapes."""
    if chosen.shape != rejected.shape or chosen.dim() != 1:
        raise ValueError(
            f"rewards must be two vectors of the same length, one entry per pair; "
            f"got chosen {tuple(chosen.shape)} and rejected {tuple(rejected.shape)}."
        )
    return _widened(chosen) - _widened(rejected)


def _per_pair(margin: Tensor | float, lead: Tensor) -> Tensor | float:
    # A (pairs, 1) margin would broadcast the loss to (pairs, pairs) without a word.
    if isinstance(margin, Tensor) and margin.dim() > 0 and margin.shape != lead.shape:
        raise ValueError(f"margin must be a scalar or have shape {tuple(lead.shape)}, got {tuple(margin.shape)}.")
    return margin


def _widened(rewards: Tensor) -> Tensor:
    # bf16 near |r| = 10 has a spacing of 0.0625: differences and logarithms are taken in float32 at least.
    return rewards.float() if rewards.dtype in (torch.bfloat16, torch.float16) else rewards
