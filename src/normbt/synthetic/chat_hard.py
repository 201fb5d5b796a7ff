"""Chat-hard: a request with one checkable instruction; the weak answer looks the same and misses that instruction."""

from random import Random

from normbt.synthetic.chat import COURTESY, ENCOURAGEMENT, PEOPLE, TIMES, VAGUE
from normbt.synthetic.tasks import Task, between, chance, pick, pick_several, sentence
from normbt.synthetic.topics import NEIGHBOURS

NUMBERS = (
    "zero", "one", "two", "three", "four",
)  # fmt: skip
LAYOUTS = {
    "numbered": ("as a numbered list", "with a number before each tip", "and number them"),
    "dashes": ("as a list with dashes", "with a dash before each tip", "as dash points"),
    "paragraph": ("as one plain paragraph", "without any list", "as flowing text"),
}
REQUESTS = (
    "Give me {number} tips on how to {goal} {time}, {layout}. I am {person}.",
    "I am {person}. List {number} ways to {goal} {time}, {layout}.",
    "Name {number} things that help someone to {goal} {time}, {layout}. The reader is {person}.",
    "I need {number} pieces of advice to {goal} {time}, {layout}. I'm {person}.",
)  # fmt: skip
#: What the user asks about the end of the answer: the sentence that asks for it, and whether it wants a question.
ENDINGS = (
    ("End with a question to me.", True),
    ("Finish by asking me something.", True),
    ("Close with one question.", True),
    ("Do not ask me anything back.", False),
    ("Please ask no questions.", False),
    ("No question at the end, please.", False),
)
QUESTIONS_BACK = (
    "Which of these will you try first?", "Does this fit your plans?", "What have you tried so far?",
    "How much time do you have?", "Would you like more detail?", "Which part worries you most?",
)  # fmt: skip
STATEMENTS = (
    "These will carry you a long way.", "That covers the main points.", "Take them in any order you like.",
    "The first one matters most.", "More detail is easy to add later.", "Most people see a change soon.",
)  # fmt: skip


def make_task(random: Random) -> Task:
    """Return a request that fixes the topic, the number of items, their layout, and sometimes the ending."""
    topic, neighbour = pick_several(random, pick(random, NEIGHBOURS), 2)
    count, layout = between(random, 2, 4), pick(random, tuple(LAYOUTS))
    prompt = pick(random, REQUESTS).format(
        number=NUMBERS[count], goal=topic.goal, time=pick(random, TIMES), person=pick(random, PEOPLE),
        layout=pick(random, LAYOUTS[layout]),
    )  # fmt: skip
    asks_ending = chance(random, 0.5)
    ending, wants_question = pick(random, ENDINGS)
    # A wrong count is as often one too few as one too many, and so the count alone says little.
    wrong_count = count + (1 if chance(random, 0.5) else -1)
    wrong_layout = pick(random, [name for name in LAYOUTS if name != layout])

    def write(attributes: frozenset[str], wording: Random) -> str:
        source = neighbour if "neighbour_question" in attributes else topic
        order = pick_several(wording, range(6), 6)
        items = [source.advice[index] for index in order[: wrong_count if "wrong_count" in attributes else count]]
        empty_place, empty = between(wording, 0, len(items) - 1), pick(wording, VAGUE)
        if "empty_item" in attributes:
            items[empty_place] = empty
        courtesy, encouragement = pick(wording, COURTESY), pick(wording, ENCOURAGEMENT)
        question, statement = pick(wording, QUESTIONS_BACK), pick(wording, STATEMENTS)
        lines = [courtesy] if "courteous" in attributes else []
        lines.append(_lay_out(items, wrong_layout if "wrong_format" in attributes else layout))
        if "encouraging" in attributes:
            lines.append(encouragement)
        if asks_ending:
            lines.append(question if wants_question != ("broken_constraint" in attributes) else statement)
        return "\n".join(lines)

    flaws = ("neighbour_question", "wrong_count", "empty_item", "wrong_format") + (
        ("broken_constraint",) if asks_ending else ()
    )
    return Task(
        subset="ending" if asks_ending else "list",
        prompt=sentence(f"{prompt} {ending}" if asks_ending else prompt),
        flaws=flaws,
        write=write,
        same_wording=True,
    )


def _lay_out(items: list[str], layout: str) -> str:
    if layout == "numbered":
        return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
    if layout == "dashes":
        return "\n".join(f"- {item}" for item in items)
    return " ".join(items)
