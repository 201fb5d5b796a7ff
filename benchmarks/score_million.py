"""A million rows through `normbt score`: is memory flat, and does a killed run give the same file as an unbroken one?

    python benchmarks/score_million.py [--rows 1000000] [--kills 2]

Builds a tiny reward model and a file of rows, scores it in one go while the memory of the process is read, scores it
again with SIGKILL at random moments, and compares the two files byte by byte. Exits with 1 if anything does not hold.
"""

import argparse
import filecmp
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CHUNK_ROWS = 4_096
POINTS = (0.1, 0.25, 0.5, 0.75, 1.0)
GROWTH = 1.10
"""How much the peak may grow from the first point to the last."""
WORDS = 200


def main() -> int:
    """Run the three checks and print a verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the file (default: 1,000,000)")
    parser.add_argument("--kills", type=int, default=2, help="times the second run is killed (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the rows and of the moments of the kills")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    chunks = -(-arguments.rows // CHUNK_ROWS)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "rm")
        data = folder / "rows.jsonl"
        write_rows(data, arguments.rows, draw)
        print(f"{arguments.rows:,} rows, {data.stat().st_size / 2**20:,.0f} MiB, {chunks} chunks of {CHUNK_ROWS:,}")

        whole, cut = folder / "whole.jsonl", folder / "cut.jsonl"
        points: dict[float, tuple[float, float]] = {}

        def watch(pid: int, done: int) -> bool:
            for point in POINTS:
                if point not in points and done >= point * (chunks - 1):
                    resident, peak = points[point] = memory(pid)
                    print(f"  {point:4.0%} of the chunks: resident {resident:,.0f} MiB, peak {peak:,.0f} MiB")
            return False

        print("one pass:")
        seconds = score(folder, data, whole, watch)
        print(f"  {seconds:,.0f} s, {1e6 * seconds / arguments.rows:,.0f} us a row")
        flat = points[POINTS[-1]][1] <= GROWTH * points[POINTS[0]][1]

        print(f"killed {arguments.kills} times:")
        for moment in sorted(draw.sample(range(1, chunks), arguments.kills)):
            pause = draw.random()

            def kill(pid: int, done: int, moment: int = moment, pause: float = pause) -> bool:
                if done < moment:
                    return False
                time.sleep(pause)  # somewhere in the middle of a chunk
                return True

            score(folder, data, cut, kill)
            left = len(list(parts_of(cut).glob("[0-9]*.jsonl")))
            print(f"  SIGKILL after {left} of {chunks} chunks; output there: {cut.exists()}")
        score(folder, data, cut, lambda pid, done: False)
        same = filecmp.cmp(whole, cut, shallow=False)
        lost, doubled = compare_with_input(cut, arguments.rows)

    print(f"memory flat: {flat} (peak at most {GROWTH:.2f} times that of the first tenth)")
    print(f"killed run equals one pass, byte by byte: {same}; rows lost: {lost}, doubled or out of order: {doubled}")
    passed = flat and same and not lost and not doubled
    print("PASSED" if passed else "FAILED")
    return 0 if passed else 1


def save_model(folder: Path) -> None:
    """A BERT of one layer with a tokenizer of whole words, saved as a user would have it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {f"w{index}": index + 2 for index in range(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS + 2,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)


def write_rows(path: Path, count: int, draw: random.Random) -> None:
    """Prompts with answers of random words, and a column that counts the rows."""
    names = [f"w{index}" for index in range(WORDS)]
    with path.open("w", encoding="utf-8") as stream:
        for index in range(count):
            prompt, answer = " ".join(draw.choices(names, k=4)), " ".join(draw.choices(names, k=4 + index % 9))
            stream.write(json.dumps({"prompt": f"{prompt} ", "response": answer, "number": index}) + "\n")


def score(folder: Path, data: Path, output: Path, look: Callable[[int, int], bool]) -> float:
    """Run the command until it ends, or until `look(pid, chunks done)` says to kill it; the seconds it took."""
    command = [sys.executable, "-m", "normbt", "score", str(folder / "rm"), "--data", str(data), "--device", "cpu"]
    command += ["--output_file", str(output), "--chunk_rows", str(CHUNK_ROWS)]
    started = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            done = len(list(parts_of(output).glob("[0-9]*.jsonl")))
            if done and look(process.pid, done):
                process.send_signal(signal.SIGKILL)
                process.wait()
                return time.monotonic() - started
            time.sleep(0.05)
    if process.returncode:
        sys.exit((folder / "log").read_text()[-3000:])
    return time.monotonic() - started


def parts_of(output: Path) -> Path:
    """Where the finished chunks are."""
    return output.with_name(f"{output.name}.parts")


def memory(pid: int) -> tuple[float, float]:
    """Resident memory of a process now, and its highest so far, in MiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def compare_with_input(output: Path, rows: int) -> tuple[int, int]:
    """Rows of the input that the output lacks, and rows that are not in their place."""
    found = misplaced = 0
    with output.open(encoding="utf-8") as stream:
        for place, line in enumerate(stream):
            found += 1
            misplaced += json.loads(line)["number"] != place
    return rows - found, misplaced


if __name__ == "__main__":
    sys.exit(main())
