"""What things are called and what they are good for: COCO's 80 categories and those of the mini benchmark.

A :class:`Purpose` is what a question asks for in the place of a name: "something to sit on", "what can bark".
A category outside this table still gets questions about its place, its group and what hides it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Purpose:
    """What the categories share: a use ("sit on": what could I sit on) or an ability ("can bark": what can bark).

    A use's phrase reads on with the thing's name: "sit on" the chair. ``situations`` are whole sentences that imply the
    purpose.
    """

    phrase: str
    categories: frozenset[str]
    is_ability: bool = False
    situations: tuple[str, ...] = ()

    @property
    def answer_phrase(self) -> str:
        """The phrase as said to the one who asked; the thing's name follows it."""
        return re.sub(r"\bmy\b", "your", self.phrase)

    @property
    def things(self) -> str:
        """The whole group: "the things I could eat"."""
        return f"the things that {self.phrase}" if self.is_ability else f"the things I could {self.phrase}"

    @property
    def thing(self) -> str:
        """The only member: "the thing I could eat"."""
        return f"the thing that {self.phrase}" if self.is_ability else f"the thing I could {self.phrase}"


def _use(phrase: str, categories: str, *situations: str) -> Purpose:
    return Purpose(phrase, _split(categories), False, situations)


def _ability(phrase: str, categories: str, *situations: str) -> Purpose:
    return Purpose(f"can {phrase}", _split(categories), True, situations)


def _split(categories: str) -> frozenset[str]:
    return frozenset(c.strip() for c in categories.split(","))


PURPOSES: tuple[Purpose, ...] = (
    _use(
        "eat",
        "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
        "I am hungry.",
        "It is time for lunch.",
        "My stomach is empty.",
    ),
    _use("make fruit juice from", "banana, apple, orange"),
    _use("make a salad with", "broccoli, carrot"),
    _use("end my dinner with", "donut, cake", "I would like something sweet."),
    _use("drink from", "bottle, wine glass, cup", "I am thirsty."),
    _use("pour hot tea from", "teapot"),
    _use("eat soup from", "bowl"),
    _use("eat with", "fork, knife, spoon"),
    _use("stir my coffee with", "spoon"),
    _use("cut something with", "knife, scissors", "This rope is too long."),
    _use("put my plate on", "dining table"),
    _use("ride", "bicycle, motorcycle, horse, skateboard, snowboard, surfboard, skis"),
    _use(
        "travel in",
        "car, bus, train, truck, airplane, boat",
        "I have to go to another town.",
        "My walk home is too long.",
    ),
    _use("fly to another country in", "airplane", "I need to get across the ocean fast."),
    _use("cross the water in", "boat", "I want to go to the island."),
    _use("move heavy boxes with", "truck"),
    _use("sit on", "chair, couch, bench", "My legs are tired.", "I would like to have a seat."),
    _use("sleep in", "bed", "I am sleepy."),
    _use("lie down on", "bed, couch"),
    _use("wash my hands in", "sink", "My hands are dirty."),
    _use("dry my hair with", "hair drier", "My hair is wet."),
    _use("brush my teeth with", "toothbrush", "My teeth are not clean."),
    _use("keep food cold in", "refrigerator"),
    _use("warm up food in", "microwave, oven, toaster", "My food is cold."),
    _use("play music with", "guitar, violin, trumpet, drum", "I want to hear a song."),
    _use("play a soft song on", "guitar, violin"),
    _use("blow into", "trumpet"),
    _use("beat with two sticks", "drum"),
    _use("wear", "tie, hat, shoe", "I want to dress for a party."),
    _use("warm my feet with", "shoe", "My feet are cold."),
    _use("cover my head with", "hat", "The sun burns on my head."),
    _use("carry things in", "backpack, handbag, suitcase, basket", "I have too much to carry."),
    _use("pack my clothes in", "suitcase, backpack", "We leave for a trip in the morning."),
    _use("keep dry with", "umbrella", "It is raining.", "I do not want to get wet."),
    _use("read", "book", "I would like a good story."),
    _use("see the time on", "clock", "I do not want to be late."),
    _use("watch a film on", "tv, laptop"),
    _use("call a friend with", "cell phone", "I want to talk to a friend."),
    _use("write a message with", "laptop, keyboard, cell phone"),
    _use("type on", "laptop, keyboard"),
    _use("take pictures with", "camera, cell phone", "I want to keep this moment forever."),
    _use("click with", "mouse"),
    _use("change the channel with", "remote"),
    _use(
        "play outside with",
        "frisbee, sports ball, kite, skateboard, tennis racket, baseball bat, baseball glove",
        "I want to have some fun outside.",
    ),
    _use("play catch with", "frisbee, sports ball"),
    _use("kick", "sports ball"),
    _use("play in the wind with", "kite", "There is a strong wind."),
    _use("hit something back with", "tennis racket, baseball bat"),
    _use("catch something with", "baseball glove"),
    _use("put flowers in", "vase", "I got some flowers."),
    _use("give water to", "potted plant"),
    _use("hug", "teddy bear", "The child cannot sleep alone."),
    _use("open a door with", "key", "The door is locked."),
    _use("hit a nail with", "hammer", "I want to put a picture on the wall."),
    _use("ring", "bell"),
    _use("put coins in", "parking meter"),
    _use("get water from", "fire hydrant, sink"),
    _ability("breathe", "person, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, penguin"),
    _ability("speak", "person"),
    _ability("bark", "dog"),
    _ability("purr", "cat"),
    _ability("be a good pet", "cat, dog, bird"),
    _ability("gallop", "horse, zebra"),
    _ability("give milk", "cow, sheep"),
    _ability("give wool", "sheep"),
    _ability("live on a farm", "horse, sheep, cow"),
    _ability("live in a zoo", "elephant, penguin, bear, zebra, giraffe"),
    _ability("lay eggs", "bird, penguin"),
    _ability("fly", "bird, airplane, kite"),
    _ability("swim in cold water", "penguin"),
    _ability("lift a tree", "elephant"),
    _ability("eat from high trees", "giraffe"),
    _ability("be of use in a bathroom", "toilet, toothbrush, sink, hair drier"),
    _ability("grow", "potted plant"),
    _ability("float", "boat, surfboard"),
    _ability("stop traffic", "traffic light, stop sign"),
    _ability("roll on wheels", "bicycle, car, motorcycle, bus, train, truck, skateboard"),
    _ability("take many people along", "bus, train, airplane"),
    _ability("break easily", "wine glass, cup, teapot, vase"),
    _ability("make a sound", "bell, guitar, violin, trumpet, drum"),
)

