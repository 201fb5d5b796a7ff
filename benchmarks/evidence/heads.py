"""Train many small heads on fixed features at once: arms and seeds in one tensor, with the package's own losses.

A head is Linear, GELU, Linear of one output: the last one reads the learned h. Seeds and arms are leading dimensions of
one batched product, so that a hundred runs cost little more than the arithmetic. Arms of a seed start from the same
weights and see the same batches and the same flipped labels. One optimizer step is one batch, and mu moves once with
it: what :class:`normbt.weights.NormBTLoss` does in a plain loop (tests/test_evidence.py compares the two).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from normbt.losses import bt_loss, scaled_bt_loss
from normbt.stats import pair_outcomes
from normbt.weights import Distance, EmaState, Weighting, pair_distance, pair_weights, update_ema

HIDDEN = 64
Optimizer = Literal["adamw", "sgd", "momentum"]


@dataclass(frozen=True)
class Arm:
    """A method.

    Attributes:
        weighting: as in :class:`normbt.objective.Objective`.
        distance: kind of distance.
        max_weight: largest weight; None for no bound.
        beta: of the running mean.
        power: the weight is mu over the distance to this power, with mu the running mean of that power.
        gradient_norm: the distance is replaced by what it stands in for, :func:`score_gradient_norm`.
        per_length: the distance is divided by the root of the mean number of tokens of the two sequences.
        anneal: ``in`` moves the weight from 1 to its value over the first half of the steps, ``out`` the reverse.
        margin: ``inside`` or ``outside`` of the sigmoid; None for no margin.
        smoothing: of the labels.
        layer_norm: the last Linear reads the normalised h (without learned scale, which the Linear has itself).
        clip: largest norm of the gradient of one step; None for no bound.
    """

    weighting: Weighting = "none"
    distance: Distance = "l2"
    max_weight: float | None = 10.0
    beta: float = 0.9
    power: float = 1.0
    gradient_norm: bool = False
    per_length: bool = False
    anneal: Literal["in", "out"] | None = None
    margin: Literal["inside", "outside"] | None = None
    smoothing: float = 0.0
    layer_norm: bool = False
    clip: float | None = None


class Data(NamedTuple):
    """Pairs as the heads read them.

    Attributes:
        features: shape ``(pairs, 2, width)``, chosen first.
        tokens: mean length of the two sequences, shape ``(pairs,)``.
        margin: shape ``(pairs,)``.
    """

    features: Tensor
    tokens: Tensor
    margin: Tensor

    def take(self, rows: NDArray[np.integer]) -> "Data":
        """Some of the pairs."""
        return Data(*(column[torch.as_tensor(rows)] for column in self))


@dataclass(frozen=True)
class Training:
    """How heads are trained.

    Attributes:
        optimizer: AdamW without weight decay, SGD, or SGD with momentum 0.9.
        learning_rate: at the first step; it falls to zero in a straight line.
        batch: pairs of a step; what is left over at the end of an epoch is dropped.
        epochs: passes over the pairs, each in a new order.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    batch: int = 64
    epochs: int = 5


class Heads(NamedTuple):
    """Weights of all heads: ``inner`` is ``(seeds, width, arms, hidden)``, the others ``(seeds, arms, hidden)``."""

    inner: Tensor
    bias: Tensor
    outer: Tensor


class Trained(NamedTuple):
    """What training gave.

    Attributes:
        heads: at the end.
        correct: whether each evaluated pair is ranked right, shape ``(points, arms, seeds, pairs)``; one point for each
            step of ``watch``, and the end.
        mu: the running mean after every step, shape ``(arms, seeds, steps)``; 0 where the arm has no weight.
        steps: number of steps.
    """

    heads: Heads
    correct: NDArray[np.bool_]
    mu: NDArray[np.float32]
    steps: int


def start(width: int, arms: int, seeds: Sequence[int]) -> Heads:
    """The heads before the first step, as ``torch.nn.Linear`` draws them; arms of a seed are equal."""
    inner, bias, outer = [], [], []
    for seed in seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, last = torch.nn.Linear(width, HIDDEN), torch.nn.Linear(HIDDEN, 1, bias=False)
        inner.append(first.weight.detach().T[:, None].expand(-1, arms, -1))
        bias.append(first.bias.detach()[None].expand(arms, -1))
        outer.append(last.weight.detach()[0][None].expand(arms, -1))
    return Heads(*(torch.stack(parts).contiguous().requires_grad_() for parts in (inner, bias, outer)))


