"""Quantiles and tails of the normal and of Student's t distribution, as plain numbers; scipy ships no types."""

from statistics import NormalDist

from scipy.special import stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] # ships none

normal_quantile = NormalDist().inv_cdf
"""Quantile of the standard normal distribution."""

normal_cdf = NormalDist().cdf
"""Probability that a standard normal variable is at most this."""


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution.

    Example:
        >>> round(t_quantile(0.975, 2), 3), round(t_quantile(0.975, 4), 3)
        (4.303, 2.776)
    """
    return float(stdtrit(degrees, probability))  # pyright: ignore[reportUnknownArgumentType] # no stubs


def t_two_sided(statistic: float, degrees: float) -> float:
    """Probability that a t variable lies at least this far from zero, on either side.

    Example:
        >>> round(t_two_sided(4.303, 2), 3)
        0.05
    """
    return float(2 * stdtr(degrees, -abs(statistic)))  # pyright: ignore[reportUnknownArgumentType] # no stubs
