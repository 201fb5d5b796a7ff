"""Slow twins of the formulas: plain Python loops in double precision, written from the equations alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Vector = Sequence[float]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def bt_losses(chosen: Vector, rejected: Vector, margins: Vector | None = None, smoothing: float = 0.0) -> list[float]:
    """-(1 - s) log sigma(z) - s log sigma(-z) with z = chosen - rejected - margin."""
    losses = []
    for i in range(len(chosen)):
        lead = chosen[i] - rejected[i] - (margins[i] if margins is not None else 0.0)
        losses.append(-(1 - smoothing) * log_sigmoid(lead) - smoothing * log_sigmoid(-lead))
    return losses


def scaled_bt_losses(chosen: Vector, rejected: Vector, margins: Vector) -> list[float]:
    """-m log sigma(chosen - rejected)."""
    return [-margins[i] * log_sigmoid(chosen[i] - rejected[i]) for i in range(len(chosen))]


def norm(vector: Vector) -> float:
    return math.sqrt(math.fsum(x * x for x in vector))


def distances(chosen: Sequence[Vector], rejected: Sequence[Vector], kind: str = "l2") -> list[float]:
    """Distance of each pair of representations."""
    result = []
    for h_chosen, h_rejected in zip(chosen, rejected, strict=True):
        l2 = norm([a - b for a, b in zip(h_chosen, h_rejected, strict=True)])
        if kind == "l2":
            result.append(l2)
        elif kind == "relative":
            result.append(l2 / ((norm(h_chosen) + norm(h_rejected)) / 2))
        else:
            dot = math.fsum(a * b for a, b in zip(h_chosen, h_rejected, strict=True))
            result.append(1 - dot / (norm(h_chosen) * norm(h_rejected)))
    return result


def weights(distance: Vector, mu: float, eps: float = 1e-6, max_weight: float | None = 10.0) -> list[float]:
    """mu / (d + eps), at most max_weight."""
    return [min(mu / (d + eps), math.inf if max_weight is None else max_weight) for d in distance]


class NormBT:
    """The published method step by step: weight with mu, then move mu."""

    def __init__(self, beta: float = 0.9, eps: float = 1e-6, max_weight: float | None = 10.0) -> None:
        self.beta, self.eps, self.max_weight = beta, eps, max_weight
        self.mu: float | None = None

    def step(
        self, chosen: Vector, rejected: Vector, chosen_hidden: Sequence[Vector], rejected_hidden: Sequence[Vector]
    ) -> float:
        distance = distances(chosen_hidden, rejected_hidden)
        mean = math.fsum(distance) / len(distance)
        if self.mu is None:
            self.mu = mean
            mu = mean
        else:
            mu = self.mu
            self.mu = self.beta * self.mu + (1 - self.beta) * mean
        weight = weights(distance, mu, self.eps, self.max_weight)
        losses = bt_losses(chosen, rejected)
        return math.fsum(w * loss for w, loss in zip(weight, losses, strict=True)) / len(losses)


def pair_gradient_squares(rewards: Callable[[int], tuple[Any, Any]], parameters: Mapping[str, Any], pairs: int) -> Any:
    """Squared gradient norm of r_chosen - r_rejected by each parameter: ``.grad`` and Python sums, pair by pair.

    ``rewards`` runs the model on one pair and returns its two rewards. Rows are parameters, columns pairs.
    """
    squares: dict[str, list[float]] = {name: [] for name in parameters}
    for pair in range(pairs):
        for parameter in parameters.values():
            parameter.grad = None
        chosen, rejected = rewards(pair)
        (chosen - rejected).backward()
        for name, parameter in parameters.items():
            gradient = [] if parameter.grad is None else parameter.grad.double().flatten().tolist()
            squares[name].append(math.fsum(value * value for value in gradient))
            parameter.grad = None
    return squares
