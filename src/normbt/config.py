"""Settings of a training run: what TRL's RewardConfig has, and the loss and weighting of the pairs."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardConfig

from normbt.encoding import Overlong
from normbt.errors import ConfigError
from normbt.live_view import ProbeNorm
from normbt.objective import Loss
from normbt.packing import Batching
from normbt.weights import Distance, Weighting

OnNonfinite = Literal["stop", "skip"]


@dataclass
class NormBTConfig(RewardConfig):
    r"""Settings of :class:`normbt.trainer.NormBTTrainer`: all of ``trl.RewardConfig``, and those below.

    Each setting's meaning, unit and range stand in its ``help`` text, which ``normbt train --help`` prints. Three
    defaults of TRL's differ: ``bf16`` is on only where the GPU has it, ``gradient_checkpointing`` depends on the free
    memory, and ``logging_nan_inf_filter`` is off, since it hides a NaN loss and reads the device at every step.

    Raises:
        ConfigError: settings are out of range or contradict each other; all problems are named at once.

    Example:
        >>> config = NormBTConfig(output_dir="out", weighting="none", report_to="none")
        >>> config.loss, config.beta
        ('bt', 0.9)
    """

    loss: Loss = field(
        default="bt",
        metadata={
            "help": "Pair loss: 'bt' is Bradley-Terry, with a `margin` column inside the sigmoid; 'scaled_bt' "
            "multiplies each pair's loss by its `margin` instead."
        },
    )
    use_margin: bool = field(
        default=True,
        metadata={"help": "Whether the loss reads the `margin` column where the data have one, as in TRL."},
    )
    smoothing: float = field(
        default=0.0,
        metadata={"help": "Label smoothing of loss 'bt': share of labels believed flipped, in [0, 0.5)."},
    )
    weighting: Weighting = field(
        default="normbt",
        metadata={
            "help": "Weight of each pair: 'normbt' is mu / (distance + eps) with mu a running mean over optimizer "
            "steps, 'none' is 1, 'raw' is 1 / (distance + eps), 'batch' uses the mean distance of the micro-batch "
            "over all processes in place of mu."
        },
    )
    distance: Distance = field(
        default="l2",
        metadata={
            "help": "Distance between what the head reads of both answers: 'l2' (as published), 'relative' (divided "
            "by their mean norm), 'cosine' (1 - cosine similarity)."
        },
    )
    beta: float = field(
        default=0.9, metadata={"help": "Share of the old mu that stays at each optimizer step, in [0, 1)."}
    )
    eps: float = field(default=1e-6, metadata={"help": "Added to the distance, in its unit; positive."})
    max_weight: float | None = field(
        default=10.0,
        metadata={"help": "Largest weight of a pair, positive; 'none' gives the formula as published."},
    )
    mu_init: float | None = field(
        default=None,
        metadata={
            "help": "mu at the first optimizer step, in the distance's unit, positive. Default: the mean distance of "
            "that step's pairs, which costs one forward pass more at the first step."
        },
    )
    bsr_coefficient: float | None = field(
        default=None,
        metadata={
            "help": "Coefficient of batch-wise sum-to-zero regularisation (arXiv 2505.07271): the squared mean reward "
            "of each micro-batch. None or 0 leaves it out."
        },
    )
    overlong: Overlong = field(
        default="drop",
        metadata={
            "help": "Pairs longer than `max_length` tokens: 'drop' them (as TRL does), or 'truncate-prompt' to cut "
            "the beginning of the prompt and keep both answers whole. Both are counted and reported."
        },
    )
    batching: Batching = field(
        default="packed",
        metadata={
            "help": "Layout of the pairs: 'packed' puts several in one row without padding and computes their common "
            "prefix once; 'packed-unshared' computes both sequences whole; 'padded' gives each sequence a row, "
            "similar lengths together. All give the same rewards; a model for which packing is not exact is padded, "
            "with a message."
        },
    )
    token_budget: int | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a micro-batch, padding included; a longer pair is alone. The pairs of an optimizer "
            "step are still per_device_train_batch_size x gradient_accumulation_steps. Default: chosen from the free "
            "memory."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to recompute activations in the backward pass. Default: only where the activations would "
            "not fit into the free memory. Named `activation_checkpointing` in newer Transformers; both are taken."
        },
    )
    on_nonfinite: OnNonfinite = field(
        default="stop",
        metadata={
            "help": "What happens when a pair's numbers or a step's gradient are NaN or Inf. Such a gradient is never "
            "applied, and the pairs are named at the next log; 'stop' ends the run there, 'skip' counts and goes on."
        },
    )
    probe_steps: int | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps between two looks at who gets the update: shares by distance, accuracy and "
            "correlation on a fixed probe of pairs, in the training log. None for none."
        },
    )
    probe_pairs: int = field(
        default=64,
        metadata={
            "help": "Pairs of the probe, at least 3: drawn once with `seed` from the evaluation set, or from the "
            "training set where there is none."
        },
    )
    probe_norm: ProbeNorm = field(
        default="full",
        metadata={
            "help": "Gradient norm of the probe: 'full' is over all trained parameters; 'head' over the scoring head, "
            "where it equals the distance and needs no backward pass."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Transformers' way to hide NaN and Inf in the logged loss; costs a device sync per step. Off here: "
            "`on_nonfinite` finds them."
        },
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            # TRL's default, bf16 unless fp16, ends in an error on a machine without it.
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        self.checkpointing_is_automatic = self.gradient_checkpointing is None and self.activation_checkpointing is None
        super().__post_init__()
        if isinstance(self.resume_from_checkpoint, str):  # on the command line every value is text
            switch: Any = {"true": True, "false": None}
            self.resume_from_checkpoint = switch.get(self.resume_from_checkpoint.lower(), self.resume_from_checkpoint)
        problems = []
        if not 0.0 <= self.smoothing < 0.5:
            problems.append(f"smoothing must be in [0, 0.5), got {self.smoothing}.")
        if self.smoothing and self.loss != "bt":
            problems.append(f"smoothing belongs to loss 'bt', got loss {self.loss!r}.")
        if self.loss == "scaled_bt" and not self.use_margin:
            problems.append("loss 'scaled_bt' multiplies by the margin, got use_margin False.")
        if not 0.0 <= self.beta < 1.0:
            problems.append(f"beta must be in [0, 1), got {self.beta}.")
        if self.eps <= 0:
            problems.append(f"eps must be positive, got {self.eps}.")
        if self.max_weight is not None and self.max_weight <= 0:
            problems.append(f"max_weight must be positive, or none for no bound; got {self.max_weight}.")
        if self.mu_init is not None and self.mu_init <= 0:
            problems.append(f"mu_init must be positive, got {self.mu_init}.")
        if self.token_budget is not None and self.token_budget < 1:
            problems.append(f"token_budget must be a positive number of tokens, got {self.token_budget}.")
        if self.mu_init is not None and self.weighting != "normbt":
            problems.append(f"mu_init belongs to weighting 'normbt', got weighting {self.weighting!r}.")
        if self.probe_steps is not None and self.probe_steps < 1:
            problems.append(f"probe_steps must be at least 1, or none; got {self.probe_steps}.")
        if self.probe_pairs < 3:
            problems.append(f"probe_pairs must be at least 3, one for each third by distance; got {self.probe_pairs}.")
        if self.train_sampling_strategy == "batch_rebalance":
            problems.append(
                "train_sampling_strategy 'batch_rebalance' is not for pairs, nor needed: processes share those of a "
                "step by their cost. Use random, group_by_length or sequential."
            )
        choices_of = {"loss": Loss, "weighting": Weighting, "distance": Distance, "overlong": Overlong}
        for name, choices in (
            choices_of | {"batching": Batching, "on_nonfinite": OnNonfinite, "probe_norm": ProbeNorm}
        ).items():
            value, known = getattr(self, name), get_args(choices)
            if value not in known:
                problems.append(f"{name} must be one of {', '.join(known)}; got {value!r}.")
        if problems:
            raise ConfigError("\n".join(problems))
