"""The checkpoints of a run: written by all its processes, proved, declared complete; and which one to resume from."""

import contextlib
import copy
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from normbt.batches import MicroBatch
from normbt.checkpoint import engine_of
from normbt.completeness import choose_checkpoint, last_complete, rotate, seal
from normbt.errors import StateError
from normbt.faults import writing
from normbt.packing_check import evaluating
from normbt.reload import check_reload

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in a run's folder, as all processes of the run deal with them.

    Args:
        args: the run's settings: its folder, how many checkpoints to keep, and which process writes.
        accelerator: Accelerate's, by which the processes wait for each other.
    """

    def __init__(self, args: TrainingArguments, accelerator: Any) -> None:
        self._args = args
        self._accelerator = accelerator
        self._limit = args.save_total_limit
        self._is_proved = False

    def to_resume(self, wanted: str | bool | None, *, engine: str) -> str | None:
        """The checkpoint that all processes resume from: the main one looks, and the others follow.

        Args:
            wanted: a folder; True for the last complete checkpoint of the run; None or False for none.
            engine: what this run trains under, as :func:`normbt.checkpoint.engine_of` says it.

        Raises:
            StateError: it is missing, incomplete, or of another engine; raised in every process.
        """
        if wanted is None or wanted is False:
            return None
        answer: list[Any] = [None]
        if self._accelerator.is_main_process:
            try:
                answer = [choose_checkpoint(None if wanted is True else wanted, self._output_dir)]
                _require_engine(answer[0][0], engine)
            except StateError as error:
                answer = [error]
        broadcast_object_list(answer)
        if isinstance(answer[0], StateError):
            raise answer[0]
        folder, passed_over = answer[0]
        for message in passed_over:
            logger.warning(message)
        logger.info("Resuming from %s.", folder)
        return str(folder)

    @contextlib.contextmanager
    def being_written(self, folder: Path, *, best: Callable[[], str | None]) -> Iterator[None]:
        """Around Transformers' writing of a checkpoint, inside of which it is declared complete.

        Args:
            folder: what will be written. Remains of an earlier one are removed first: they must not mix with it.
            best: tells, afterwards, which checkpoint is the best so far; it is not deleted.

        Raises:
            ConfigError: it could not be written; what there was of it has been removed.
        """
        with writing(folder, afterwards=lambda: self._give_up(folder)):
            if self._args.should_save and folder.exists():
                shutil.rmtree(folder)
            self._accelerator.wait_for_everyone()
            # Transformers would delete older checkpoints before this one is complete.
            self._limit, self._args.save_total_limit = self._args.save_total_limit, None
            try:
                yield
            finally:
                self._args.save_total_limit = self._limit
            if self._args.should_save:
                rotate(folder, self._limit, keep=[best()])

    def complete(self, folder: Path, *, prove: Callable[[Path], None]) -> None:
        """Every process has written its part: prove the first checkpoint of the run, then declare it complete.

        Args:
            folder: the checkpoint.
            prove: called with the first one; raises if it is not what it should be.
        """
        self._accelerator.wait_for_everyone()
        if not self._is_proved:
            self._is_proved = True
            prove(folder)
        if self._args.should_save:
            args = copy.copy(self._args)
            args.save_total_limit = self._limit  # which was off when Transformers wrote this file
            torch.save(args, folder / TRAINING_ARGS_NAME)
            seal(folder)

    def way_back(self) -> str:
        """How to go on after a failure, in words."""
        good = last_complete(self._output_dir)
        if good is None:
            return "There is no complete checkpoint yet: start again."
        return f"The last complete checkpoint is {good}: continue with --resume_from_checkpoint true."

    @property
    def _output_dir(self) -> str:
        return self._args.output_dir or "."

    def _give_up(self, folder: Path) -> str:
        if self._args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        return f"What there was of it has been removed. {self.way_back()}"


def _require_engine(folder: Path, engine: str) -> None:
    if (found := engine_of(folder)) == engine:
        return
    has_weights = any(folder.glob("*model*.safetensors*"))
    or_else = ", or start a new run from its weights (pass the folder as the model)" if has_weights else ""
    raise StateError(
        f"{folder} was written under {found}, and this run is under {engine}, which reads other files. Resume it under "
        f"what it was written with (--accelerate_config){or_else}."
    )


def prove_reload(
    folder: Path,
    model: nn.Module,
    probe: MicroBatch,
    score: Callable[[MicroBatch], Tensor],
    *,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> None:
    """Prove that a saved checkpoint scores like the model in memory (see :mod:`normbt.reload`).

    Args:
        folder: the checkpoint.
        model: the model it was saved from, whole in this process.
        probe: a few pairs, padded.
        score: the model's rewards of a micro-batch.
        autocast: makes the context in which training runs.

    Raises:
        ModelError: head or scores differ.
    """
    with evaluating(model), autocast():
        rewards = score(probe)
    check_reload(folder, model, probe.inputs, rewards, autocast=autocast)


@contextlib.contextmanager
def plain_tensors_only(checkpoint: str | None) -> Iterator[None]:
    """Around the reading of optimizer and scheduler, of which torch reads tensors and plain values only.

    Raises:
        StateError: a file of the checkpoint holds something that could run.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise StateError(f"{checkpoint} holds a file that is not plain tensors and numbers: {error}") from error
