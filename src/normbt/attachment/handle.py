"""NormBT under any trainer: the gradient of each pair's scores is multiplied by the pair's weight."""

import logging
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normbt.attachment.capture import AttachedCapture
from normbt.attachment.pairs import Layout, Pairs, largest, sum_and_count
from normbt.errors import ConfigError, DataError, ModelError, StateError
from normbt.metrics import weight_metrics
from normbt.weights import Distance, EmaState, all_reduce_sum, pair_distance, pair_weights, update_ema

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-5
"""Largest ``|g_chosen + g_rejected|`` of a pair, as a share of the micro-batch's largest gradient, that is rounding. A
loss of reward differences gives exactly 0, in every dtype: the two gradients are one number and its negative."""


def attach(
    model: nn.Module,
    layout: Layout = "halves",
    *,
    beta: float = 0.9,
    eps: float = 1e-6,
    max_weight: float | None = 10.0,
    distance: Distance = "l2",
    mu_init: float | None = None,
    head: str | None = None,
    optimizer: Optimizer | None = None,
) -> "Attachment":
    r"""Train a reward model with NormBT under a trainer whose loss stays as it is.

    .. math:: \frac{\partial L}{\partial r^\pm_i} \;\leftarrow\; w_i\,\frac{\partial L}{\partial r^\pm_i}, \qquad
        w_i = \min\Bigl(\frac{\mu}{d_i + \varepsilon},\; w_{\max}\Bigr)

    The weight carries no gradient, so multiplying the gradient of a pair's two scores by it is the same as multiplying
    the pair's loss. That is NormBT exactly, for every loss that is a sum over pairs of functions of the reward
    difference, however the trainer divides, scales or accumulates it. What the trainer logs as its loss stays
    unweighted.

    mu moves once per optimizer step, with the mean distance of all pairs whose gradient went into the step, over all
    micro-batches and ranks; all of them are weighted with the same mu. The step is seen through torch's optimizer
    hooks: it is that of any optimizer that holds parameters of the model. Where there is none (DeepSpeed ZeRO steps
    parameters of its own), :meth:`Attachment.step` is called after each step instead. The pairs of a step that a
    gradient scaler skips count in the next one. Unless ``mu_init`` is given, mu at the first step is the mean distance
    of the first micro-batch over all ranks.

    In evaluation mode gradients and mu stay as they are. In both modes the head runs as in
    :func:`normbt.capture_hidden`: in float32, on the last token of the attention mask.

    Args:
        model: a reward model; PEFT-wrapped too. It may be wrapped for several processes before or after this.
        layout: where a pair's two rows are. ``halves``: one forward, all rows of one side and then all of the other.
            ``interleaved``: one forward, the two rows of a pair one after the other. ``two-calls``: two forwards, of
            one side and then of the other.
        beta: share of the old mu that stays at each optimizer step, in ``[0, 1)``.
        eps: added to the distance, same unit, positive.
        max_weight: largest weight, or None for the formula as published.
        distance: as in :func:`normbt.pair_distance`.
        mu_init: mu at the first step, in the distance's unit, positive.
        head: name of the scoring head inside the unwrapped model, for a model in which it can't be found.
        optimizer: the optimizer whose step moves mu, where the parameters don't tell.

    Returns:
        The handle, to save its state, read its metrics and remove it; also a context manager that removes it.

    Raises:
        ConfigError: a setting is out of range, or the model has a handle already.
        ModelError: the model has no usable head. Later, from a forward, a backward or a step: the scores don't come
            from the head, or the loss is not one that this can weight exactly (see :meth:`Attachment.check`).
        DataError: later, from a forward: the rows don't make pairs.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with attach(model, layout="halves") as normbt:
        ...     chosen, rejected = model(torch.eye(4, 3)).squeeze(-1).chunk(2)
        ...     nn.functional.softplus(rejected - chosen).mean().backward()
        ...     optimizer.step()
        >>> normbt.state_dict()["updates"]
        1

    References:
        arXiv 2512.06343.
    """
    settings = {"beta": beta, "eps": eps, "max_weight": max_weight, "distance": distance}
    _check_settings(layout, mu_init, settings)
    return Attachment(model, layout, mu_init=mu_init, head=head, optimizer=optimizer, **settings)


