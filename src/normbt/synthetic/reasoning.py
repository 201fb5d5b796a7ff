"""Reasoning: worked solutions and short functions; the weak answer has one wrong step, or a single wrong token."""

from collections.abc import Callable
from random import Random

from normbt.synthetic.tasks import Task, between, chance, pick, pick_several, sentence

NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Iris", "Jon", "Kim", "Leo", "Mia", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tara", "Uma", "Vera", "Will", "Yara", "Zoe",
)  # fmt: skip
THINGS = (
    "apples", "books", "stamps", "marbles", "pencils", "shells", "coins", "cards", "eggs", "candles", "buttons",
    "tickets", "plums", "stickers", "bottles", "chairs",
)  # fmt: skip
GAINS = (
    "buys {n} more", "finds another {n}", "is given {n} more", "wins {n} more", "picks up {n} more",
)  # fmt: skip
LOSSES = (
    "gives away {n}", "loses {n}", "sells {n}", "breaks {n} of them", "hands {n} to a friend",
)  # fmt: skip
PLACES = (
    "at home", "at school", "in the garden", "at the market", "on the train", "in the office", "at the club",
    "in town",
)  # fmt: skip
UNITS = (
    ("minutes", "seconds", 60),
    ("hours", "minutes", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("metres", "centimetres", 100),
    ("years", "months", 12),
    ("litres", "millilitres", 1000),
)
ACTIVITIES = (
    "A film lasts", "A trip takes", "A walk takes", "A repair takes", "A course lasts", "A visit lasts",
    "A game takes", "A flight lasts", "A meeting takes", "A storm lasts",
)  # fmt: skip
LENGTHS = (
    "A rope is", "A fence is", "A wall is", "A ribbon is", "A boat is", "A table is", "A path is",
    "A curtain is",
)  # fmt: skip
VOLUMES = (
    "A tank holds", "A jug holds", "A bucket holds", "A barrel holds", "A kettle holds", "A bath holds",
)  # fmt: skip
COMPARATIVES = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("heavier", "heaviest", "lightest"),
    ("stronger", "strongest", "weakest"),
    ("richer", "richest", "poorest"),
)
#: How often the more usual of two opposite requests is made: the largest, above a limit, a loss.
USUAL = 0.7
VALUES = (
    "values", "scores", "prices", "weights", "ages", "lengths", "points", "times", "readings", "costs", "sizes",
    "marks",
)  # fmt: skip
COUNTING = ("count the {values} that are", "find how many {values} are", "return the number of {values} that are")
KEEPING = ("keep the {values} that are", "select the {values} that are", "return all {values} that are")
LARGEST = ("largest", "highest", "greatest", "biggest")
SMALLEST = ("smallest", "lowest", "least", "minimum")
LOOKING = (
    "Write a Python loop that finds the {word} of a list of {values}{note}.",
    "Find the {word} among the {values} in Python, without built-ins{note}.",
    "I have {values} in a list. Return the {word} one with a Python loop{note}.",
    "Python: return the {word} of the given {values}{note}.",
)
WITH_BOUND = ("up to and including {bound}", "from 1 through {bound}", "from 1 to {bound}, with {bound} counted")
WITHOUT_BOUND = ("below {bound}", "from 1 up to but not including {bound}", "smaller than {bound}")


def make_task(random: Random) -> Task:
    """Return a task of one of the six kinds."""
    return pick(random, KINDS)(random)


