"""What a comparison could have seen: detectable differences and the number of pairs they need."""

import math

from scipy.optimize import brentq  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] # ships none

from normbt.stats.quantiles import normal_quantile, t_quantile


def pairs_needed(difference: float, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    r"""Number of independent pairs with which McNemar's test finds a difference with the given power.

    .. math:: n = \frac{\bigl(z_{1-\alpha/2}\sqrt{\psi} + z_{\mathrm{power}}\sqrt{\psi - \Delta^2}\bigr)^2}{\Delta^2}

    Args:
        difference: true difference of the two accuracies :math:`\Delta`, as a share; its sign does not count.
        discordance: share of the pairs :math:`\psi` that exactly one of the two models ranks right, at least
            ``|difference|``.
        alpha: level of the two-sided test.
        power: probability of finding the difference.

    Returns:
        The number, not rounded; infinite for no difference.

    Raises:
        ValueError: the discordance is smaller than the difference it would have to hold, or more than 1.

    Example:
        >>> [math.ceil(pairs_needed(points / 100, 0.2)) for points in (5, 2, 1)]
        [626, 3923, 15696]

    References:
        Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 1987.
    """
    size = abs(difference)
    if not size <= discordance <= 1:
        raise ValueError(f"wanted |difference| <= discordance <= 1, found {difference} and {discordance}")
    if size == 0:
        return float("inf")
    level, reach = normal_quantile(1 - alpha / 2), normal_quantile(power)
    return (level * math.sqrt(discordance) + reach * math.sqrt(discordance - size**2)) ** 2 / size**2


def detectable_difference(pairs: float, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest true difference that McNemar's test on so many independent pairs finds with the given power.

    Args:
        pairs: number of pairs.
        discordance: share of the pairs that exactly one of the two models ranks right.
        alpha: level of the two-sided test.
        power: probability of finding the difference.

    Returns:
        The difference as a share, the inverse of :func:`pairs_needed`; None where even a difference as large as the
        discordance would be missed, or the models never disagree.

    Example:
        >>> round(detectable_difference(626, 0.2), 4)
        0.05
        >>> detectable_difference(20, 0.05) is None
        True
    """
    if discordance <= 0 or pairs_needed(discordance, discordance, alpha=alpha, power=power) > pairs:
        return None
    smallest = min(1e-9, discordance / 2)
    return float(
        brentq(lambda size: pairs_needed(size, discordance, alpha=alpha, power=power) - pairs, smallest, discordance)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType, reportArgumentType] # no stubs
    )


def detectable_from_error(
    standard_error: float, *, degrees: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    r"""The smallest true difference found with the given power, from the standard error of the difference.

    .. math:: \Delta = \bigl(t_{\nu, 1-\alpha/2} + z_{\mathrm{power}}\bigr)\, \mathrm{SE}

    Unlike :func:`detectable_difference` it holds for weighted scores, clustered pairs and several seeds, because the
    standard error does. For independent pairs that count the same the two agree up to the size of the difference.

    Args:
        standard_error: of the difference.
        degrees: its degrees of freedom.
        alpha: level of the two-sided test.
        power: probability of finding the difference.

    Returns:
        The difference, in the unit of the standard error; None where the error is not known.

    Example:
        >>> round(detectable_from_error(0.0179, degrees=1e9), 3)
        0.05
    """
    if standard_error <= 0 or degrees <= 0:
        return None
    return (t_quantile(1 - alpha / 2, degrees) + normal_quantile(power)) * standard_error
