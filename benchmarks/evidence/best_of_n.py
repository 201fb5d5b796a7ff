"""Best of n with the reward models of an experiment: solutions of real problems, and built-in answers.

    python -m benchmarks.evidence.best_of_n runs/evidence-minilm-one-rate --data ../shared/data

*gsm8k*: the five solutions that each problem of the test split has, worth 1 where the final answer is right and 0
elsewhere. *built-in*: eight answers to each of 100 generated prompts, worth their true reward. All models choose from
the same pool. Writes ``docs/results/best-of-n.json``.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.evidence.summary import as_lines, environment

from normbt.best_of_n import Sampling, best_of_n
from normbt.pairs import read_pairs
from normbt.results import EXPERIMENT_FILE, read_json, read_jsonl, write_jsonl

BUILT_IN_PROMPTS, BUILT_IN_ANSWERS = 100, 8


def main() -> None:
    """Score the pools with every model and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the experiment")
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference files")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    options = parser.parse_args()

    experiment: Any = read_json(options.folder / EXPERIMENT_FILE, kind="experiment")
    models = {
        f"{cell['method']}/{cell['seed']}": str(options.folder / cell["folder"] / "model")
        for cell in experiment["cells"]
    }
    scoring = {"max_length": experiment["recipe"]["evaluation"]["max_length"]}
    folder = options.folder / "best-of-n"
    candidates = folder / "gsm8k.jsonl"
    write_jsonl(candidates, solutions(options.data / "gsm8k_solutions.jsonl.gz"))
    pools: dict[str, dict[str, Any]] = {
        "gsm8k": {"candidates": candidates, "gold": "gold", "sizes": [1, 2, 3, 4, 5]},
        "built-in": {
            "synthetic": BUILT_IN_PROMPTS,
            "sampling": Sampling(samples=BUILT_IN_ANSWERS),
            "sizes": [1, 2, 4, 8],
        },
    }
    found = {}
    for name, pool in pools.items():
        summary = best_of_n(output_dir=folder / name, proxy_models=models, scoring=scoring, overwrite=True, **pool)
        curves: Any = list(read_jsonl(folder / name / "curves.jsonl"))
        found[name] = {
            "counts": summary["counts"],
            "points": [{"rule": row["rule"], "n": row["n"], "gold": row["gold"]} for row in curves],
        }
    command = "python -m benchmarks.evidence.best_of_n runs/evidence-minilm-one-rate --data ../shared/data"
    record = {"command": command, **environment(), "experiment": experiment["name"], "pools": found}
    file = options.results / "best-of-n.json"
    file.write_text(as_lines(record, depth=4) + "\n", encoding="utf-8")
    print(file)


def solutions(file: Path) -> list[dict[str, Any]]:
    """Each solution of each problem of the test split once."""
    rows, _ = read_pairs(str(file), split="test")
    pool: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        for side, gold in (("chosen", 1), ("rejected", 0)):
            answer = row[side] if isinstance(row[side], str) else row[side][-1]["content"]
            pool[prompt, answer] = {"prompt_id": prompt, "prompt": prompt, "response": answer, "gold": gold}
    return list(pool.values())


if __name__ == "__main__":
    main()
