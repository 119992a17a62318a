"""The bundled stories from a grammar: ``python -m data_builders.story.generated`` writes them, as next-chapter rows.

Somebody puts a thing away for somebody else; other things happen; the other comes for it. What comes next follows from
where the thing is, which was told once, some sentences ago: a good plan names the thing and the place. No thing and no
place is in two of the files.

Training rows have a plan, from which a policy can learn what plans look like, and not which one is good: it names this
story's thing in one of two stories, this story's place in one of two, and else another story's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from orlhf_ext.files.records import Record

from ..common import SAMPLES, write_bundled

FOLDER = SAMPLES / "stories_generated"
#: stories in each file
COUNTS = {"train": 96, "val": 8, "test": 40}
#: of the things and of the places, in their order, those of each file
SHARES = {"train": slice(0, 20), "val": slice(20, 22), "test": slice(22, 32)}

KEEPERS = ("Ida", "Tom", "Nell", "Oskar", "Ruth", "Piet", "Hanna", "Leo", "Marit", "Sam", "Vera", "Jon")
VISITORS = (
    "the miller", "Mrs Bell", "the ferryman", "Captain Ross", "the baker's boy", "old Greta", "the schoolmaster",
    "Aunt Lise", "the postman", "Mr Hale",
)  # fmt: skip
THINGS = (
    "silver key", "blue lantern", "tin whistle", "red scarf", "brass compass", "fishing net", "leather map",
    "green umbrella", "iron hook", "wooden horse", "copper kettle", "silk purse", "glass marble",
    "white candle", "paper kite", "long rope", "black violin", "apple cake", "straw hat", "gold ring",
    "clay pipe", "sea chest", "brown jug", "pocket watch", "yellow boots", "bone comb", "steel hammer",
    "velvet coat", "snow globe", "honey jar", "bread knife", "army drum",
)  # fmt: skip
PLACES = (
    "under the third flowerpot", "behind the clock", "in the hollow oak", "beneath the stairs",
    "on top of the cupboard", "inside the piano", "under the loose board", "in the hen house",
    "behind the cellar door", "in the old well bucket", "under the upturned boat", "in the flour bin",
    "behind the church organ", "in the chimney", "under the bridge", "in the empty beehive",
    "inside the scarecrow", "behind the waterfall", "in the coal shed", "under the blue mattress",
    "in the sugar tin", "behind the mirror", "in the rain barrel", "under the stone bench", "in the bell tower",
    "behind the haystack", "inside the stove", "under the garden gnome", "in the sewing basket",
    "behind the big barrel", "in the dog's kennel", "under the kitchen table",
)  # fmt: skip
HAPPENINGS = (
    "It rained all afternoon, and the street was full of puddles.",
    "The cat slept on the wall until the church bells rang.",
    "A cart went by with apples, and two of them fell off.",
    "Somebody was singing in the next house, quite out of tune.",
    "The soup was too salty, but nobody said so.",
    "The geese got into the garden again and had to be driven out.",
    "In the harbour a ship came in with torn sails.",
    "The neighbours argued about a ladder for an hour.",
    "A letter came that was meant for another street.",
    "The wind took a shirt from the line and carried it off.",
)
ENDINGS = (
    "{keeper} needed only a minute. The {thing} lay {place}, a little dusty. {comes} carried the {thing} home.",
    "They went together and looked {place}. There was the {thing}, safe and dry. {comes} kissed the {thing} and left.",
    '"Wait here," said {keeper}, and felt about {place} until the {thing} came out. {comes} danced with the {thing}.',
    "A moment later the {thing} was on the table, dusty from {place}. {comes} paid, and left with the {thing}.",
)
PLAN = "In summary: {keeper} looks {place}, finds the {thing}, and gives the {thing} to {visitor}."


def stories(name: str) -> Iterator[Record]:
    """The rows of a file: what was told, and what comes next."""
    draw, drafts = random.Random(name), random.Random(f"plans of {name}")
    things, places = THINGS[SHARES[name]], PLACES[SHARES[name]]
    for number in range(COUNTS[name]):
        keeper, visitor = draw.choice(KEEPERS), draw.choice(VISITORS)
        thing, place = draw.choice(things), draw.choice(places)
        first, second, third = draw.sample(HAPPENINGS, 3)
        comes = visitor[0].upper() + visitor[1:]
        story = {
            "story_id": f"{name}-{number}",
            "text_before": f"{keeper} put the {thing} {place}, where nobody would look, and promised to keep it for "
            f"{visitor}. {first} {second} {third} In the evening there was a knock at the door. It was {visitor}. "
            f'"I have come for it," said {visitor}. "Do you still have it?" {keeper} nodded.',
            "next_chapter": draw.choice(ENDINGS).format(keeper=keeper, thing=thing, place=place, comes=comes),
        }
        if name == "train":
            thing, place = (drafts.choice([own, drafts.choice(all)]) for own, all in ((thing, things), (place, places)))
            story["plan"] = PLAN.format(keeper=keeper, place=place, thing=thing, visitor=visitor)
        yield story


def main() -> None:
    """Write the three files."""
    write_bundled(FOLDER, {name: stories(name) for name in COUNTS}, "stories")


if __name__ == "__main__":
    main()
