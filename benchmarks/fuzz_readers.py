"""Throw damaged and hostile files at the readers of preference data: each is read, or refused in one clear error.

    python benchmarks/fuzz_readers.py --inputs 1000000 --format jsonl
    python benchmarks/fuzz_readers.py --inputs 1000000 --format csv --engine atheris

``mutations`` (the default) splices, cuts, repeats and nests pieces of valid and invalid files; ``atheris`` (the extra
``fuzz``) is guided by the coverage of the readers. Either ends with what became of the inputs and which lines of the
readers they ran. What counts as a failure: any exception but DataError, a row that is neither kept nor counted, or a
reason that does not fit on a screen.
"""

import argparse
import contextlib
import gzip
import inspect
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType

from normbt.errors import DataError
from normbt.pairs import Tally, check, check_rows, files, report, shape, texts
from normbt.pairs.check import Malformed
from normbt.pairs.files import Row, read_file
from normbt.pairs.shape import Survey, common_shape
from normbt.pairs.texts import scorable_row

FORMATS = ("jsonl", "json", "csv", "jsonl.gz")
READERS = (files, check, report, shape, texts)
"""The modules whose coverage guides atheris."""
LONGEST = 768
"""Bytes of the longest input of atheris: longer ones are many rows of one kind, and slow. `mutations` has those."""

_PIECES = [
    b'{"prompt": "2+2?", "chosen": "4", "rejected": "5"}\n',
    b'{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": ',
    b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}\n',
    b'{"prompt": [], "chosen": [{"role": "assistant", "content": null, "tool_calls": [1]}], "rejected": []}',
    b'{"chosen": ["a", "b"], "rejected": ["c", "d"]}',
    b'{"id": "x", "prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}], '
    b'"rejected": [{"role": "assistant", "content": "c"}], "margin": 1}\n',
    b'{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
    b'"rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}\n',
    b'{"conv_A": "a", "conv_B": "b", "conv_A_rating": 1.5, "conv_B_rating": 2, "id": 7, "subset": "x"}\n',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
    b'{"prompt": "a", "response": "b"}\n',
    b'{"question": "a", "completion": "b"}\n',
    b'[{"chosen": "a", "rejected": "b"},\n{"chosen": "a", "rejected": "c"}]',
    b"prompt,chosen,rejected\na,b,c\n",
    b"id,split,prompt,chosen,rejected\n1,train,a,b,c\n2,test,a,b,c\n",
    b"conv_A,conv_B,conv_A_rating,conv_B_rating\na,b,1,2\n",
    b"prompt,response\na,b\n",
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


def read_one(data: bytes, path: Path) -> str:
    """Read one input as `read_pairs` and `normbt score` do; what became of it.

    Raises:
        AssertionError: a row was lost, or a reason is too long to read.
        Exception: anything but DataError is a failure of the reader.
    """
    compressed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(data, 1)[: max(1, len(data))] if compressed else data)
    tally, survey = Tally("fuzzed"), Survey("fuzzed")
    try:
        pairs = list(check_rows(scored(read_file(path)), tally))
        for pair in pairs:
            survey.add(pair)
        if pairs:
            form = common_shape([survey])
            for pair in pairs:
                form.values(pair)
    except DataError as refused:
        message = str(refused)
        assert len(message) < 2000, f"a message of {len(message)} characters"
        return "refused"
    counts = tally.report()
    assert len(counts.summary()) < 3000, "a summary that fills the screen"
    assert counts.kept == len(pairs)
    lost = counts.read - counts.kept - counts.malformed - counts.tied - counts.empty - counts.identical
    assert lost == 0, counts
    assert all(len(reason) < 2000 for _, reason in counts.reasons), "a reason that fills the screen"
    return "kept pairs" if pairs else "no pair"


