"""Chat: open questions about everyday topics; a weak answer is off topic, vague, rude or cut short."""

from random import Random

from normbt.synthetic.tasks import Task, between, chance, pick, pick_several, sentence
from normbt.synthetic.topics import NEIGHBOURS, Topic

PEOPLE = (
    "a student", "a nurse on night shifts", "a new parent", "retired", "a busy teacher", "a beginner",
    "sixteen", "new in town", "a bus driver", "working from home", "a bit lazy", "on a tight budget",
    "a shop owner", "quite shy", "left-handed", "recovering from a cold", "sharing a small flat",
    "living alone", "a careful person", "an engineer", "always short of time", "seventy years old",
    "a violin player", "good with lists", "easily distracted",
)  # fmt: skip
TIMES = (
    "this week", "before the holidays", "this month", "over the weekend", "this spring", "this autumn",
    "in my free time", "without spending much", "from scratch", "with little effort", "on my own",
    "as a surprise", "for the first time", "without stress", "starting tomorrow", "at my own pace",
    "step by step", "in the evenings",
)  # fmt: skip
QUESTIONS = (
    "How do I {goal} {time}? I am {person}.", "I am {person} and want to {goal} {time}. What should I do?",
    "What is the best way to {goal} {time} if I am {person}?", "Can you help me {goal} {time}? I'm {person}.",
    "My question: how can I {goal} {time}, being {person}?",
    "I'd like to {goal} {time}. I am {person}. Any advice?",
    "Please tell me how to {goal} {time}. By the way, I am {person}.",
    "As someone who is {person}, how would I {goal} {time}?",
)  # fmt: skip
OPENINGS = (
    "Here is what I would do.", "A few things help.",
    "It depends a little on your situation, but this usually works.", "There are several ways to go about it.",
    "Let me be brief.", "In short:", "This is easier than it looks.", "Some points to think about.",
    "People handle this in different ways.", "Start with the basics.",
)  # fmt: skip
COURTESY = (
    "Thanks for asking!", "Good question!", "Happy to help.", "I'm glad you asked.", "Nice idea!",
    "Sure, with pleasure.",
)  # fmt: skip
ENCOURAGEMENT = (
    "You can do this.", "Good luck with it!", "Enjoy the process.", "Small steps are fine.",
    "I am sure it will go well.", "Be patient with yourself.",
)  # fmt: skip
LINKS = (
    "", "", "", "Also, ", "Then ", "After that, ", "Besides, ", "If you can, ",
)  # fmt: skip
RUDE = (
    "What a silly question.",
    "This is a silly waste of my time.",
    "Only a fool would ask that.",
    "Do not be so lazy and silly.",
    "I am tired of silly questions like this.",
    "You are wasting my time again.",
    "Even a fool could work this out.",
    "Stop wasting my time with this.",
)
VAGUE_OPENINGS = (
    "If you want to {goal}, it really depends.", "To {goal} is a good aim.",
    "There is a lot to say about how to {goal}.", "Many people want to {goal}.",
    "You can {goal} in more than one way.", "When you {goal}, be prepared.",
)  # fmt: skip
VAGUE = (
    "It really depends on many different things.",
    "There are many ways to do it and it depends.",
    "Many different things can be done about this.",
    "In general it depends on many small details.",
    "Some things work well and some things do not.",
    "In general you will find a good way to do it.",
    "Just see how things go and do what you can.",
    "The results depend on many different things.",
)


def make_task(random: Random) -> Task:
    """Return an open question about an everyday topic."""
    row = pick(random, NEIGHBOURS)
    topic = pick(random, row)
    other = pick(random, [topic for other_row in NEIGHBOURS if other_row is not row for topic in other_row])
    prompt = pick(random, QUESTIONS).format(goal=topic.goal, time=pick(random, TIMES), person=pick(random, PEOPLE))

    def write(attributes: frozenset[str], wording: Random) -> str:
        return _answer(other if "off_topic" in attributes else topic, attributes, wording)

    flaws = ("off_topic", "vague", "rude", "truncated")
    return Task(subset="advice", prompt=sentence(prompt), flaws=flaws, write=write)


def _answer(topic: Topic, attributes: frozenset[str], wording: Random) -> str:
    count = between(wording, 1, 2)
    if "vague" in attributes:
        goal = topic.goal.replace(" my ", " your ")
        body = [pick(wording, VAGUE_OPENINGS).format(goal=goal), *pick_several(wording, VAGUE, count - 1)]
    else:
        body = [_linked(pick(wording, LINKS), advice) for advice in pick_several(wording, topic.advice, count)]
    if "rude" in attributes:
        body.insert(between(wording, 0, len(body)), pick(wording, RUDE))
    opening = [pick(wording, COURTESY)] if "courteous" in attributes else []
    if chance(wording, 0.2):
        opening.append(pick(wording, OPENINGS))
    closing = [pick(wording, ENCOURAGEMENT)] if "encouraging" in attributes else []
    if "truncated" in attributes:
        last_words = body[-1].rstrip(".").split()
        kept = between(wording, 1, len(last_words) - 2)
        return " ".join([*opening, *body[:-1], *last_words[:kept]])
    return " ".join([*opening, *body, *closing])


def _linked(link: str, advice: str) -> str:
    return link + advice[0].lower() + advice[1:] if link else advice