SYNONYMS: dict[str, tuple[str, ...]] = {
    "person": (
        "people",
        "man",
        "men",
        "woman",
        "women",
        "child",
        "children",
        "boy",
        "girl",
        "human",
        "guy",
        "lady",
        "baby",
        "kid",
        "adult",
        "pedestrian",
        "rider",
        "cyclist",
        "skier",
        "surfer",
        "player",
    ),
    "bicycle": ("bike", "cycle"),
    "motorcycle": ("motorbike", "scooter", "bike"),
    "car": ("automobile", "taxi", "cab"),
    "airplane": ("plane", "aeroplane", "aircraft", "jet"),
    "bus": ("coach", "trolleybus"),
    "train": ("tram", "locomotive", "railway"),
    "truck": ("lorry", "van", "pickup"),
    "boat": ("ship", "sailboat", "speedboat"),
    "traffic light": ("stoplight", "traffic signal"),
    "stop sign": ("road sign",),
    "bird": ("parrot", "duck"),
    "cat": ("kitten", "kitty"),
    "dog": ("puppy", "poodle"),
    "horse": ("pony",),
    "sheep": ("lamb", "ram"),
    "cow": ("cattle", "ox", "bull"),
    "backpack": ("rucksack",),
    "handbag": ("purse",),
    "suitcase": ("briefcase", "luggage"),
    "tie": ("necktie", "bow tie"),
    "hat": ("cap", "helmet"),
    "shoe": ("sneaker", "boot"),
    "sports ball": ("ball", "football", "basketball", "volleyball"),
    "tennis racket": ("racket", "racquet"),
    "wine glass": ("glass", "goblet", "wineglass"),
    "cup": ("mug",),
    "knife": ("knives", "blade"),
    "donut": ("doughnut",),
    "couch": ("sofa",),
    "potted plant": ("plant", "houseplant"),
    "dining table": ("table",),
    "tv": ("television", "tvs"),
    "laptop": ("computer", "notebook"),
    "mouse": ("mice",),
    "cell phone": ("phone", "mobile phone", "smartphone", "cellphone", "mobile"),
    "teddy bear": ("teddy", "stuffed bear"),
    "hair drier": ("hair dryer", "hairdryer", "blow dryer"),
    "refrigerator": ("fridge",),
    "remote": ("remote control",),
    "scissors": ("scissor",),
    "skis": ("ski",),
    "baseball bat": ("bat",),
    "baseball glove": ("glove", "mitt"),
    "hot dog": ("hotdog", "frankfurter"),
    "fire hydrant": ("hydrant",),
    "parking meter": ("meter",),
    "frisbee": ("flying disc",),
    "oven": ("stove", "cooker"),
    "bowl": ("dish",),
    "bed": ("mattress",),
    "chair": ("armchair", "stool"),
    "teapot": ("kettle",),
}

PLURAL_NAMES = frozenset({"scissors", "skis"})

GROUPS: dict[str, str] = {
    "animal": "animals",
    "vehicle": "vehicles",
    "instrument": "instruments",
    "tool": "tools",
    "kitchen": "kitchen things",
    "electronic": "electronic things",
    "sports": "sports things",
}
"""What a supercategory's members are called together; other supercategories form no group of their own."""

SUPERCATEGORIES: dict[str, str] = {
    category: supercategory
    for supercategory, categories in {
        "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, penguin",
        "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
        "instrument": "guitar, violin, trumpet, drum",
        "kitchen": "bottle, wine glass, cup, fork, knife, spoon, bowl, teapot",
        "electronic": "tv, laptop, mouse, remote, keyboard, cell phone, camera",
        "sports": "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
        "tennis racket",
        "tool": "hammer, key, bell, basket",
    }.items()
    for category in _split(categories)
}
"""Supercategory of categories whose record does not carry one."""


@cache
def purposes_of(category: str) -> tuple[int, ...]:
    """The numbers in ``PURPOSES`` that ``category`` serves."""
    return tuple(i for i, purpose in enumerate(PURPOSES) if category in purpose.categories)


@cache
def names_of(category: str) -> frozenset[str]:
    """The category's name, its synonyms, and the plurals of all of them."""
    words = {category, *SYNONYMS.get(category, ())}
    return frozenset(words | {_plural(word) for word in words})


@cache
def _naming(category: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, names_of(category)))) + r")\b", re.IGNORECASE)


def _plural(word: str) -> str:
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def names_category(text: str, category: str) -> bool:
    """Whether ``text`` holds the category's name, its plural or a synonym as a word of its own."""
    return _naming(category).search(text) is not None
