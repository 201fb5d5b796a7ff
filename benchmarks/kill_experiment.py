"""Kill an experiment at random moments, continue it each time, and compare it with one that was never broken.

    python benchmarks/kill_experiment.py --kills 3 --seed 0

A small grid with a learning-rate search: two methods, two learning rates, two seeds, on built-in pairs, with a decoder
of random weights. The kills are SIGKILLs at random moments over the time an unbroken run takes; they fall into
training, writing of checkpoints, evaluation and loading. Equal must be every score, every chosen learning rate, and the
digest of every evaluation's pairs, which holds each reward to the last digit. Each run is a fork. POSIX only.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inputs import load_tokenizer, random_decoder
from normbt.experiment import Recipe, run_experiment
from normbt.experiment.recipe import parse_recipe
from normbt.results import EXPERIMENT_FILE, SUMMARY_FILE, read_json


def small_recipe(model: Path) -> Recipe:
    """Eight runs of a few seconds each."""
    return parse_recipe(
        {
            "name": "kill",
            "train": {
                "model_name_or_path": str(model),
                "max_length": 256,
                "per_device_train_batch_size": 4,
                "num_train_epochs": 1,
                "save_steps": 3,
                "logging_steps": 1,
                "report_to": "none",
                "bf16": False,
                "use_cpu": True,
                "disable_tqdm": True,
            },
            "methods": {"bt": {"weighting": "none"}, "normbt": {"weighting": "normbt"}},
            "training_sets": {"built-in": {"built_in": 120, "validation": 0.2, "test": 0.4}},
            "seeds": [0, 1],
            "learning_rates": [1e-3, 5e-3],
            "search_seeds": [0],
            "suites": {"test": {"suite": "held-out"}},
            "baseline": "bt",
            "evaluation": {"resamples": 200},
        }
    )


def run(recipe: Recipe, folder: Path) -> None:
    """The experiment, in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run_experiment(recipe, folder)


def outcome(folder: Path) -> Any:
    """Everything that must not depend on where the experiment was cut."""
    summary = read_json(folder / EXPERIMENT_FILE, kind="experiment")
    cells = [{name: value for name, value in cell.items() if name != "seconds"} for cell in summary["cells"]]
    digests = {
        str(file.relative_to(folder)): read_json(file)["pairs_sha256"] for file in sorted(folder.rglob(SUMMARY_FILE))
    }
    return cells, summary["search"], digests


def main() -> None:
    """Run the unbroken experiment, then the broken one, and say whether they are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as scratch:
        model, whole, broken = (Path(scratch, name) for name in ("model", "whole", "broken"))
        tokenizer = load_tokenizer(None)
        tokenizer.save_pretrained(model)
        random_decoder("tiny", tokenizer).save_pretrained(model)
        recipe = small_recipe(model)

        started = time.perf_counter()
        process = fork.Process(target=run, args=(recipe, whole))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit("the unbroken experiment failed")
        seconds = time.perf_counter() - started
        print(f"unbroken: {seconds:.1f} s")
        for number in range(1, arguments.kills + 1):
            moment = chance.uniform(0.05, 0.9) * seconds / arguments.kills
            process = fork.Process(target=run, args=(recipe, broken))
            process.start()
            process.join(moment)
            if process.exitcode is not None:
                sys.exit(f"kill {number}: the experiment ended before its moment ({moment:.1f} s); nothing was tested")
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type] - it has been started
            process.join()
            newest = max((path for path in broken.rglob("*")), key=lambda path: path.stat().st_mtime)
            print(f"kill {number}: after {moment:.1f} s, last written {newest.relative_to(broken)}")
        process = fork.Process(target=run, args=(recipe, broken))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit("the experiment could not be continued")
        same = outcome(whole) == outcome(broken)
        print("the same table, learning rates and rewards" if same else "DIFFERENT")
        sys.exit(not same)


if __name__ == "__main__":
    main()