def scored(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each also taken as one that is to be scored."""
    for row in rows:
        with contextlib.suppress(Malformed):
            scorable_row(row)
        yield row


def reader(path: Path, outcomes: Counter[str]) -> Callable[[bytes], None]:
    """A function that reads one input, counts what became of it, and shows an input that fails."""

    def read(data: bytes) -> None:
        try:
            outcomes[read_one(data, path)] += 1
        except BaseException:
            sys.stderr.write(f"input {outcomes.total()}, {len(data)} bytes: {data[:2000]!r}\n")
            raise

    return read


def fuzz(inputs: int, path: Path, seed: int) -> Counter[str]:
    """Read that many mutated inputs."""
    generator, outcomes = random.Random(seed), Counter[str]()
    read = reader(path, outcomes)
    for _ in range(inputs):
        read(mutated(generator))
    return outcomes


def fuzz_guided(inputs: int, path: Path, seed: int) -> Counter[str]:
    """Let atheris look for inputs that reach new code of the readers, and say how much of it those it kept run."""
    import atheris

    for function in functions():
        atheris.instrument_func(function)
    corpus = path.parent / "corpus"
    corpus.mkdir()
    for number, piece in enumerate(piece for piece in _PIECES if len(piece) <= LONGEST):
        (corpus / str(number)).write_bytes(piece)
    words = ("".join(f"\\x{byte:02x}" for byte in piece) for piece in _PIECES if len(piece) <= 64)
    dictionary = path.parent / "words"
    dictionary.write_text("".join(f'"{word}"\n' for word in words))
    arguments = [
        f"-atheris_runs={inputs}",  # unlike -runs, it comes back
        f"-seed={seed + 1}",
        f"-max_len={LONGEST}",
        f"-dict={dictionary}",
        f"-artifact_prefix={path.parent}/",
        str(corpus),
    ]
    outcomes = Counter[str]()
    atheris.Setup([sys.argv[0], *arguments], reader(path, outcomes))
    try:
        atheris.Fuzz()
    except SystemExit as ended:
        if ended.code:
            raise
    kept = [entry.read_bytes() for entry in corpus.iterdir()]
    print("lines run:", ", ".join(f"{name} {ran} of {total}" for name, ran, total in lines_run(kept, path)))
    return outcomes


def functions() -> Iterator[FunctionType]:
    """Every function and method of the readers."""
    for module in READERS:
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                members = vars(value).values() if inspect.isclass(value) else [value]
                yield from filter(inspect.isfunction, members)


def lines_run(inputs: Iterable[bytes], path: Path) -> list[tuple[str, int, int]]:
    """Of each module of the readers, how many lines of its functions those inputs run, and how many there are."""
    ran: dict[str, set[int]] = {str(module.__file__): set() for module in READERS}

    def trace(frame: FrameType, event: str, _: object) -> object:
        lines = ran.get(frame.f_code.co_filename)
        if lines is not None and event == "line":
            lines.add(frame.f_lineno)
        return None if lines is None else trace

    sys.settrace(trace)
    try:
        for data in inputs:
            read_one(data, path)
    finally:
        sys.settrace(None)
    return [(Path(file).name, len(lines & _lines_of(file)), len(_lines_of(file))) for file, lines in ran.items()]


def _lines_of(file: str) -> set[int]:
    """The lines of a module's functions."""
    codes, lines = [compile(Path(file).read_bytes(), file, "exec")], set[int]()
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        if code.co_flags & inspect.CO_OPTIMIZED:  # not the body of a module or class
            lines |= {line for _, _, line in code.co_lines() if line} - {code.co_firstlineno}
    return lines


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
        begun = time.perf_counter()
        outcomes = {"mutations": fuzz, "atheris": fuzz_guided}[options.engine](options.inputs, path, options.seed)
        seconds = time.perf_counter() - begun
    shares = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
    print(f"{options.format}: {outcomes.total():,} inputs in {seconds:.0f} s, no failure: {shares}")


if __name__ == "__main__":
    main()