def orders(pairs: int, training: Training, seeds: Sequence[int]) -> list[Tensor]:
    """Pairs of every step, each of shape ``(seeds, batch)``: the same for all arms of a seed."""
    per_seed = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        whole = pairs // training.batch * training.batch
        epochs = [torch.randperm(pairs, generator=generator)[:whole] for _ in range(training.epochs)]
        per_seed.append(torch.cat(epochs).view(-1, training.batch))
    return list(torch.stack(per_seed, dim=1))


def train(
    arms: Sequence[Arm],
    data: Data,
    training: Training,
    seeds: Sequence[int],
    evaluated: Data,
    *,
    flips: NDArray[np.bool_] | None = None,
    watch: Sequence[int] = (),
) -> Trained:
    """Train every arm with every seed.

    Args:
        arms: the methods.
        data: pairs to train on.
        training: optimizer, batches, epochs.
        seeds: of the weights and of the order of the pairs.
        evaluated: pairs to rank.
        flips: pairs whose label is turned round, shape ``(seeds, pairs)``.
        watch: numbers of steps done at which the pairs are ranked too.
    """
    heads = start(data.features.shape[-1], len(arms), seeds)
    batches = orders(len(data.features), training, seeds)
    optimizer = _optimizer(heads, training)
    half = len(batches) / 2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    means = [EmaState(torch.zeros(len(seeds)), torch.zeros(len(seeds), dtype=torch.long)) for _ in arms]
    flipped = None if flips is None else torch.as_tensor(flips)
    seen, paths = [], []
    for step, batch in enumerate(batches):
        if step in watch:
            seen.append(ranked_right(arms, heads, evaluated))
        rows = data.features[batch]
        if flipped is not None:
            turned = flipped.gather(1, batch)[:, :, None, None]
            rows = torch.where(turned, rows.flip(2), rows)
        hidden, rewards = forward(arms, heads, rows.transpose(1, 2).flatten(1, 2))
        losses = []
        for place, arm in enumerate(arms):
            chosen_hidden, rejected_hidden = hidden[place].detach().chunk(2, dim=1)
            chosen, rejected = (side.flatten() for side in rewards[place].chunk(2, dim=1))
            margin = data.margin[batch].flatten()
            loss = _pair_loss(arm, chosen, rejected, margin).view(batch.shape)
            if arm.gradient_norm:
                distance = score_gradient_norm(heads, place, *rows.unbind(2))
            else:
                distance = pair_distance(
                    chosen_hidden.flatten(0, 1), rejected_hidden.flatten(0, 1), kind=arm.distance
                ).view(batch.shape)
            if arm.per_length:
                distance = distance / data.tokens[batch].sqrt()
            weight, means[place] = _weights(arm, distance, means[place], progress=min(1.0, step / half))
            losses.append((weight * loss).mean(dim=1).sum())
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        _clip(arms, heads)
        optimizer.step()
        schedule.step()
        paths.append(torch.stack([torch.as_tensor(state.mean) for state in means]))
    seen.append(ranked_right(arms, heads, evaluated))
    return Trained(heads, np.stack(seen), torch.stack(paths, dim=-1).numpy(), len(batches))


