"""Throw damaged and hostile files at the readers of preference data: each is read, or refused in one clear error.

    python benchmarks/fuzz_readers.py --inputs 1000000 --format jsonl
    python benchmarks/fuzz_readers.py --inputs 1000000 --format csv --engine atheris

``mutations`` (the default) splices, cuts, repeats and nests pieces of valid and invalid files; ``atheris`` (the extra
``fuzz``) is guided by the coverage of the readers. What counts as a failure: any exception but DataError, a row that is
neither kept nor counted, or a reason that does not fit on a screen.
"""

import argparse
import gzip
import inspect
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from normbt.errors import DataError
from normbt.pairs import Tally, check_rows
from normbt.pairs.files import read_file

FORMATS = ("jsonl", "json", "csv", "jsonl.gz")

_PIECES = [
    b'{"prompt": "2+2?", "chosen": "4", "rejected": "5"}\n',
    b'{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": ',
    b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}\n',
    b'{"prompt": [], "chosen": [{"role": "assistant", "content": null, "tool_calls": [1]}], "rejected": []}',
    b'{"chosen": ["a", "b"], "rejected": ["c", "d"]}',
    b'[{"chosen": "a", "rejected": "b"},\n{"chosen": "a", "rejected": "c"}]',
    b"prompt,chosen,rejected\na,b,c\n",
    b'chosen,rejected,margin\n"a ""quoted"" b","c\nd",0.5\n',
    *(b'"chosen"', b'"rejected"', b'"prompt"', b'"margin": ', b'"id": ', b'"split": "test"', b'"messages"'),
    *(b'"chosen": "a", "chosen": "b"', b"chosen,chosen,rejected\n"),
    *(b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 30, b"9" * 5000, b"0.1e-400", b"true", b"null"),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b"\\",
        b'"',
        b'""',
        b"'",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xc3\x28",
        b"\xed\xa0\x80",
    ),
    *(
        b"[" * 50,
        b"[" * 5000,
        b'{"a":' * 50,
        b'{"a":' * 3000,
        b"]",
        b"}",
        b"[",
        b"{",
        b",",
        b":",
        b"\n",
        b"\r\n",
        b"\r",
        b" ",
    ),
    *(b"a" * 10_000, "ünïcode 漢字 🙂".encode(), b"<script>", b"{{ 1 }}", b"__import__('os')"),
]


def mutated(generator: random.Random) -> bytes:
    """A file made of random pieces, then cut, repeated or with bytes exchanged."""
    data = b"".join(generator.choices(_PIECES, k=generator.randint(1, 8)))
    for _ in range(generator.randint(0, 3)):
        place = generator.randrange(len(data) + 1)
        kind = generator.randrange(4)
        if kind == 0:
            data = data[:place] + generator.randbytes(generator.randint(1, 4)) + data[place:]
        elif kind == 1:
            data = data[:place] + data[place + generator.randint(1, 20) :]
        elif kind == 2:
            data = data[:place] + generator.choice(_PIECES) + data[place:]
        else:
            data = data[:place]
    return data


def check(data: bytes, path: Path) -> str:
    """Read one input; what became of it.

    Raises:
        AssertionError: a row was lost, or a reason is too long to read.
        Exception: anything but DataError is a failure of the reader.
    """
    compressed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(data, 1)[: max(1, len(data))] if compressed else data)
    tally = Tally("fuzzed")
    try:
        kept = sum(1 for _ in check_rows(read_file(path), tally))
    except DataError as refused:
        message = str(refused)
    else:
        message = None
    if message is not None:
        assert len(message) < 2000, f"a message of {len(message)} characters"
        return "refused"
    report = tally.report()
    assert report.kept == kept
    assert report.read == kept + report.malformed + report.empty + report.identical, report
    assert all(len(reason) < 2000 for _, reason in report.reasons), "a reason that fills the screen"
    return "kept pairs" if kept else "no pair"


def fuzz(inputs: int, path: Path, seed: int) -> Counter[str]:
    """Check that many mutated inputs."""
    generator, outcomes = random.Random(seed), Counter[str]()
    for number in range(inputs):
        data = mutated(generator)
        try:
            outcomes[check(data, path)] += 1
        except BaseException:
            sys.stderr.write(f"input {number} of seed {seed}, {len(data)} bytes: {data[:2000]!r}\n")
            raise
    return outcomes


def fuzz_guided(inputs: int, path: Path, seed: int) -> None:
    """Let atheris look for inputs that reach new code; it ends the process."""
    import atheris

    from normbt.pairs import check as check_module
    from normbt.pairs import files as files_module

    for module in (check_module, files_module):
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(value))
    corpus = path.parent / "corpus"
    corpus.mkdir()
    for number, piece in enumerate(_PIECES):
        (corpus / str(number)).write_bytes(piece)
    arguments = [
        sys.argv[0],
        f"-runs={inputs}",
        f"-seed={seed + 1}",
        "-max_len=4096",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup(arguments, lambda data: check(data, path) and None)
    atheris.Fuzz()


def main() -> None:
    """Fuzz one format and print what became of the inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--format", choices=FORMATS, default="jsonl")
    parser.add_argument("--engine", choices=("mutations", "atheris"), default="mutations")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        path = Path(scratch) / f"pairs.{options.format}"
        if options.engine == "atheris":
            fuzz_guided(options.inputs, path, options.seed)
            return
        begun = time.perf_counter()
        outcomes = fuzz(options.inputs, path, options.seed)
        seconds = time.perf_counter() - begun
    shares = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
    print(f"{options.format}: {options.inputs:,} inputs in {seconds:.0f} s, no failure: {shares}")


if __name__ == "__main__":
    main()
