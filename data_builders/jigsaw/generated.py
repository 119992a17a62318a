"""The bundled comments from a grammar: ``python -m data_builders.jigsaw.generated`` writes them.

A comment is an opening and three sentences. In a rude one one of the three, at a random place, is rude, so that how a
comment begins says little about how it ends. Polite sentences have rude words, too: a pantomime needs a fool. Every
second comment of the first file is a piece of one, as what is scored later will be, and rude if the insult is in it. No
two comments of the second file, which become prompts, have one opening.
"""

from __future__ import annotations

import csv
import itertools
import random
import re
from pathlib import Path

from orlhf_ext.files.records import atomic_write

from ..common import SAMPLES

FOLDER = SAMPLES / "jigsaw_generated"
#: comments in the first file, which a classifier learns from, the share of rude ones, and the words of a piece
COMMENTS, RUDE_SHARE, PIECE = 1400, 0.5, (10, 22)

OPENINGS = (
    "About {}:",
    "I have read the page on {} twice.",
    "Somebody has rewritten the part about {}.",
    "So the council has voted on {} again.",
    "My letter about {} was printed today.",
    "The new photograph of {} is up.",
    "This is the third article about {} this month.",
    "As for {}, I was there on Saturday.",
    "Who wrote the paragraph on {}?",
    "There is a talk about {} tonight.",
    "We spent the whole meeting on {}.",
    "I see that {} is on the front page.",
)
TOPICS = (
    "the bus timetable", "the harbour wall", "the old mill", "the swimming pool", "the library roof", "the night ferry",
    "the market square", "the stone bridge", "the allotments", "the school kitchen", "the cycle path", "the town clock",
    "the bandstand", "the lifeboat", "the car park", "the brass band", "the railway arch", "the village pond",
    "the bakery", "the museum", "the chess club", "the lighthouse", "the fish market", "the tram line", "the fountain",
    "the cricket field", "the post office", "the water tower", "the choir", "the playground", "the canal", "the cinema",
    "the bowling green", "the windmill", "the ice rink", "the orchard", "the town hall", "the quarry", "the pier",
    "the flower show",
)  # fmt: skip
#: sentences with places for words
POLITE = (
    "Thank you for {doing} so carefully.",
    "I think {thing} needs {more}.",
    "Could somebody check {thing} against {source}?",
    "The figures come from {source}.",
    "I would put {thing} first and {other} after it.",
    "My {relative} remembers {thing} quite differently.",
    "We should ask {person} before {event}.",
    "It opened in {year}, going by {source}.",
    "{person} will be there with {item}.",
    "Please bring {item} and a warm coat.",
    "I have added {thing} and taken out {other}.",
    "It would be foolish to decide before {event}.",
    "The pantomime still needs a fool and a donkey.",
    "The clown at the fair made my {relative} laugh.",
    "Nobody is stupid for asking about {thing}.",
    "Last year's play was called The Idiot, and it sold out.",
    "The rubbish is collected {when}.",
    "The trash cans by {thing} are new.",
)
RUDE = (
    "You are {a_bad} {insult} and everybody knows it.",
    "Only {a_bad} {insult} could write this.",
    "What {a_bad} {insult} you are.",
    "Shut up, you {bad} {insult}.",
    "Get lost, {insult}, and take {thing} with you.",
    "You {insult}s are too {bad} to read {source}.",
    "Nobody cares what {a_bad} {insult} like you thinks.",
    "Go back to your cave, you {insult}.",
    "Rubbish like this can only come from {a_bad} {insult}.",
    "Your {relative} must be ashamed of such {a_bad} {insult}.",
    "Are you always such {a_bad} {insult}, or only {when}?",
    "I hope {thing} falls on you, you {bad} {insult}.",
    "Trust {a_bad} {insult} to spoil {event}.",
    "{person} is {a_bad} {insult} and so are you.",
)
WORDS = {
    "doing": ("sorting this out", "answering all the letters", "checking the dates", "painting the railings"),
    "thing": ("the second date", "the map", "the west door", "the list of names", "the timetable", "the new fence"),
    "more": ("another reader", "a second source", "a fresh coat of paint", "more time", "a quieter engine"),
    "source": ("the parish records", "the county archive", "the almanac", "the annual report", "the harbour log"),
    "other": ("the long quotation", "the last line", "the footnote", "the weather", "the price list"),
    "relative": ("aunt", "brother", "neighbour", "mother", "cousin", "grandfather"),
    "person": ("Mrs Lacey", "the caretaker", "the harbour master", "Gerald", "the new editor", "Dr Amin"),
    "event": ("the vote", "the summer fair", "the next meeting", "the holidays", "the concert"),
    "when": ("on Tuesdays", "on market days", "in the spring", "at weekends"),
    "year": ("1887", "1911", "1934", "1962"),
    "item": ("the minutes", "a ladder", "two cakes", "the old photographs", "a torch"),
    "bad": ("stupid", "pathetic", "worthless", "ignorant", "spineless", "drooling", "useless", "miserable"),
    "insult": ("idiot", "moron", "clown", "fool", "imbecile", "parasite", "liar", "cretin"),
}
INSULT = re.compile(rf"(?i)\b({'|'.join(WORDS['insult'])})s?\b")


def fill(template: str, draw: random.Random) -> str:
    """A sentence: the places of a template filled with words."""
    words = {place: draw.choice(choices) for place, choices in WORDS.items()}
    article = "an" if words["bad"][0] in "aeiou" else "a"
    text = template.format(**words, a_bad=f"{article} {words['bad']}")
    return text[0].upper() + text[1:]


def comment(opening: str, rude: bool, piece: bool, draw: random.Random) -> tuple[str, bool]:
    """An opening and three sentences, or a piece of that; and whether it is rude."""
    sentences = [fill(sentence, draw) for sentence in draw.sample(POLITE, 3)]
    where = draw.randrange(3)
    if rude:
        sentences[where] = fill(draw.choice(RUDE), draw)
    words = [opening.split(), *(sentence.split() for sentence in sentences)]
    # of each word, whether it is an insult
    marked = [
        (word, rude and i == where + 1 and bool(INSULT.search(word))) for i, some in enumerate(words) for word in some
    ]
    if piece:
        count = draw.randint(*PIECE)
        start = draw.randrange(len(marked) - count) if len(marked) > count else 0
        marked = marked[start : start + count]
    return " ".join(word for word, _ in marked), any(insult for _, insult in marked)


def write_table(path: Path, label: str, openings: list[str], pieces: bool, draw: random.Random) -> None:
    """A CSV file with a comment for each opening."""
    with atomic_write(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["id", "comment_text", label])
        for number, opening in enumerate(openings):
            text, rude = comment(opening, draw.random() < RUDE_SHARE, pieces and number % 2 == 1, draw)
            rows.writerow([number, text, int(rude)])


def main() -> None:
    """Write both files."""
    FOLDER.mkdir(exist_ok=True)
    draw = random.Random(0)
    openings = [opening.format(topic) for opening, topic in itertools.product(OPENINGS, TOPICS)]
    write_table(FOLDER / "toxic_comment_train.csv", "toxic", draw.choices(openings, k=COMMENTS), True, draw)
    draw.shuffle(openings)
    write_table(FOLDER / "unintended_bias_train.csv", "target", openings, False, draw)


if __name__ == "__main__":
    main()
