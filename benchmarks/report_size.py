"""What a report of many pairs costs: seconds, peak memory, size of the page, and how many pairs and texts it shows.

Writes a diagnosis of generated pairs with texts of random words (which hardly compress), in a process of its own, and
draws the report in another, whose peak resident memory is measured.

    python benchmarks/report_size.py --pairs 10000 100000
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
TESTS = HERE.parents[1] / "tests"


def main() -> None:
    """Run both steps in processes of their own for each size, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--words", type=int, default=150, help="random words at the end of each answer")
    parser.add_argument("--inner", choices=["write", "report"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner == "write":
        sys.path.insert(0, str(TESTS))
        from diagnosed import write_diagnosis

        write_diagnosis(args.folder / "diagnosis", args.pairs[0], words=args.words)
        return
    if args.inner == "report":
        from normbt.report import write_report

        started = time.perf_counter()
        report = write_report([args.folder / "diagnosis"], output_dir=args.folder / "report")
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        file = (args.folder / "diagnosis" / "pairs.jsonl").stat().st_size / 1e6
        print(
            f"{report.pairs_total:>9,} {file:>9.1f} {seconds:>8.1f} {peak:>9.0f} {report.page_bytes / 1e6:>8.2f} "
            f"{report.pairs:>11,} {report.texts:>11,}",
            flush=True,
        )
        return
    print(f"{'pairs':>9} {'file MB':>9} {'seconds':>8} {'peak MiB':>9} {'page MB':>8} {'shown':>11} {'with texts':>11}")
    for pairs in args.pairs:
        with tempfile.TemporaryDirectory() as folder:
            for inner in ("write", "report"):
                command = [sys.executable, str(HERE), "--inner", inner, "--folder", folder, "--pairs", str(pairs)]
                subprocess.run([*command, "--words", str(args.words)], check=True)


if __name__ == "__main__":
    main()
