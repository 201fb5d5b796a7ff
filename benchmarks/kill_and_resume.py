"""Kill a training run where it hurts, resume it, and compare it with a run that was never broken.

Every kill is a SIGKILL that the run gives itself: at a random optimizer step, or while a random file of a random
checkpoint is opened for writing. It may be killed again after the resume. What must be equal to the unbroken run, to
the last bit: the parameters, mu, every logged metric, and the order of the pairs. The model has dropout, so the random
state must come back too; there are two epochs, gradient accumulation, and save_total_limit=1, so that one checkpoint is
all there is.

    python benchmarks/kill_and_resume.py --kills 12 --seed 0

Each run is a fork of this process, which has loaded everything once. POSIX only.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback

from normbt.completeness import checkpoints_in, what_is_missing
from normbt.config import NormBTConfig
from normbt.trainer import NormBTTrainer

PAIRS, SAVE_STEPS, LOGGING_STEPS = 20, 2, 3
STEPS = 2 * PAIRS // 4  # two epochs of steps of four pairs
WORDS = 64


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")


def word_pairs(count: int) -> Dataset:
    """Pairs of random words."""
    generator = random.Random(0)

    def words() -> str:
        return " ".join(f"w{generator.randrange(2, WORDS)}" for _ in range(generator.randint(2, 9)))

    return Dataset.from_list([{"prompt": words() + " ", "chosen": words(), "rejected": words()} for _ in range(count)])


def reward_model() -> GPT2ForSequenceClassification:
    """A tiny decoder with dropout."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=1, pad_token_id=0))


class _DieAtStep(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die_in_checkpoint(checkpoint: str, file: int) -> None:
    """SIGKILL this process when it opens the n-th file of a checkpoint for writing."""
    opened = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open" and f"/{checkpoint}/" in str(arguments[0]) and _writes(arguments):
            opened += 1
            if opened == file:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def files_opened(scratch: Path) -> int:
    """How many files a run opens for writing in one checkpoint."""
    counted = scratch / "counted"

    def run() -> None:
        opened: list[str] = []

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and f"/checkpoint-{SAVE_STEPS}/" in str(arguments[0]) and _writes(arguments):
                opened.append(str(arguments[0]))

        sys.addaudithook(watch)
        train(scratch / "count", resume=False)
        counted.write_text(str(len(opened)), encoding="utf-8")

    (scratch / "count").mkdir()
    if in_a_fork(run) != 0:
        raise SystemExit("the run that counts files failed")
    return int(counted.read_text(encoding="utf-8"))


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    return "w" in mode or "+" in mode if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))


def train(folder: Path, *, resume: bool, die_at_step: int | None = None) -> None:
    """One run, to its end unless it is killed; writes what came out of it."""
    config = NormBTConfig(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=LOGGING_STEPS,
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        report_to="none",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=11,
    )

    class Recording(NormBTTrainer):
        def _micro_batches(self, draws: Any) -> Any:
            ids = [example["chosen_ids"] for draw in draws for example in draw.examples]
            with (folder / "order.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([self.state.global_step, ids]) + "\n")
            return super()._micro_batches(draws)

    trainer = Recording(reward_model(), config, train_dataset=word_pairs(PAIRS), processing_class=word_tokenizer())
    if die_at_step is not None:
        trainer.add_callback(_DieAtStep(die_at_step))
    trainer.train(resume_from_checkpoint=resume)
    torch.save(trainer.model.state_dict(), folder / "parameters.pt")
    log = [entry for entry in trainer.state.log_history if "mu" in entry]
    (folder / "log.json").write_text(json.dumps(log), encoding="utf-8")


def in_a_fork(run: Callable[[], None]) -> int:
    """Run in a child process; minus the signal that killed it, or its exit status."""
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                run()
                status = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, -signal.SIGKILL):
            said.seek(0)
            print(said.read()[-3000:])
    return status


def differences(whole: Path, broken: Path) -> list[str]:
    """What of the broken and resumed run is not equal to the unbroken one."""
    found = []
    wanted, got = (torch.load(folder / "parameters.pt") for folder in (whole, broken))
    found += [f"parameter {name}" for name, value in wanted.items() if not torch.equal(value, got[name])]
    logs = [json.loads((folder / "log.json").read_text(encoding="utf-8")) for folder in (whole, broken)]
    if logs[0] != logs[1]:
        found.append("the log")
    if _order(whole) != _order(broken):
        found.append("the order of the pairs")
    return found


def _order(folder: Path) -> dict[int, Any]:
    """The pairs of each step; of a step that was taken twice, both times must agree."""
    order: dict[int, Any] = {}
    for line in (folder / "order.jsonl").read_text(encoding="utf-8").splitlines():
        step, ids = json.loads(line)
        assert order.setdefault(step, ids) == ids, f"step {step} drew other pairs the second time"
    return order


def kill_once(folder: Path, generator: random.Random, files: int) -> str:
    """Run until a random kill; what was killed, in words."""
    resume = any(what_is_missing(checkpoint) is None for checkpoint in checkpoints_in(folder))
    done = max((int(path.name.split("-")[1]) for path in checkpoints_in(folder)), default=0)
    if generator.random() < 0.5:
        step = generator.randint(min(done + 1, STEPS), STEPS)
        where, status = f"after step {step}", in_a_fork(lambda: train(folder, resume=resume, die_at_step=step))
    else:
        saves = [step for step in range(SAVE_STEPS, STEPS + 1, SAVE_STEPS) if step > done] or [STEPS]
        step, file = generator.choice(saves), generator.randint(1, files)
        where = f"in file {file:2d} of checkpoint-{step}"

        def run() -> None:
            die_in_checkpoint(f"checkpoint-{step}", file)
            train(folder, resume=resume)

        status = in_a_fork(run)
    if status != -signal.SIGKILL:
        raise SystemExit(f"{where}: the run was to be killed and ended with {status}")
    return where


def main() -> None:
    """Print one line for each kill, and exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        if in_a_fork(lambda: train(whole, resume=False)) != 0:
            raise SystemExit("the unbroken run failed")
        files = files_opened(Path(scratch))
        print(f"a checkpoint opens {files} files for writing, the model's weights aside")
        kills = 0
        while kills < options.kills:
            folder = Path(scratch) / f"run-{kills}"
            folder.mkdir()
            begun = time.perf_counter()
            killed = [kill_once(folder, generator, files)]
            if kills + 1 < options.kills and generator.random() < 0.3:
                killed.append(kill_once(folder, generator, files))
            kills += len(killed)
            half_written = [path.name for path in checkpoints_in(folder) if what_is_missing(path) is not None]
            good = [path.name for path in checkpoints_in(folder) if what_is_missing(path) is None]
            status = in_a_fork(lambda folder=folder, good=good: train(folder, resume=bool(good)))
            wrong = differences(whole, folder) if status == 0 else [f"the resumed run ended with {status}"]
            failed += bool(wrong)
            left = f"half-written {', '.join(half_written) or 'none'}; resumed from {good[-1] if good else 'the start'}"
            verdict = f"DIFFERS: {', '.join(wrong)}" if wrong else "equal to the last bit"
            print(
                f"killed {', then '.join(killed)}; {left}: {verdict} ({time.perf_counter() - begun:.1f} s)", flush=True
            )
    print(f"{kills} kills, {failed} runs that differ from the unbroken one")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