def _two_steps(random: Random) -> Task:
    """A count that changes twice; the flaw is a slip in one sum, or adding where one must subtract."""
    name, thing, place = pick(random, NAMES), pick(random, THINGS), pick(random, PLACES)
    start, amounts = between(random, 20, 60), [between(random, 2, 9), between(random, 2, 9)]
    gains = [not chance(random, USUAL), not chance(random, USUAL)]
    events = [pick(random, GAINS if gain else LOSSES).format(n=n) for gain, n in zip(gains, amounts, strict=True)]
    prompt = (
        f"{name} has {start} {thing} {place}. First {name} {events[0]}, and later {name} {events[1]}. "
        f"How many {thing} does {name} have now?"
    )
    wrong_at, slip = between(random, 0, 1), pick(random, (-2, -1, 1, 2))

    def write(attributes: frozenset[str], wording: Random) -> str:
        joiner = pick(wording, ("so there are", "which leaves", "so the count is", "which makes"))
        total, steps = start, []
        for index, (gain, amount) in enumerate(zip(gains, amounts, strict=True)):
            adds = gain != ("wrong_operation" in attributes and index == wrong_at)
            result = total + amount if adds else total - amount
            result += slip if "wrong_step" in attributes and index == wrong_at else 0
            steps.append(f"{name} {events[index]}, {joiner} {total} {'+' if adds else '-'} {amount} = {result}.")
            total = result
        return f"{name} starts with {start} {thing}. {' '.join(steps)} The answer is {total} {thing}."

    return _task("arithmetic", prompt, ("wrong_operation", "wrong_step"), write)


def _unit(random: Random) -> Task:
    """A conversion to a smaller or a larger unit; the flaw is the unit of the answer, or a slip in the result."""
    big, small, factor = pick(random, UNITS)
    subject = pick(random, LENGTHS if big == "metres" else VOLUMES if big == "litres" else ACTIVITIES)
    amount, shrinks = between(random, 2, 12), chance(random, 0.5)
    given, wanted = (big, small) if shrinks else (small, big)
    given_amount, result = (amount, amount * factor) if shrinks else (amount * factor, amount)
    question = pick(random, ("How many {unit} is that?", "Give this in {unit}.", "What is this in {unit}?"))
    measure = f"{given_amount} {given}{' long' if big == 'metres' else ''}"
    prompt = f"{subject} {measure} {pick(random, PLACES)}. {question.format(unit=wanted)}"
    slip = pick(random, (-1, 1))

    def write(attributes: frozenset[str], wording: Random) -> str:
        found = result + (slip if "wrong_step" in attributes else 0)
        work = pick(wording, ("We multiply", "Multiply") if shrinks else ("We divide", "Divide"))
        return (
            f"One {big[:-1]} is {factor} {small}. {work} {given_amount} by {factor}: "
            f"{given_amount} {'*' if shrinks else '/'} {factor} = {found}. "
            f"The answer is {found} {given if 'wrong_unit' in attributes else wanted}."
        )

    return _task("unit", prompt, ("wrong_unit", "wrong_step"), write)


def _order(random: Random) -> Task:
    """Three people in a row; the flaw is one relation turned round, and the answer with it."""
    more, most, least = pick(random, COMPARATIVES)
    first, second, third = pick_several(random, NAMES, 3)
    facts = [f"{first} is {more} than {second}.", f"{second} is {more} than {third}."]
    facts = facts if chance(random, 0.5) else facts[::-1]
    wants_most = chance(random, 0.5)
    prompt = f"{facts[0]} {facts[1]} Who is the {most if wants_most else least} of the three {pick(random, PLACES)}?"

    def write(attributes: frozenset[str], wording: Random) -> str:
        chain = [first, second, third]
        if "wrong_order" in attributes:
            chain = [second, first, third] if wants_most else [first, third, second]
        opening = pick(wording, ("Put them in order", "From top to bottom", "The order is", "Line them up"))
        answer = chain[0] if wants_most else chain[2]
        return (
            f"{opening}: {chain[0]}, {chain[1]}, {chain[2]}. {chain[1]} is in the middle. "
            f"The {most if wants_most else least} is {answer}."
        )

    return _task("order", prompt, ("wrong_order",), write)


