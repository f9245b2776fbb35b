"""Questions and answers out of the entries of the documentation, by rules alone: no pair is written or chosen by hand.

An entry is asked for in several ways, and its answer is what the documentation says first of it. Functions are also
asked for the other way round: "How do I ...?" with what they do, and their name is the answer.
"""

import collections
import dataclasses
import random
import re
from collections.abc import Iterable, Iterator, Sequence

from tools.train_demo.corpus import held_out, plain
from tools.train_demo.documentation import Entry, summary

_DOES = ("What does {name} do?", "What does {name} do?", "What does {name}() do?", "What is {name}?", "Explain {name}.")
_IS = ("What is {name}?", "What is {name}?", "What does {name} do?", "What is {name} for?", "Explain {name}.")
PHRASES = {
    **dict.fromkeys(("function", "coroutinefunction", "decorator", "method", "classmethod", "staticmethod"), _DOES),
    "class": _IS,
    "exception": ("When is {name} raised?", "What is {name}?", "What does {name} mean?"),
    "module": (
        "What is the {name} module?",
        "What is the {name} module for?",
        "What does the {name} module do?",
        "What is {name}?",
    ),
    "term": (
        "What is {article} {name}?",
        "What is {article} {name}?",
        "What is {article} {name} in Python?",
        "Explain {name}.",
    ),
    "question": ("{name}",),
}
TURNS = (1, 1, 1, 2, 3)  # pairs in a conversation


@dataclasses.dataclass(frozen=True)
class Topic:
    """What one entry is asked and answered: any of `questions` with `answer`, and `task`, if any, with `solution`."""

    name: str
    source: str
    questions: tuple[str, ...]
    answer: str
    task: str = ""

    @property
    def held_out(self) -> bool:
        """Whether training never sees it, as its module's text."""
        return held_out(self.source)

    @property
    def solution(self) -> str:
        return f"Use {self.name}."


def topics(entries: Sequence[Entry]) -> list[Topic]:
    """One topic for each entry whose first sentences can be told as they are."""
    found = [(entry, summary(plain(entry.text))) for entry in entries]
    verbs = _verbs(text for entry, text in found if PHRASES[entry.kind] is _DOES)
    made = []
    for entry, text in found:
        if len(text.split()) < 3 or not text.isascii() or text.startswith(":"):
            continue
        article = "an" if entry.name[0].lower() in "aeiou" else "a"
        questions = tuple(phrase.format(name=entry.name, article=article) for phrase in PHRASES[entry.kind])
        does = PHRASES[entry.kind] is _DOES and text.split()[0] in verbs
        made.append(Topic(entry.name, entry.source, questions, _ended(text), _task(text) if does else ""))
    return made


def conversations(asked: Sequence[Topic], seed: tuple[int, ...]) -> Iterator[list[tuple[str, str]]]:
    """Every topic once, in an order and in words that `seed` decides, as conversations of one to three pairs."""
    chance = random.Random(repr(seed))
    order = chance.sample(asked, len(asked))
    while order:
        turns = chance.choice(TURNS)
        yield [_pair(topic, chance) for topic in order[:turns]]
        order = order[turns:]


def _pair(topic: Topic, chance: random.Random) -> tuple[str, str]:
    """A question and its answer; one in six is asked by the task, and some are typed in haste."""
    by_task = bool(topic.task) and chance.random() < 1 / 6
    question = topic.task if by_task else chance.choice(topic.questions)
    if chance.random() < 0.15:
        question = question[0].lower() + question[1:]
    if chance.random() < 0.15:
        question = question.rstrip("?.")
    return question, topic.solution if by_task else topic.answer


def _verbs(texts: Iterable[str]) -> set[str]:
    """The words that tell what a function does: they begin some texts as they are, others with an s."""
    firsts = collections.Counter(text.split()[0] for text in texts if text)
    return {word for word in firsts if len(word) > 1 and firsts[word] > 1 and f"{word}s" in firsts}


def _task(text: str) -> str:
    """What asks for a function that does this: of "Join two paths. ..." it makes "How do I join two paths?"."""
    sentence = re.split(r"[.:;(]( |$)", text, maxsplit=1)[0].strip()
    return f"How do I {sentence[0].lower()}{sentence[1:]}?"


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