class Attachment:
    """What :func:`attach` returns: the running mean of a model that trains elsewhere.

    Attributes:
        layout: where a pair's two rows are.
        settings: what gives mu its meaning; a state is loaded only into the same settings.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        *,
        mu_init: float | None,
        head: str | None,
        optimizer: Optimizer | None,
        **settings: Any,
    ) -> None:
        self.layout: Layout = layout
        self.settings = settings
        self._optimizer = optimizer
        self._ema = EmaState() if mu_init is None else EmaState(mu_init, 1)
        self._mu_is_set = mu_init is not None
        self._open: Pairs | None = None  # of "two-calls": one side has been seen, the other not yet
        self._is_pending = False  # a training forward since mu last moved
        self._steps = 0
        self._strangers = 0  # steps, since mu last moved, of optimizers that hold none of the model's parameters
        self._totals: Tensor | None = None  # sum and count of this step's distances, and the three findings
        self._reduced: Tensor | None = None
        self._this_step: list[Pairs] = []
        self._last_step: list[Pairs] = []
        self._warned: set[str] = set()
        self._mine: weakref.WeakSet[Optimizer] = weakref.WeakSet()

        self._capture = AttachedCapture(model, head, self.weigh)
        self._installed = ExitStack()
        self._installed.enter_context(self._capture.installed())
        # The hooks are torch's, and global: they must not keep the model alive.
        before, after = weakref.WeakMethod(self._before_step), weakref.WeakMethod(self._after_step)
        for hook in (
            register_optimizer_step_pre_hook(lambda optimizer, *_: _call(before, optimizer)),
            register_optimizer_step_post_hook(lambda optimizer, *_: _call(after, optimizer)),
        ):
            self._installed.callback(hook.remove)

    # --- what a user calls ----------------------------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Distances and weights of the latest optimizer step's pairs on this process, mu, and its updates so far.

        Reads the device once. Before the first step, only mu and updates.

        Returns:
            ``mu``, ``updates``, and what :func:`normbt.metrics.weight_metrics` gives.

        Raises:
            ModelError: as :meth:`check`.
        """
        self.check()
        metrics = {"mu": float(self._ema.mean), "updates": float(self._ema.count)}
        pairs = [pairs for pairs in self._last_step if len(pairs.distance)]
        if not pairs:
            return metrics
        distance = torch.cat([pair.distance for pair in pairs])
        weight = torch.cat([pair.weight for pair in pairs])
        return metrics | weight_metrics(distance, weight, max_weight=self.settings["max_weight"])

    def state_dict(self) -> dict[str, Any]:
        """mu, how many optimizer steps it has seen, and the settings; plain numbers and text, so JSON too.

        Raises:
            ModelError: as :meth:`check`.
        """
        self.check()
        return {"mu": float(self._ema.mean), "updates": int(self._ema.count), "settings": dict(self.settings)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Args:
            state: what :meth:`state_dict` gave.

        Raises:
            StateError: a field is missing, or the state was made with other settings; all differences are named.
        """
        missing = [name for name in ("mu", "updates", "settings") if name not in state]
        if missing:
            raise StateError(f"the saved state lacks {', '.join(missing)}; wanted what Attachment.state_dict() gave.")
        differences = [
            f"{name}: {state['settings'].get(name)!r} in the saved state, {wanted!r} now"
            for name, wanted in self.settings.items()
            if state["settings"].get(name) != wanted
        ]
        if differences:
            raise StateError(f"the saved state was made with other settings ({'; '.join(differences)}).")
        self._ema = EmaState(state["mu"], state["updates"])
        self._mu_is_set = state["updates"] > 0

    def step(self) -> None:
        """Say that an optimizer has stepped, where torch's hooks can't see it; without new pairs it does nothing.

        With several processes every process must call it. The order is forward, backward, optimizer, ``step()``.
        """
        self._gather()
        self._move()

    def check(self) -> None:
        """Whether the loss so far was one whose gradient can be scaled exactly; reads the device.

        It runs before the steps 1, 2, 4, 8, ... over the pairs of all ranks, so that the first step of a loss that
        does not fit is never made, and in :meth:`metrics` and :meth:`state_dict` over those of this process.

        Raises:
            ModelError: a pair's two gradients were not one number and its negative (the loss has terms besides the
                reward differences, or the layout is another), or several tokens of one row had a gradient.
        """
        if self._totals is not None:
            self._refuse(self._totals)

    def remove(self) -> None:
        """Leave the model as it was. The state stays readable."""
        self._installed.close()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    # --- forward and backward -------------------------------------------------------------------------------------

    def weigh(self, hidden: Tensor, scores: Tensor) -> None:
        """Make the gradient of these scores that of the weighted loss; called by the head for every forward.

        Args:
            hidden: what the head read, shape ``(rows, hidden)``.
            scores: what the model goes on with: one score for each row, shape ``(rows, 1)``, or the same at each token
                of a row, shape ``(rows, tokens, 1)``.
        """
        if not self._capture.model.training:
            if scores.requires_grad:
                scores.register_hook(self._warn_of_evaluation_mode)
            return
        if not scores.requires_grad:
            raise ModelError(
                "a forward in training mode without gradient: attach can't tell whether its pairs belong to the step. "
                "Call model.eval() for evaluation, and don't wrap the whole model into a reentrant checkpoint."
            )
        self._is_pending = True
        hidden = hidden.detach()
        if self.layout != "two-calls":
            if len(hidden) % 2:
                raise DataError(f"layout {self.layout!r} needs two rows for each pair; a forward had {len(hidden)}.")
            pairs = Pairs(self.layout)
            self._complete(pairs, *pairs.split(hidden))
            scores.register_hook(partial(self._scale, pairs, 0))
        elif self._open is None:
            self._open = Pairs(self.layout, first=hidden)
            scores.register_hook(partial(self._scale, self._open, 0))
        else:
            pairs, self._open = self._open, None
            first = pairs.first
            if first is None or first.shape != hidden.shape:
                shapes = f"{None if first is None else len(first)} rows and then {len(hidden)}"
                raise DataError(f"layout 'two-calls' needs forwards of the same rows for both sides; got {shapes}.")
            pairs.first = None
            self._complete(pairs, first, hidden)
            scores.register_hook(partial(self._scale, pairs, 1))

    def _complete(self, pairs: "Pairs", first: Tensor, second: Tensor) -> None:
        """Distance and weight, once both sides are known."""
        pairs.distance = pair_distance(first, second, kind=self.settings["distance"])
        if not self._mu_is_set:
            total, count = all_reduce_sum(sum_and_count(pairs.distance))
            self._ema = EmaState(total / count.clamp_min(1.0), 0)
            self._mu_is_set = True
        settings = {name: self.settings[name] for name in ("eps", "max_weight")}
        pairs.weight = pair_weights(pairs.distance, self._ema.mean, **settings)
        pairs.is_complete = True

    def _scale(self, pairs: "Pairs", call: int, gradient: Tensor) -> Tensor:
        """The hook on the scores; counts the pairs when their gradient is known."""
        if not pairs.is_complete:
            raise ModelError(
                "layout 'two-calls': the backward of the first side ran before the forward of the second, so the "
                "weights are not known. Call the model for both sides, then backward."
            )
        per_row = gradient.flatten(1)
        pairs.several_tokens.append(largest((per_row != 0).sum(dim=1) > 1))
        pairs.gradients[call] = per_row.sum(dim=1)
        if len(pairs.gradients) == pairs.calls and not pairs.is_counted:
            pairs.is_counted = True  # a second backward through a retained graph is the same pairs
            self._count(pairs)
        weight = pairs.weight if pairs.calls == 2 else pairs.join(pairs.weight)
        return gradient * weight.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))

    def _count(self, pairs: "Pairs") -> None:
        findings = torch.stack([*pairs.imbalances(), torch.stack(pairs.several_tokens).amax()])
        pairs.gradients.clear()
        pairs.several_tokens.clear()
        if self._totals is None:
            self._totals = findings.new_zeros(5)
        self._totals[:2] += sum_and_count(pairs.distance)
        self._totals[2:] = torch.maximum(self._totals[2:], findings)
        self._this_step.append(pairs)

    # --- optimizer steps ------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer) -> None:
        if self._is_mine(optimizer):
            self._gather()

    def _after_step(self, optimizer: Optimizer) -> None:
        if self._is_mine(optimizer):
            self._move()
        elif self._is_pending:
            self._strangers += 1
            if self._strangers == 2:
                self._warn_once(
                    "Optimizers that hold no parameter of the attached model have stepped twice since its last "
                    "forward, and mu has not moved. If they train it (DeepSpeed ZeRO steps parameters of its own), "
                    "call step() of the handle after each step, or pass the optimizer to attach()."
                )

    def _is_mine(self, optimizer: Optimizer) -> bool:
        if self._optimizer is not None:
            return optimizer is self._optimizer
        if optimizer in self._mine:
            return True
        # Asked again after a no: wrapping for several processes replaces parameters, in model and optimizer.
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in held for parameter in self._capture.model.parameters()):
            return False
        self._mine.add(optimizer)
        return True

    def _gather(self) -> None:
        """Sum this step's distances over all ranks, once for all optimizers of the step, and check the loss."""
        if not self._is_pending:
            return
        if self._open is not None:
            raise DataError("layout 'two-calls': an optimizer steps after a forward of one side without the other.")
        here = torch.zeros(5, device=self._capture.record.rewards.device) if self._totals is None else self._totals
        self._reduced = all_reduce_sum(here.clone())
        if (self._steps & (self._steps + 1)) == 0:  # the steps 1, 2, 4, 8, ...: a device sync each time would cost
            self._refuse(self._reduced)

    def _move(self) -> None:
        if self._reduced is None:
            return
        total, count = self._reduced[:2]
        self._ema = update_ema(self._ema, total, count, self.settings["beta"])
        self._last_step, self._this_step = self._this_step, []
        if self._totals is not None:
            self._totals[:2].zero_()
        self._reduced, self._is_pending, self._strangers = None, False, 0
        self._steps += 1

    def _refuse(self, totals: Tensor) -> None:
        imbalance, imbalance_of_other_layout, several_tokens = totals[2:].tolist()
        if several_tokens:
            raise ModelError(
                "the loss reads the scores of several tokens of a row; attach weights pairs, which have one score for "
                "each row. Token-level losses can't be weighted by a pair's distance."
            )
        if imbalance <= _TOLERANCE:
            return
        found = f"a pair's two gradients differ by {imbalance:.1g} of the largest; a pairwise loss gives one number and"
        if self.layout != "two-calls" and imbalance_of_other_layout <= _TOLERANCE:
            other = "interleaved" if self.layout == "halves" else "halves"
            raise ModelError(
                f"{found} its negative. They do so in the layout {other!r}: pass layout={other!r}, not {self.layout!r}."
            )
        raise ModelError(
            f"{found} its negative. Either the loss has terms besides the reward differences (centering such as TRL's "
            "center_rewards_coefficient, sum-to-zero or L2 terms), which attach would weight too and which must be "
            f"switched off, or the rows are not in the layout {self.layout!r}. With such terms use NormBTLoss or "
            "NormBTTrainer."
        )

    def _warn_of_evaluation_mode(self, gradient: Tensor) -> None:
        self._warn_once(
            "A backward ran through scores made in evaluation mode, in which attach leaves gradients alone. "
            "To train with NormBT, call model.train() before the forward."
        )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)


def _call(method: "weakref.WeakMethod[Any]", optimizer: Optimizer) -> None:
    if (bound := method()) is not None:
        bound(optimizer)


def _check_settings(layout: str, mu_init: float | None, settings: Mapping[str, Any]) -> None:
    problems: list[str] = []
    for name, value, known in (
        ("layout", layout, get_args(Layout)),
        ("distance", settings["distance"], get_args(Distance)),
    ):
        if value not in known:
            problems.append(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    if not 0.0 <= settings["beta"] < 1.0:
        problems.append(f"beta must be in [0, 1), got {settings['beta']}.")
    for name, value in (("eps", settings["eps"]), ("max_weight", settings["max_weight"]), ("mu_init", mu_init)):
        if value is not None and value <= 0:
            problems.append(f"{name} must be positive, got {value}.")
    if problems:
        raise ConfigError("\n".join(problems))
