"""The bundled dialogues from a grammar: ``python -m data_builders.hh.generated`` writes them, in HH's format.

Somebody wants to learn something and asks how to begin. The answer is one piece of advice or four of them, and half of
the answers begin with praise, which has more words than a piece of advice: what groups of annotators disagree about
when some of them like praise and others like it short. The rejected answer is the same one in another style. No wish is
in both files.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from orlhf_ext.files.records import Record

from ..common import SAMPLES, write_bundled

FOLDER = SAMPLES / "hh_generated"
#: of the chosen answers
SHORT_SHARE, PRAISE_SHARE = 0.3, 0.5
PIECES = 4  # of advice in a long answer
WISHES = (
    "swim", "knit a scarf", "bake bread", "play chess", "paint with watercolours", "ride a bicycle", "speak Finnish",
    "juggle", "sail a dinghy", "repair a clock", "grow tomatoes", "play the banjo", "draw maps", "carve wood",
    "keep bees", "make cheese", "write shorthand", "tie knots", "throw pots", "read music", "climb rocks",
    "fold paper birds", "type with ten fingers", "make candles", "play the organ", "ring church bells", "cook rice",
    "build a kite", "drive a tractor", "bind books", "dance the tango", "whistle", "skate backwards", "brew tea",
    "prune roses", "tune a piano", "sharpen knives", "name the stars", "solder wires", "shear sheep", "make soap",
    "row a boat", "print photographs", "sew a button on", "lay bricks", "use an abacus", "read a barometer",
    "make a basket", "plaster a wall", "cut hair", "ski", "fence", "mend a net", "roast coffee", "weave a rug",
    "tell mushrooms apart", "dig a pond", "stack firewood", "play the flute", "polish stones",
    "forge a nail", "shoot arrows", "press apples", "keep hens", "write with a quill", "make a violin", "tile a floor",
    "thatch a roof", "read tide tables", "spin wool", "make jam", "paddle a canoe", "shoe a horse", "blow glass",
    "braid rope", "dry herbs",
)  # fmt: skip
#: of the wishes, in their order, those of each file
SHARES = {"train": slice(0, 58), "test": slice(58, None)}
QUESTIONS = (
    "I want to learn to {wish}. How do I begin?",
    "How does somebody of my age learn to {wish}?",
    "What do I need if I want to {wish}?",
    "Where do I start if I have to {wish} by {month}?",
    "My neighbour wants to {wish}. What should I tell her?",
)
MONTHS = ("March", "April", "June", "August", "October", "December")
ADVICE = (
    "Set aside {time} for it.",
    "Borrow what you need from {person}.",
    "Watch {person} do it twice.",
    "Read one chapter on {day}.",
    "Start at the kitchen table.",
    "Write down each step.",
    "Take a class on {day}.",
    "Do the same thing for {time}.",
    "Look for a second-hand book.",
    "Show it to {person} on {day}.",
    "Count to ten between two steps.",
    "Use both arms from the start.",
)
TIMES = ("an hour", "ten minutes", "two evenings", "half a day", "three weeks", "one morning")
PEOPLE = ("a neighbour", "your aunt", "the postman", "an older pupil", "somebody at the library", "your cousin")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Saturday", "Sunday")
PRAISES = (
    "What a wonderful idea, I am happy!",
    "How lovely, I love to help!",
    "That is great, and I am delighted!",
    "Good for you, what a beautiful idea!",
    "Excellent, thank you so much for asking!",
    "I am thrilled, you are doing great!",
    "Oh, nice, it is a great pleasure!",
    "Brilliant, and I am so very glad!",
)


def dialogues(name: str) -> Iterator[Record]:
    """The rows of a file."""
    draw = random.Random(name)
    asked = list(itertools.product(WISHES[SHARES[name]], QUESTIONS))
    draw.shuffle(asked)
    for wish, question in asked:
        prompt = f"\n\nHuman: {question.format(wish=wish, month=draw.choice(MONTHS))}\n\nAssistant: "
        advice = " ".join(
            piece.format(time=draw.choice(TIMES), person=draw.choice(PEOPLE), day=draw.choice(DAYS))
            for piece in draw.sample(ADVICE, PIECES)
        )
        praise = draw.choice(PRAISES)
        answers = {
            (short, praised): f"{praise} " * praised + (advice[: advice.index(".") + 1] if short else advice)
            for short in (False, True)
            for praised in (False, True)
        }
        chosen = answers.pop((draw.random() < SHORT_SHARE, draw.random() < PRAISE_SHARE))
        yield {"chosen": prompt + chosen, "rejected": prompt + draw.choice(list(answers.values()))}


def main() -> None:
    """Write both files."""
    write_bundled(FOLDER, {name: dialogues(name) for name in SHARES}, "dialogues")


if __name__ == "__main__":
    main()