def _threshold_code(random: Random) -> Task:
    """A function that counts or keeps what lies beyond a limit; the flaw is the comparison turned round."""
    values, limit = pick(random, VALUES), between(random, 2, 99)
    above, strict = chance(random, USUAL), chance(random, 0.5)
    if strict:
        phrase = f"{'more' if above else 'less'} than {limit}"
    else:
        phrase = f"at {'least' if above else 'most'} {limit}"
    counts = chance(random, 0.5)
    aim = pick(random, COUNTING if counts else KEEPING).format(values=values)
    prompt = f"Write a Python function to {aim} {phrase}."
    right, wrong = (">", "<") if above else ("<", ">")
    equals = "" if strict else "="

    def write(attributes: frozenset[str], wording: Random) -> str:
        item, function = pick(wording, ("x", "item", "value", "v")), pick(wording, ("solve", "pick", "check", "select"))
        sign = (wrong if "flipped_comparison" in attributes else right) + equals
        body = f"sum(1 for {item} in {values} if {item} {sign} {limit})"
        if not counts:
            body = f"[{item} for {item} in {values} if {item} {sign} {limit}]"
        return f"def {function}({values}):\n    return {body}"

    return _task("comparison", prompt, ("flipped_comparison",), write)


def _extreme_code(random: Random) -> Task:
    """A loop that finds the largest or the smallest element; the flaw is the comparison turned round."""
    values, largest = pick(random, VALUES), chance(random, USUAL)
    word = pick(random, LARGEST if largest else SMALLEST)
    prompt = pick(random, LOOKING).format(word=word, values=values, note=_note(random))

    def write(attributes: frozenset[str], wording: Random) -> str:
        item, best = pick(wording, ("x", "item", "value", "v")), pick(wording, ("best", "result", "found", "answer"))
        sign = ">" if largest != ("flipped_comparison" in attributes) else "<"
        return (
            f"def solve({values}):\n    {best} = {values}[0]\n    for {item} in {values}:\n"
            f"        if {item} {sign} {best}:\n            {best} = {item}\n    return {best}"
        )

    return _task("comparison", prompt, ("flipped_comparison",), write)


def _range_code(random: Random) -> Task:
    """A loop up to a bound that is included or not; the flaw is one too many or one too few."""
    bound, included = pick(random, ("n", "limit", "top", "end", "size", "k")), chance(random, 0.5)
    what = pick(random, ("sum", "product", "list", "sum of squares"))
    phrase = pick(random, WITH_BOUND if included else WITHOUT_BOUND).format(bound=bound)
    prompt = f"Write a Python function for the {what} of the whole numbers {phrase}{_note(random)}."

    def write(attributes: frozenset[str], wording: Random) -> str:
        item, total = pick(wording, ("i", "number", "k", "x")), pick(wording, ("total", "result", "out", "acc"))
        stop = f"{bound} + 1" if included != ("off_by_one" in attributes) else bound
        start = {"product": "1", "list": "[]"}.get(what, "0")
        step = {"sum": f"{total} += {item}", "product": f"{total} *= {item}", "list": f"{total}.append({item})",
                "sum of squares": f"{total} += {item} ** 2"}[what]  # fmt: skip
        return (
            f"def solve({bound}):\n    {total} = {start}\n    for {item} in range(1, {stop}):\n"
            f"        {step}\n    return {total}"
        )

    return _task("off_by_one", prompt, ("off_by_one",), write)


def _note(random: Random) -> str:
    who, where = pick(random, NAMES), pick(random, PLACES)
    return pick(
        random,
        ("", f" for {who}", f"; {who} will use it {where}", f", as {who} asked {where}", f" to show {who} {where}"),
    )


def _task(subset: str, prompt: str, flaws: tuple[str, ...], write: Callable[[frozenset[str], Random], str]) -> Task:
    return Task(subset=subset, prompt=sentence(prompt), flaws=flaws, write=write, merits=(), same_wording=True)


KINDS = (_two_steps, _unit, _order, _threshold_code, _extreme_code, _range_code)