def forward(arms: Sequence[Arm], heads: Heads, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What the last Linear reads, ``(seeds, rows, hidden)`` for each arm, and the rewards, ``(seeds, rows)``.

    Args:
        arms: the methods.
        heads: their weights.
        rows: features, shape ``(seeds, rows, width)``.
    """
    inner = torch.baddbmm(heads.bias.flatten(1)[:, None], rows, heads.inner.flatten(2))
    parts = gelu(inner).unflatten(2, (len(arms), HIDDEN)).unbind(dim=2)
    hidden = [layer_norm(part, (HIDDEN,)) if arm.layer_norm else part for arm, part in zip(arms, parts, strict=True)]
    return hidden, [(part @ heads.outer[:, place, :, None]).squeeze(-1) for place, part in enumerate(hidden)]


@torch.no_grad()
def score_gradient_norm(heads: Heads, place: int, chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Norm of the gradient of each pair's reward difference in all weights of a head, without a LayerNorm in it.

    With :math:`a = v \odot \mathrm{gelu}'(z)` the gradient in the inner weights is
    :math:`a_c x_c^\top - a_r x_r^\top = (a_c - a_r) x_c^\top + a_r (x_c - x_r)^\top`; in this form nothing large
    cancels where the pair is close.

    Args:
        heads: weights of all heads.
        place: of the arm.
        chosen: features, shape ``(seeds, pairs, width)``.
        rejected: the same of the other answers.

    Returns:
        Shape ``(seeds, pairs)``. Times the prediction error it is the norm of the gradient of the pair's BT loss.
    """

    def read(rows: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.baddbmm(heads.bias[:, place, None], rows, heads.inner[:, :, place])
        density = torch.exp(-before.square() / 2) / math.sqrt(2 * math.pi)
        slope = torch.special.ndtr(before) + before * density
        return gelu(before), heads.outer[:, place, None] * slope

    (hidden, slope), (other, other_slope) = read(chosen), read(rejected)
    step, apart = slope - other_slope, chosen - rejected
    inner = (
        step.square().sum(2) * chosen.square().sum(2)
        + other_slope.square().sum(2) * apart.square().sum(2)
        + 2 * (step * other_slope).sum(2) * (chosen * apart).sum(2)
    )
    return (inner.clamp_min(0) + step.square().sum(2) + (hidden - other).square().sum(2)).sqrt()


@torch.no_grad()
def ranked_right(arms: Sequence[Arm], heads: Heads, data: Data, *, chunk: int = 500) -> NDArray[np.bool_]:
    """Whether each pair is ranked right, shape ``(arms, seeds, pairs)``; a tie is wrong."""
    found = []
    for rows in data.features.split(chunk):
        both = torch.cat([rows[:, 0], rows[:, 1]]).expand(len(heads.inner), -1, -1)
        rewards = torch.stack(forward(arms, heads, both)[1])
        chosen, rejected = rewards.chunk(2, dim=2)
        right = pair_outcomes(chosen.flatten().numpy(), rejected.flatten().numpy()).correct
        found.append(np.asarray(right, dtype=np.bool_).reshape(chosen.shape))
    return np.concatenate(found, axis=2)


def _pair_loss(arm: Arm, chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    if arm.margin == "outside":
        return scaled_bt_loss(chosen, rejected, margin)
    return bt_loss(chosen, rejected, margin if arm.margin == "inside" else None, smoothing=arm.smoothing)


def _weights(arm: Arm, distance: Tensor, state: EmaState, *, progress: float) -> tuple[Tensor, EmaState]:
    """Weight of each pair, ``(seeds, pairs)``, and the running mean after this step."""
    if arm.weighting == "none":
        return torch.ones_like(distance), state
    powered = distance if arm.power == 1.0 else distance**arm.power
    moved = update_ema(state, powered.sum(dim=1), powered.shape[1], arm.beta)
    mean = torch.as_tensor(moved.mean)
    if arm.weighting == "normbt":  # mu as it was before the batch; the first batch uses its own mean
        mean = torch.where(torch.as_tensor(state.count) == 0, mean, torch.as_tensor(state.mean))
    elif arm.weighting == "batch":
        mean = powered.mean(dim=1)
    else:
        mean = torch.ones_like(mean)
    weight = pair_weights(powered, mean[:, None], max_weight=arm.max_weight)
    if arm.anneal is not None:
        share = progress if arm.anneal == "in" else 1.0 - progress
        weight = 1.0 + share * (weight - 1.0)
    return weight, moved


def _clip(arms: Sequence[Arm], heads: Heads) -> None:
    """Scale the gradient of every run of an arm that has a bound, as ``torch.nn.utils.clip_grad_norm_`` does."""
    for place, arm in enumerate(arms):
        if arm.clip is None:
            continue
        parts = [heads.inner.grad[:, :, place], heads.bias.grad[:, place], heads.outer.grad[:, place]]  # type: ignore[index]
        norm = torch.stack([part.flatten(1).square().sum(1) for part in parts]).sum(0).sqrt()
        scale = (arm.clip / (norm + 1e-6)).clamp_max(1.0)
        for part in parts:
            part *= scale.view(-1, *[1] * (part.dim() - 1))


def _optimizer(heads: Heads, training: Training) -> torch.optim.Optimizer:
    if training.optimizer == "adamw":
        return torch.optim.AdamW(heads, lr=training.learning_rate, weight_decay=0.0)
    momentum = 0.9 if training.optimizer == "momentum" else 0.0
    return torch.optim.SGD(heads, lr=training.learning_rate, momentum=momentum)
