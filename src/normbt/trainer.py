"""The trainer: TRL's RewardTrainer with any pair loss, any weighting, and a running mean that moves once per step."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import gather_object, is_peft_model
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, IntervalStrategy, SaveStrategy
from trl import RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from normbt.adapters import check_head_is_trained, reward_peft_config
from normbt.agreement import least_of_all, most_of_all
from normbt.attachment import is_attached
from normbt.attention import pair_attention
from normbt.batches import MicroBatch, PairExamples, StepBatches, from_collator, pair_count
from normbt.checkpoint import (
    FSDP_SHARDS,
    FSDP_WHOLE,
    WHOLE,
    TrainingState,
    deepspeed_of,
    load_state,
    loss_settings,
    save_state,
)
from normbt.completeness import warn_of_another_run
from normbt.config import NormBTConfig
from normbt.encoding import encode_pairs, longest_sequence, prepare_tokenizer
from normbt.errors import ConfigError
from normbt.faults import memory_fault
from normbt.finite_check import look_closer, of_all_processes, stop_or_go_on
from normbt.head import HeadCapture, unwrap
from normbt.live_view import make_live_view
from normbt.loading import loading
from normbt.metrics import COLUMNS, pair_metrics, stack_records
from normbt.nonfinite import Findings, FiniteWatch, guard_step
from normbt.objective import Objective
from normbt.packing import as_token_pair
from normbt.packing_check import PackingCheck, check_packing, made_up_pairs
from normbt.pairs import DataReport, LiveReport, read_pairs
from normbt.running_mean import RunningMean, sum_of_finite
from normbt.sampling import PairsByLength, pair_lengths
from normbt.saving import Checkpoints, plain_tensors_only, prove_reload
from normbt.sharding import shards_of
from normbt.step_plan import StepPlan, make_step_plan
from normbt.weights import EmaState, all_reduce_sum, pair_distance

logger = logging.getLogger(__name__)

_CHECKED_PAIRS = 4
"""Pairs of the packing self-check: each costs two forwards of one sequence."""


class NormBTTrainer(RewardTrainer):
    """Train a reward model with a weighted pair loss; a ``trl.RewardTrainer`` with the same arguments.

    All pairs of an optimizer step, over every micro-batch and process, are weighted with the same mu; then mu moves
    with the mean distance over all those pairs. The loss is divided by the number of all those pairs. The same pairs
    per step therefore give the same training, however they are split. mu is saved with every checkpoint and restored on
    resume.

    Args:
        model: model id, local folder, or a sequence-classification model with one label; PEFT-wrapped too.
        args: the settings; None takes the defaults.
        kwargs: everything ``trl.RewardTrainer`` takes: ``train_dataset``, ``eval_dataset``, ``processing_class``,
            ``peft_config``, ``callbacks``, ...

    Raises:
        ConfigError: ``args`` are not a :class:`~normbt.config.NormBTConfig`.
        DataError: a data set has no usable pair, or lacks the ``margin`` that the loss needs.
        ModelError: the model cannot be loaded, has no usable scoring head, or PEFT would not train it; while training:
            numbers are not finite.
        StateError: a checkpoint to resume is incomplete, or was made with other settings.

    References:
        arXiv 2512.06343; the host trainer: TRL's ``RewardTrainer``.
    """

    loss_is_scaled_for_ga = True
    _tag_names: ClassVar[list[str]] = ["normbt", "trl", "reward-trainer"]

    args: NormBTConfig
    # Transformers declares these optional or as unions; after __init__ they are set.
    model: Any
    model_wrapped: Any
    processing_class: Any
    accelerator: Any
    train_dataset: Any
    data_collator: Any

    def __init__(self, model: Any, args: NormBTConfig | None = None, **kwargs: Any) -> None:
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = NormBTConfig(f"{name.split('/')[-1]}-NormBT")
        if not isinstance(args, NormBTConfig):
            raise ConfigError(f"args must be a NormBTConfig, got {type(args).__name__}; it takes the same settings.")
        custom_collator = kwargs.pop("data_collator", None)
        kwargs["peft_config"] = reward_peft_config(kwargs.get("peft_config"))
        tokenizer = kwargs.get("processing_class") or _load_tokenizer(model, args)
        kwargs["processing_class"] = tokenizer
        # TRL sets both tokens again: EOS to the same, the pad token to what it has become here. With chat_template_path
        # it may be one that another tokenizer brings along.
        pad_token = args.pad_token if args.chat_template_path is None else None
        for message in prepare_tokenizer(tokenizer, eos_token=args.eos_token, pad_token=pad_token):
            logger.warning(message)
        if pad_token is not None:
            args.pad_token = str(tokenizer.pad_token)
        self._reports: dict[str, list[DataReport | LiveReport]] = {}
        collator: Any = custom_collator or PairExamples
        # TRL loads a named model first; once data are prepared, what goes wrong is not its fault.
        name = model if isinstance(model, str) else None
        with loading(name or "", over=lambda: name is None or bool(self._reports)):
            super().__init__(model, args, data_collator=collator, **kwargs)

        if len(tokenizer) > self.model.get_input_embeddings().num_embeddings:
            logger.warning("The embedding was resized to the tokenizer's %d tokens.", len(tokenizer))
            self.model.resize_token_embeddings(len(tokenizer))
        exported: Any = unwrap(self.model)
        if exported.config.problem_type is None:
            exported.config.problem_type = "regression"  # else `pipeline` and vLLM put a sigmoid on the reward
        self._capture = HeadCapture(self.model)
        if is_attached(self._capture.head):
            raise ConfigError(
                "the model is attached (normbt.attach), so its pairs would be weighted twice: remove() it."
            )
        check_head_is_trained(self.model, self._capture)
        self.step_plan = self._make_step_plan()
        self._reads_packed_rows = False
        self._forward_options = _forward_options(self.model)
        self._objective = Objective(**{name: getattr(args, name) for name in Objective.__dataclass_fields__})
        self._mean = RunningMean(args.mu_init, args.beta, self.args.device)
        self._records: dict[str, list[Tensor]] = {"train": [], "eval": []}
        self._steps_recorded = 0
        self._watch = {"train": FiniteWatch(), "eval": FiniteWatch()}
        self._tokens = 0  # of this process; after a resume, the main process has those before
        self._probe: MicroBatch | None = None
        self._checkpoints = Checkpoints(self.args, self.accelerator)
        inner: Any = unwrap(self.model)
        self._counted_parameters = inner.num_parameters(exclude_embeddings=True)
        self.add_callback(_StepEnd(self._end_step))
        if args.probe_steps is not None:
            self.add_callback(make_live_view(self))

    # --- data -----------------------------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """Check the rows, encode them, and keep the reports of both."""
        if processing_class.pad_token_id == processing_class.eos_token_id:
            raise ConfigError(
                f"With chat_template_path {args.chat_template_path!r} the pad token is the EOS token "
                f"({processing_class.eos_token!r}), so that plain Transformers would read the token before it. Set "
                "pad_token to another token."
            )
        reports = self._reports[dataset_name] = []
        columns = get_dataset_column_names(dataset)
        if isinstance(dataset, IterableDataset):  # as TRL has it for a stream to train on: our examples are no tensors
            args.accelerator_config.dispatch_batches = False
        if "id" not in columns and isinstance(dataset, Dataset) and "chosen_ids" in columns:
            dataset = dataset.add_column("id", [f"row-{row}" for row in range(1, len(dataset) + 1)])  # type: ignore[call-arg] - the fingerprint is optional
        if "chosen_ids" not in columns:
            dataset, report = read_pairs(dataset, streaming=isinstance(dataset, IterableDataset))
            reports.append(report)
        lengths = {"max_length": args.max_length, "overlong": args.overlong}
        encoded, report = encode_pairs(dataset, processing_class, num_proc=args.dataset_num_proc, **lengths)
        reports.append(report)
        for report in reports:
            if isinstance(report, LiveReport):
                report.restart()  # encoding has looked into the stream for its columns
        if not args.use_margin and "margin" in get_dataset_column_names(encoded):
            logger.info("%s: the column `margin` is left out (use_margin is false).", dataset_name)
            encoded = encoded.remove_columns("margin")
        return encoded

    @property
    def data_reports(self) -> dict[str, DataReport]:
        """What became of the rows of each data set, so far: ``train``, and ``eval`` or the evaluation sets' names."""
        frozen = {name: [_frozen(report) for report in reports] for name, reports in self._reports.items()}
        return {name: reduce(DataReport.then, reports) for name, reports in frozen.items()}

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["id", "chosen_ids", "rejected_ids", "prefix_length", "margin"]

    # --- layout ---------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Transformers does, with packed batches where they are exact for the model.

        ``resume_from_checkpoint=True`` takes the checkpoint of ``output_dir`` that was *completed* last.
        """
        checkpoint = self._checkpoints.to_resume(resume_from_checkpoint, engine=self._engine)
        if checkpoint is None and self.args.should_save:
            warn_of_another_run(self.args.output_dir or ".")
        with self._reading_packed_rows():
            try:
                return super().train(checkpoint, *args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                if (cause := memory_fault(error)) is None:
                    raise
                budget = f"token_budget (now {self.step_plan.token_budget})"  # a collator's own batches don't heed it
                knob = budget if self.data_collator is PairExamples else "per_device_train_batch_size"
                raise ConfigError(
                    f"Out of memory on {self.args.device} at step {self.state.global_step + 1}: {cause} Lower "
                    f"{knob} or max_length, or set gradient_checkpointing. {self._checkpoints.way_back()}"
                ) from error

    def _make_step_plan(self) -> StepPlan:
        multiple: Any = self.args.pad_to_multiple_of  # a number or None by now; TRL's type also covers "auto"
        automatic = self.args.checkpointing_is_automatic
        arranges = self.data_collator is PairExamples
        plan = make_step_plan(
            self.model,
            device=self.args.device,  # where FSDP and DeepSpeed bring it later: until then it is in the host's memory
            shards=shards_of(self.accelerator),
            batching=self.args.batching if arranges else "padded",
            token_budget=self.args.token_budget,
            checkpointing=None if automatic else bool(self.args.gradient_checkpointing),
            longest_sequence=longest_sequence(self.train_dataset) or self.args.max_length,
            pairs_per_draw=self.args.per_device_train_batch_size,
            arranges=arranges,
            pad_token_id=self.processing_class.pad_token_id,
            pad_to_multiple_of=multiple,
            low_precision=bool(self.args.bf16 or self.args.fp16),
        ).agreed(partial(least_of_all, device=self.args.device))
        self.args.gradient_checkpointing = self.args.activation_checkpointing = plan.checkpointing
        if plan.checkpointing and automatic and is_peft_model(self.model):
            self.model.enable_input_require_grads()
        (logger.info if plan.batching == self.args.batching else logger.warning)("%s.", plan.reason)
        return plan

    @contextlib.contextmanager
    def _reading_packed_rows(self) -> Iterator[None]:
        """Make the model read packed rows, once it is shown that they are exact for it; nests, as evaluations do."""
        if self._reads_packed_rows or self.step_plan.batching == "padded":
            yield
            return
        self._fall_back_unless_exact()
        if self.step_plan.batching == "padded":
            yield
            return
        self._reads_packed_rows = True
        try:
            with pair_attention(self.model, pooled_only=True):
                yield
        finally:
            self._reads_packed_rows = False

    def _fall_back_unless_exact(self) -> None:
        """Compare a packed batch of the first pairs with their separate sequences; pad, loudly, if they differ.

        All processes pad where one has to.
        """
        if self.is_deepspeed_enabled:
            reason = "batching padded, because the packed layout can't be checked on a model that DeepSpeed shards"
            self.step_plan = self.step_plan.falling_back(reason)
            logger.warning("%s.", reason)
            return
        check = self._check_packing()
        if all(least_of_all([check.passed], self.args.device)):
            logger.info("%s", check.summary())
            return
        elsewhere = "packed pairs differ from separate sequences in another process."
        found = elsewhere if check.passed else check.summary()
        self.step_plan = self.step_plan.falling_back(f"batching padded, because {found}")
        logger.warning("%s Batches are padded instead.", found)

    def _check_packing(self) -> PackingCheck:
        if isinstance(self.train_dataset, IterableDataset):
            pairs = made_up_pairs(self.model)  # looking into a stream would count its first rows twice
        else:
            pairs = [as_token_pair(example) for example in islice(iter(self.train_dataset), _CHECKED_PAIRS)]
        dtype = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else self.model.dtype
        with self.accelerator.autocast():
            return check_packing(self.model, pairs, share=self.step_plan.batching == "packed", dtype=dtype)

    @property
    def _shares_draws(self) -> bool:
        """Whether every process draws the pairs of the whole step and takes its share: pairs are then never repeated to
        fill up, and the shares can be balanced by cost. A stream, or a user's own collator, is split by Accelerate.
        """
        known = not isinstance(self.train_dataset, IterableDataset) and self.data_collator is PairExamples
        return known and self.accelerator.num_processes > 1

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Transformers' data loader; with several processes, one that draws the pairs of all of them."""
        if not self._shares_draws:
            return _passing_epochs_on(super().get_train_dataloader())
        sampler: Any = self._get_train_sampler
        dataloader = self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self.args.per_device_train_batch_size * self.accelerator.num_processes,
            sampler_fn=sampler,
            is_training=True,
        )
        # Accelerate's wrapper around the batches hands them out in turn; this lets every process have all of them.
        shard: Any = dataloader.batch_sampler
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return _passing_epochs_on(dataloader)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Dataset):
            return super()._get_train_sampler(dataset)
        drawn = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return PairsByLength(pair_lengths(dataset), pairs_per_step=drawn, seed=seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        """Evaluation keeps the order of the data, however training samples: predictions belong to its rows."""

    # --- one optimizer step ---------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Draw the pairs of one optimizer step, count them over all processes, and build the micro-batches."""
        drawn, total_pairs = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not drawn:
            return drawn, None
        micro_batches = self._micro_batches(drawn)
        if self.args.weighting == "normbt" and not self._mean.is_known:
            mean = self._mean_distance(micro_batches)
            if mean is not None:
                self._mean.set(EmaState(mean, 0))
        # The loop counts one micro-batch per draw and synchronises gradients at the last: that one carries the step.
        return [*(StepBatches() for _ in drawn[1:]), StepBatches(micro_batches)], total_pairs

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        here = sum(pair_count(drawn) for drawn in batch_samples)
        pairs = torch.full((), float(here), device=device)  # written by the device: the host does not wait for a copy
        return pairs if self._shares_draws else all_reduce_sum(pairs)

    def _micro_batches(self, drawn: Sequence[Any]) -> list[MicroBatch]:
        if not all(isinstance(batch, PairExamples) for batch in drawn):
            batches = [from_collator(batch) for batch in drawn]
        else:
            examples = [example for batch in drawn for example in batch.examples]
            if self._shares_draws:
                rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
                batches = self.step_plan.micro_batches(examples, rank=rank, ranks=ranks)
            else:
                # No process knows how many the others' pairs need.
                count = partial(most_of_all, device=self.args.device)
                batches = self.step_plan.micro_batches(examples, agree=count)
        if self._probe is None:
            self._probe = self.step_plan.padded(examples[:2]) if isinstance(drawn[0], PairExamples) else batches[0]
        return batches

    @torch.no_grad()
    def _mean_distance(self, micro_batches: Sequence[MicroBatch]) -> Tensor | None:
        """Mean distance of the first step's pairs, so that its weights don't depend on how the step is split.

        None when not one of them is finite.
        """
        totals = torch.zeros(2, device=self.args.device)
        for batch in micro_batches:
            with self.compute_loss_context_manager():
                _, hidden, _ = self._forward(self.model_wrapped, batch.to(self.args.device))
            if batch.pairs:
                distance = pair_distance(*hidden.chunk(2), kind=self.args.distance)
                totals += sum_of_finite(distance, distance.isfinite())
        total, count = all_reduce_sum(totals)
        return total / count if count > 0 else None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of every micro-batch of the step; gradients are synchronised in the last."""
        loss = torch.zeros((), device=self.args.device)
        for batch in inputs.micro_batches:
            if self.is_deepspeed_enabled:  # it steps in every backward, unless it is told that others follow
                self.accelerator.gradient_state._set_sync_gradients(batch.is_last)
            last = batch.is_last or self.is_deepspeed_enabled
            synchronised = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with synchronised:
                loss += super().training_step(model, batch, num_items_in_batch)
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device) if isinstance(inputs, MicroBatch) else super()._prepare_inputs(inputs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Transformers' norm, of all processes; where it is not finite, the optimizer's step is made harmless."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        value: Any = norm if isinstance(norm, Tensor) else torch.full((), norm or 0.0, device=self.args.device)
        finite = (value.full_tensor() if hasattr(value, "full_tensor") else value).isfinite()
        if self.accelerator.scaler is not None:
            finite = torch.ones_like(finite)  # float16 overflows now and then: its scaler skips those steps itself
        elif not self.is_deepspeed_enabled:  # DeepSpeed has taken the step already
            prepared: Any = self.optimizer
            guard_step(getattr(prepared, "optimizer", prepared), finite)
        self._watch["train"].see_step(self.state.global_step + 1, finite)
        return norm

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Transformers' ``include_num_input_tokens_seen``: the tokens that the model reads, a shared prompt once.

        ``num_tokens`` counts those of the data.
        """
        kind = self.args.include_num_input_tokens_seen
        if kind == "no" or not inputs.micro_batches:
            return
        without_padding = kind == "non_padding" and self.step_plan.batching == "padded"  # packed rows have none
        seen = [batch for batch in inputs.micro_batches if batch.pairs]
        count = sum(batch.tokens if without_padding else batch.inputs["input_ids"].numel() for batch in seen)
        self.state.num_input_tokens_seen += int(all_reduce_sum(torch.tensor(count, device=self.args.device)))

    def _end_step(self) -> None:
        """Move mu, once per optimizer step, with the distances of all its pairs."""
        if self.args.weighting == "normbt":
            self._mean.move(taken=self._watch["train"].last_step)
        self._steps_recorded += 1

    # --- the loss -------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Weighted pair loss of one micro-batch: its share of the step's mean over pairs, or its own mean."""
        batch = inputs if isinstance(inputs, MicroBatch) else from_collator(inputs)
        mode = "train" if self.model.training else "eval"
        rewards, hidden, outputs = self._forward(model, batch)
        if batch.pairs == 0:
            loss = 0.0 * rewards.sum()
            self._objective.take_part(rewards.device)
            self._gather_distances(batch)
            return (loss, outputs) if return_outputs else loss
        # No mu yet in an evaluation before any training.
        terms = self._objective(rewards, hidden, batch.margin, mu=self._mean.value)
        if num_items_in_batch is None:
            loss = terms.objective.mean()
        else:
            # Gradients are averaged over the processes afterwards, hence their number as a factor.
            loss = terms.objective.sum() * self.accelerator.num_processes / num_items_in_batch

        if mode == "train":
            self._tokens += batch.tokens
            self._mean.add(terms.distance, terms.finite)
            self._gather_distances(batch)
        self._watch[mode].see_pairs(self.state.global_step + 1, batch.names, terms.finite)
        chosen, rejected = rewards.chunk(2)
        marked = torch.where(terms.finite, terms.objective, torch.nan)  # a margin that is not finite shows here only
        self._records[mode].append(stack_records(chosen, rejected, *terms[:3], marked))
        return (loss, outputs) if return_outputs else loss

    def _gather_distances(self, batch: MicroBatch) -> None:
        """Start the sum of a step's distances over the processes, after its last forward and before its backward."""
        if batch.is_last and self.args.weighting == "normbt":
            self._mean.gather()

    def _forward(self, model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor, Any]:
        """Rewards and hidden states of one micro-batch, chosen rows first, from the model's own forward."""
        with self._capture.installed() as captured:
            outputs = model(**{**batch.inputs, **self._forward_options})
        # The rewards are taken from the outputs: that is where FSDP and DeepSpeed hook the backward pass.
        return outputs["logits"].squeeze(-1), captured.hidden, outputs

    # --- metrics --------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what Transformers hands over and, in training, the metrics of all pairs since the last time."""
        if self.model.training and self._steps_recorded:
            records = self._take_records("train")
            findings = self._check_finite()
            metrics = pair_metrics(records, max_weight=self._max_weight)
            metrics["effective_batch_size"] = metrics.pop("effective_pairs") / self._steps_recorded
            self._steps_recorded = 0
            if self.args.weighting == "normbt":
                metrics["mu"] = float(self._mean.state.mean)
            metrics["num_tokens"] = self._total_tokens()
            metrics.pop("objective")  # Transformers logs it as `loss`
            if self.args.on_nonfinite == "skip":
                metrics |= {"nonfinite_pairs": findings.pair_count, "skipped_steps": len(findings.steps)}
            logs.update(metrics)
        super().log(logs, start_time)

    def _check_finite(self) -> Findings:
        """Look at what was not finite since the last look, on every process; stop, or warn.

        Raises:
            ModelError: as :func:`normbt.finite_check.stop_or_go_on`.
        """
        return stop_or_go_on(
            of_all_processes(self._watch["train"].take()),
            skip=self.args.on_nonfinite == "skip",
            look_closer=self._look_closer,
            way_back=self._checkpoints.way_back,
        )

    def _look_closer(self, findings: Findings) -> str:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return ""
        return look_closer(self.model, self.train_dataset, findings, self._is_finite_alone)

    def _is_finite_alone(self, example: Mapping[str, Any]) -> bool:
        batch = self.step_plan.padded([example]).to(self.args.device)
        with self.accelerator.autocast():
            rewards, hidden, _ = self._forward(self.model, batch)
        return bool(self._objective(rewards, hidden, batch.margin).finite.all())

    def log_aside(self, logs: dict[str, float]) -> None:
        """Log something else between two training logs, which keep their records and their turn."""
        due = self.control.should_log
        super().log(logs)
        self.control.should_log = due

    @property
    def mu(self) -> float | None:
        """The running mean of the distance; None where there is none yet."""
        value = self._mean.value
        return None if value is None else float(value)

    def evaluation_loop(self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Transformers' loop; loss and metrics are then replaced by those over all pairs of this evaluation set."""
        prefix = kwargs.get("metric_key_prefix", args[3] if len(args) > 3 else "eval")
        self._records["eval"].clear()
        if self.accelerator.num_processes > 1 and isinstance(dataloader.dataset, TorchIterableDataset):
            logger.warning(
                "%s: the length of a stream is not known, so the pairs that fill up the last batch of all processes "
                "(at most %d) are counted twice. Evaluate without streaming for exact metrics and predictions.",
                prefix,
                self.args.eval_batch_size * self.accelerator.num_processes - 1,
            )
        with self._reading_packed_rows():
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        findings = of_all_processes(self._watch["eval"].take())
        if findings:
            logger.warning("%s: %s These pairs count as wrong.", prefix, findings.describe())
        metrics = pair_metrics(self._take_records("eval", gathered=True), max_weight=self._max_weight)
        metrics["loss"] = metrics.pop("objective")
        named = {f"{prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Loss and rewards of one evaluation batch; predictions have shape ``(pairs, 2)``, chosen first."""
        drawn = self.step_plan.together(inputs.examples) if isinstance(inputs, PairExamples) else from_collator(inputs)
        batch = self._prepare_inputs(drawn)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, batch)
        own = self._records["eval"].pop()
        # The last batch of several processes repeats pairs to fill it up. Accelerate takes them out again where the
        # length of the set is known, here of the records and in Transformers' loop of the predictions.
        self._records["eval"].append(self.accelerator.gather_for_metrics(own))
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), own[:, :2].contiguous(), ()

    def _take_records(self, mode: str, *, gathered: bool = False) -> Tensor:
        records = torch.cat(self._records[mode]) if self._records[mode] else torch.empty(0, len(COLUMNS))
        self._records[mode].clear()
        if gathered or self.accelerator.num_processes == 1:
            return records
        return torch.cat(gather_object([records.cpu()]))

    @property
    def _max_weight(self) -> float | None:
        return None if self.args.weighting == "none" else self.args.max_weight

    def _total_tokens(self) -> int:
        return int(all_reduce_sum(torch.tensor(self._tokens, device=self.args.device)))

    def floating_point_ops(self, inputs: Any) -> int:
        """Multiply-adds of forward and backward, by Transformers' estimate of 6 per parameter and token."""
        tokens = sum(batch.tokens for batch in inputs.micro_batches) if isinstance(inputs, StepBatches) else 0
        return 6 * tokens * self._counted_parameters

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        tokens = self._total_tokens()
        if self.args.should_save:
            mean = self._mean.state
            state = TrainingState(loss_settings(self.args), float(mean.mean), int(mean.count), tokens)
            save_state(output_dir, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with plain_tensors_only(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = load_state(checkpoint, loss_settings(self.args))
        device = self.args.device
        mean = EmaState(torch.tensor(state.mu, device=device), torch.tensor(state.updates, device=device))
        self._mean.set(mean, is_known=state.updates > 0)
        self._tokens = state.tokens if self.accelerator.is_main_process else 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, prove the first, declare it complete, and only then delete older ones."""
        self._check_finite()  # a log came before, unless logging is off: no checkpoint is written past a NaN
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with self._checkpoints.being_written(folder, best=lambda: self.state.best_model_checkpoint):
            super()._save_checkpoint(model, trial)
            if not self.args.push_to_hub:  # otherwise done before the upload
                self._checkpoints.complete(folder, prove=self._prove_reload)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._checkpoints.complete(Path(checkpoint_folder), prove=self._prove_reload)
        super()._push_from_checkpoint(checkpoint_folder)

    @property
    def _engine(self) -> str:
        if self.is_deepspeed_enabled:
            return deepspeed_of(self.accelerator.num_processes)
        if self.is_fsdp_enabled:
            whole = "FULL_STATE_DICT" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
            return FSDP_WHOLE if whole else FSDP_SHARDS
        return WHOLE

    def _prove_reload(self, folder: Path) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            logger.warning("The first checkpoint is sharded; that it reloads with the same scores was not checked.")
        elif self.args.should_save and self._probe is not None:
            prove_reload(folder, self.model, self._probe, self._score, autocast=self.accelerator.autocast)

    def _score(self, batch: MicroBatch) -> Tensor:
        return self._forward(self.model, batch.to(self.args.device))[0]


class _StepEnd(TrainerCallback):
    """Calls back once the optimizer has stepped; and logs before every checkpoint, so that no metric spans one.

    A run that resumes there then logs what an unbroken run logs.
    """

    def __init__(self, end_step: Callable[[], None]) -> None:
        self._end_step = end_step

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._end_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        may_save = control.should_save or (control.should_evaluate and args.save_strategy == SaveStrategy.BEST)
        if may_save and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    on_epoch_end = on_step_end


def _passing_epochs_on(dataloader: DataLoader[Any]) -> DataLoader[Any]:
    """Let the epoch reach the sampler of a resumed run: below skipped batches Accelerate looks for it in the shard."""
    shard: Any = dataloader.batch_sampler
    if isinstance(shard, BatchSamplerShard):
        shard.sampler = shard.batch_sampler.sampler
    return dataloader


def _frozen(report: DataReport | LiveReport) -> DataReport:
    return report.now if isinstance(report, LiveReport) else report


def _load_tokenizer(model: str | PreTrainedModel, args: NormBTConfig) -> PreTrainedTokenizerBase:
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    model_options: Any = args.model_init_kwargs or {}  # a dict by now; TRL's type also covers its text form
    revision = model_options.get("revision") if isinstance(model, str) else None
    with loading(name):
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)


def _forward_options(model: nn.Module) -> dict[str, Any]:
    # A cache is of no use in one forward, and Transformers warns about it under gradient checkpointing.
    return {"use_cache": False} if "use_cache" in inspect.signature(unwrap(model).forward).parameters else {}
