"""Best of n with the reward models of an experiment: real answers that were judged, and built-in answers.

    python -m benchmarks.evidence.best_of_n runs/evidence-minilm-one-rate --data ../shared/data

*gsm8k*: the five solutions that each problem of the test split has, worth 1 where the final answer is right and 0
elsewhere. *pandalm* and *tulu*: the answers of different models to one prompt of two human evaluations, worth the
share of their comparisons that people decided for them. *built-in*: eight answers to each of 100 generated
prompts, worth their true reward. All models choose from the same pool. Writes ``docs/results/best-of-n.json``.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.evidence.summary import as_lines, environment

from normbt.best_of_n import Sampling, best_of_n
from normbt.pairs import read_pairs
from normbt.results import EXPERIMENT_FILE, read_json, read_jsonl, write_jsonl

JUDGED: dict[str, tuple[str, str | None, int]] = {
    "gsm8k": ("gsm8k_solutions.jsonl.gz", "test", 5),
    "pandalm": ("pandalm_test.jsonl.gz", None, 4),
    "tulu": ("tulu_human_eval.jsonl.gz", None, 4),
}
"""File of judged answers, its split, and the largest n."""
BUILT_IN_PROMPTS, BUILT_IN_ANSWERS = 100, 8


def main() -> None:
    """Score the pools with every model and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the experiment")
    parser.add_argument("--data", type=Path, required=True, help="folder of the preference files")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="whose models choose (default: all)")
    options = parser.parse_args()

    experiment: Any = read_json(options.folder / EXPERIMENT_FILE, kind="experiment")
    models = {
        f"{cell['method']}/{cell['seed']}": str(options.folder / cell["folder"] / "model")
        for cell in experiment["cells"]
        if options.methods is None or cell["method"] in options.methods
    }
    scoring = experiment["recipe"]["evaluation"]
    folder = options.folder / "best-of-n"
    pools: dict[str, dict[str, Any]] = {}
    for name, (file, split, most) in JUDGED.items():
        candidates = folder / f"{name}.jsonl"
        write_jsonl(candidates, judged_answers(options.data / file, split))
        pools[name] = {"candidates": candidates, "gold": "gold", "sizes": list(range(1, most + 1))}
    pools |= {
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
    if options.methods:
        command += f" --methods {' '.join(options.methods)}"
    record = {"command": command, **environment(), "experiment": experiment["name"], "pools": found}
    written = options.results / "best-of-n.json"
    written.write_text(as_lines(record, depth=4) + "\n", encoding="utf-8")
    print(written)


def judged_answers(file: Path, split: str | None) -> list[dict[str, Any]]:
    """Each answer to each prompt once; ``gold`` is the share of its pairs in which it was preferred."""
    rows, _ = read_pairs(str(file), split=split)
    judged: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        prompt = _text(row["prompt"])
        for side, won in (("chosen", 1), ("rejected", 0)):
            judged.setdefault((prompt, _text(row[side])), []).append(won)
    return [
        {"prompt_id": prompt, "prompt": prompt, "response": answer, "gold": sum(won) / len(won)}
        for (prompt, answer), won in judged.items()
    ]


def _text(of: Any) -> str:
    return of if isinstance(of, str) else of[-1]["content"]


if __name__ == "__main__":
    main()
