"""Every check on pairs that break exactly one rule, on pairs that break none, and on the offline generator's own."""

import asyncio
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from aura.datagen.checks.english import not_english
from aura.datagen.checks.rules import CheckSettings, PairChecker
from aura.datagen.generators import OfflineGenerator
from aura.datagen.records import GenerationRequest, PairDraft
from aura.datagen.service.prompt import object_table
from aura.formats.sources import AnnotatedImage
from aura.mini.benchmark import scene_stream
from aura.mini.pictures import load_backgrounds, load_cutouts
from aura.mini.scenes import Scene, SceneObject
from tests.scenes import annotated_image_from_scene

CUP, BOOK, CAT, DOG, LAMP, APPLE, PEAR = 1, 2, 3, 4, 5, 6, 7
DOCUMENTED = (Path(__file__).parents[3] / "docs" / "datagen.md").read_text(encoding="utf-8")


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((100, 200), bool)
    mask[y0:y1, x0:x1] = True
    return mask


@cache
def table() -> AnnotatedImage:
    """Cup: 60 % hidden by the book. Cat: 10 % hidden by the dog. Lamp: 30 % hidden by something unlabelled.

    The book, the dog and two apples, left and right, are fully visible.
    """
    cup, book, cat, dog = box(10, 10, 40, 50), box(22, 0, 60, 60), box(80, 10, 120, 50), box(116, 5, 150, 60)
    objects = [
        ("cup", cup, cup & ~book),
        ("book", book, book),
        ("cat", cat, cat & ~dog),
        ("dog", dog, dog),
        ("lamp", box(160, 10, 190, 50), box(160, 10, 181, 50)),
        ("apple", box(10, 70, 30, 90), box(10, 70, 30, 90)),
        ("apple", box(150, 70, 170, 90), box(150, 70, 170, 90)),
    ]
    scene = Scene(np.zeros((100, 200, 3), np.uint8), tuple(SceneObject(c, a, v) for c, a, v in objects), "none")
    return annotated_image_from_scene(scene, 1)


GOOD = PairDraft("What could I drink from?", "You could drink from the cup [SEG].", (CUP,))


def codes(answer: str, objects: tuple[int, ...], question: str = "What would help me now?") -> list[str]:
    return [p.code for p in PairChecker(table()).check(PairDraft(question, answer, objects))]


def test_the_scene_is_what_the_tests_say_of_it():
    rates = {o.id: round(o.occlusion_rate, 3) for o in table().objects}
    assert rates == {CUP: 0.6, BOOK: 0, CAT: 0.1, DOG: 0, LAMP: 0.3, APPLE: 0, PEAR: 0}
    assert [o.occluded_by for o in table().objects] == [(BOOK,), (), (DOG,), (), (), (), ()]
    assert "something unlabelled (30 % of it)" in object_table(table())


def test_a_good_pair_has_no_problem():
    assert PairChecker(table()).check(GOOD) == ()


@pytest.mark.parametrize(
    ("pair", "code"),
    [
        (PairDraft("What could I drink from?", "You could drink from the cup [SEG].", (99,)), "unknown_object"),
        (PairDraft("What could I drink from?", "You could drink from the cup [SEG].", (CUP, DOG)), "seg_count"),
        (PairDraft("What could I drink from?", "You could drink from the cup.", ()), "no_object"),
        (
            PairDraft("What could I drink from?", "You could use the cup [SEG], yes, the cup [SEG].", (CUP, CUP)),
            "repeated_object",
        ),
        (PairDraft("What could I pour tea into?", "You could pour it into the dog [SEG].", (CUP,)), "unnamed_object"),
        (PairDraft("What could I pour tea into?", "You could pour it in here [SEG].", (CUP,)), "unnamed_object"),
        (
            PairDraft("What could I pour tea into?", "You could use the cup, as I would do myself [SEG].", (CUP,)),
            "unnamed_object",
        ),
        (PairDraft("Which cups are here?", "Here is the cup [SEG].", (CUP,)), "names_target"),
        (PairDraft("Where is my mug now?", "Here is the cup [SEG].", (CUP,)), "names_target"),
        (PairDraft("Which MUGS do you see?", "Here is the cup [SEG].", (CUP,)), "names_target"),
        (PairDraft("Drink?", "You could drink from the cup [SEG].", (CUP,)), "length"),
        (PairDraft("What could I drink from?", "Cup [SEG]", (CUP,)), "length"),
        (PairDraft("What could I drink from?", "You could " + "very " * 130 + "well use cup [SEG].", (CUP,)), "length"),
        (PairDraft("Woraus könnte ich hier trinken?", "You could drink from the cup [SEG].", (CUP,)), "language"),
        (PairDraft("What could I drink from?", "Tu pourrais prendre la cup [SEG] dans ce coin.", (CUP,)), "language"),
        (PairDraft("我可以用什么喝水?", "You could drink from the cup [SEG].", (CUP,)), "language"),
        (PairDraft("What is [SEG] good for?", "You could drink from the cup [SEG].", (CUP,)), "text"),
        (PairDraft("What could I drink from?</s>", "You could drink from the cup [SEG].", (CUP,)), "text"),
        (PairDraft("What could I drink from?", "You could drink from the cup [SEG] or the <seg>.", (CUP,)), "text"),
        (PairDraft("What could I drink from?", "You could drink from the cup [SEG] (id 1).", (CUP,)), "text"),
        (PairDraft("What is in the bounding box here?", "That is the cup [SEG].", (CUP,)), "text"),
    ],
)  # fmt: skip
def test_each_rule_is_checked(pair, code):
    problems = PairChecker(table()).check(pair)
    assert code in [p.code for p in problems]
    assert {p.code for p in problems} <= {code, "length"} or pair.objects in ((99,), ())
    assert all(f"`{p.code}`" in DOCUMENTED and p.message and p.advice for p in problems)


@pytest.mark.parametrize(
    ("answer", "objects"),
    [
        ("You could use the big red cup [SEG].", (CUP,)),
        ("You could use the mug [SEG] that I like.", (CUP,)),
        ("You could eat the apples [SEG] and [SEG].", (APPLE, PEAR)),
        ("You could eat the left apple [SEG] and the one on the right, an apple [SEG].", (APPLE, PEAR)),
        ("The cup on the left [SEG] would do.", (CUP,)),
        ("The cat next to the dog is nice, so take the cup [SEG].", (CUP,)),
    ],
)
def test_names_may_be_qualified_plural_or_synonyms(answer, objects):
    assert codes(answer, objects) == []


def test_other_objects_may_be_named_in_a_question():
    assert codes("The cup [SEG] is behind the book.", (CUP,), "What is behind the book?") == []


TRUE = [
    ("The cup [SEG] is mostly hidden by the book [SEG].", (CUP, BOOK)),
    ("More than half of the cup [SEG] is hidden.", (CUP,)),
    ("Less than half of the cup [SEG] is visible.", (CUP,)),
    ("About 60 % of the cup [SEG] is hidden by the book.", (CUP,)),
    ("The mostly hidden cup [SEG] would do.", (CUP,)),
    ("The cup [SEG], which is partly covered by the book [SEG], would do.", (CUP, BOOK)),
    ("You could drink from the cup [SEG], but the book [SEG] is in the way.", (CUP, BOOK)),
    ("The book [SEG] is fully visible and the cat [SEG] is slightly hidden.", (BOOK, CAT)),
    ("The book [SEG] hides most of the cup [SEG], and the dog hides a small part of the cat.", (BOOK, CUP)),
    ("The cat [SEG] is behind the dog and the book [SEG] is fully visible.", (CAT, BOOK)),
    ("The lamp [SEG] is partly hidden by something.", (LAMP,)),
    ("The cup [SEG] is hidden more than the cat [SEG].", (CUP, CAT)),
    ("The cat [SEG] is less hidden than the cup [SEG].", (CAT, CUP)),
    ("The cup [SEG] is hidden the most, by the book [SEG].", (CUP, BOOK)),
    ("The dog [SEG] is not hidden, and nothing is in front of it.", (DOG,)),
    ("The cat [SEG] is not hidden by the book [SEG].", (CAT, BOOK)),
    ("Behind the book is the cup [SEG].", (CUP,)),
    ("In front of the cup [SEG] is the book [SEG].", (CUP, BOOK)),
    ("The dog [SEG] stands in front of the cat [SEG].", (DOG, CAT)),
    ("The apple [SEG] is in front of the lamp [SEG].", (APPLE, LAMP)),  # they do not overlap: nothing denies it
    ("The book [SEG] and the dog [SEG] hide the cup [SEG] and the cat [SEG].", (BOOK, DOG, CUP, CAT)),
    ("The cat [SEG] isn't fully visible.", (CAT,)),
    ("You would see the cup [SEG] better without the book.", (CUP,)),
    ("The cat [SEG] can purr. It is partially occluded by the dog [SEG], which stands in front of it.", (CAT, DOG)),
    ("You can read the book [SEG], as it lies in front of the cup and nothing blocks it.", (BOOK,)),
    ("The partially visible cup [SEG] peeks out from behind the book [SEG].", (CUP, BOOK)),
    ("Of these, the cup [SEG] is the most hidden, since the book [SEG] covers more than half of it.", (CUP, BOOK)),
    (
        "The dog [SEG] is not hidden, unlike the cup [SEG], which is largely covered by the book [SEG].",
        (DOG, CUP, BOOK),
    ),
]

FALSE = [
    ("The cup [SEG] is fully visible.", (CUP,), "the cup is fully visible"),
    ("The cup [SEG] is hidden by the dog [SEG].", (CUP, DOG), "the dog hides the cup"),
    ("The book [SEG] is hidden by the cup [SEG].", (BOOK, CUP), "the cup hides the book"),
    ("The cat [SEG] is mostly hidden by the dog [SEG].", (CAT, DOG), "the cat is mostly hidden"),
    ("More than half of the cat [SEG] is hidden.", (CAT,), "more than half"),
    ("More than half of the cup [SEG] is visible.", (CUP,), "more than half"),
    ("About 20 percent of the cup [SEG] is hidden.", (CUP,), "20 percent"),
    ("The half-hidden cat [SEG] would do.", (CAT,), "half hidden"),
    ("The cup [SEG], which is slightly covered by the book [SEG], would do.", (CUP, BOOK), "slightly covered"),
    ("You could read the book [SEG], but the cup [SEG] is in the way.", (BOOK, CUP), "the cup is in front of the book"),
    ("You could drink from the cup [SEG], and nothing is in the way.", (CUP,), "nothing hides the cup"),
    ("The dog [SEG] covers a part of the lamp [SEG].", (DOG, LAMP), "the dog hides the lamp"),
    ("The dog [SEG] hides most of the cat [SEG].", (DOG, CAT), "most"),
    ("The cat [SEG] is hidden more than the cup [SEG].", (CAT, CUP), "hidden more"),
    ("The dog [SEG] is hidden the most.", (DOG,), "hidden the most"),
    ("Of the cup [SEG] and the cat [SEG], the cat is hidden the most.", (CUP, CAT), "hidden the most"),
    ("The cup [SEG] is not hidden by the book [SEG].", (CUP, BOOK), "does not hide"),
    ("The cup [SEG] isn't hidden.", (CUP,), "not hidden"),
    ("The dog [SEG] is hidden.", (DOG,), "the dog is hidden"),
    ("Behind the cup is the book [SEG].", (BOOK,), "the cup is in front of the book"),
    ("The cup [SEG] lies in front of the book [SEG].", (CUP, BOOK), "the cup is in front of the book"),
    ("The cup [SEG] is partly hidden by the book [SEG] and the dog [SEG].", (CUP, BOOK, DOG), "the dog hides the cup"),
    ("The cat [SEG] hides the cup, and the dog [SEG] is fully visible.", (CAT, DOG), "the cat hides the cup"),
    ("The lamp [SEG] is hidden by the dog.", (LAMP,), "the dog hides the lamp"),
    ("Take the cup [SEG] in full view on the table.", (CUP,), "in full view"),
    ("The dog [SEG] is tucked behind the cat [SEG].", (DOG, CAT), "the cat is in front of the dog"),
    ("The lamp [SEG] is completely unobstructed.", (LAMP,), "unobstructed"),
    ("Only a small part of the cup [SEG] is hidden.", (CUP,), "only a small part of the cup is hidden"),
]


@pytest.mark.parametrize(("answer", "objects"), TRUE)
def test_true_statements_about_occlusion_pass(answer, objects):
    assert PairChecker(table()).check(PairDraft("What would help me now?", answer, objects)) == ()


@pytest.mark.parametrize(("answer", "objects", "said"), FALSE)
def test_false_statements_about_occlusion_are_found(answer, objects, said):
    problems = PairChecker(table()).check(PairDraft("What would help me now?", answer, objects))
    assert {p.code for p in problems} == {"occlusion"}
    assert any(said in p.message for p in problems)


def test_the_reason_tells_what_is_true():
    (problem,) = PairChecker(table()).check(
        PairDraft("What would help me?", "The lamp [SEG] is fully visible.", (LAMP,))
    )
    assert "the lamp is 30 % hidden, by something unlabelled" in problem.message
    assert "the lamp is 30 % hidden, by something unlabelled" in problem.advice


def test_near_duplicates_are_the_later_pairs_problem():
    again = PairDraft("What could I drink, from?", "You could use the cup [SEG].", (CUP,))
    other = PairDraft("What could I drink from?", "You could use the dog [SEG].", (DOG,))
    assert [[p.code for p in found] for found in PairChecker(table()).check_all([GOOD, again])] == [[], ["duplicate"]]
    assert [[p.code for p in found] for found in PairChecker(table()).check_all([GOOD, other])] == [
        [],
        ["contradicting_duplicate"],
    ]


def test_the_same_words_after_different_turns_are_no_duplicates():
    pairs = [
        GOOD,
        PairDraft("What can bark?", "The dog [SEG] can bark.", (DOG,)),
        PairDraft("What is beside it?", "The book [SEG] is there.", (BOOK,), 0),
        PairDraft("What is beside it?", "The cat [SEG] is there.", (CAT,), 1),
        PairDraft("What is behind the dog?", "The cat [SEG] is behind the dog.", (CAT,)),
        PairDraft("What is behind the book?", "The cup [SEG] is behind the book.", (CUP,)),
    ]
    assert PairChecker(table()).check_all(pairs) == ((),) * 6


@pytest.mark.parametrize("follows", [[None, 1], [None, 5], [None, -1], [None, 0, 0]])
def test_follow_ups_continue_an_earlier_pair_once(follows):
    texts = [("What can bark?", "dog", DOG), ("What can purr?", "cat", CAT), ("What could I read?", "book", BOOK)]
    pairs = [PairDraft(q, f"That is the {c} [SEG].", (i,), f) for (q, c, i), f in zip(texts, follows, strict=False)]
    found = PairChecker(table()).check_all(pairs)
    assert [[p.code for p in problems] for problems in found] == [[]] * (len(pairs) - 1) + [["follows"]]


@pytest.mark.parametrize(
    "text",
    [
        "What could I sit on?",
        "Is anything in front of it?",
        "A sofa stands left of the window.",
        "My café has a naïve waiter, what would he need?",
        "Please show me everything on the right side.",
        "I feel thirsty; find something suitable.",
    ],
)
def test_english_is_english(text):
    assert not_english(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Worauf könnte ich mich hier setzen?",
        "Sur quoi est-ce que je pourrais m'asseoir ici?",
        "¿En qué puedo sentarme aquí?",
        "Su che cosa posso sedermi qui?",
        "Em que posso sentar-me aqui?",
        "Waar kan ik hier op zitten?",
        "На чём здесь можно сидеть?",
        "ここで何に座れますか",
        "Gdzie mogę tu usiąść na chwilę?",
    ],
)
def test_other_languages_are_not(text):
    assert not_english(text) is not None


def test_limits_are_settings():
    short = CheckSettings(question_words=(3, 4))
    assert [p.code for p in PairChecker(table(), short).check(GOOD)] == ["length"]
    for bad in ({"question_words": (0, 4)}, {"answer_words": (5, 4)}, {"duplicate": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CheckSettings(**bad)


def test_categories_with_dashes_and_underscores_are_words():
    scene = Scene(
        np.zeros((100, 200, 3), np.uint8), (SceneObject("traffic_light", box(0, 0, 9, 9), box(0, 0, 9, 9)),), "none"
    )
    checker = PairChecker(annotated_image_from_scene(scene, 1))
    assert checker.check(PairDraft("What tells me to stop?", "The traffic light [SEG] tells you.", (1,))) == ()
    named = checker.check(PairDraft("Where is the traffic-light now?", "The stoplight [SEG] is here.", (1,)))
    assert [p.code for p in named] == ["names_target"]


@pytest.fixture(scope="module")
def scenes() -> list[AnnotatedImage]:
    made = islice(scene_stream(load_cutouts(), load_backgrounds(), split="pretrain", seed=11), 50)
    return [annotated_image_from_scene(scene, number) for number, scene in enumerate(made)]


async def offline(image: AnnotatedImage) -> tuple[PairDraft, ...]:
    return (await OfflineGenerator(3).generate(GenerationRequest(image, Path("none.jpg")))).pairs


def test_the_offline_generators_own_pairs_pass_every_check(scenes):
    checked = 0
    for image in scenes:
        if image.objects:
            pairs = asyncio.run(offline(image))
            checked += len(pairs)
            wrong = [(p, f) for p, f in zip(pairs, PairChecker(image).check_all(pairs), strict=True) if f]
            assert not wrong, wrong
    assert checked > 400


def test_offline_pairs_told_about_another_picture_are_found(scenes):
    """The checks see the masks: what is right of one scene is mostly wrong when its masks are exchanged."""
    said = found = 0
    for image in scenes:
        if len(image.objects) < 3:
            continue
        pairs = [p for p in asyncio.run(offline(image)) if " hidden by " in p.answer and "something" not in p.answer]
        rotated = image.objects[1:] + image.objects[:1]
        swapped = [
            type(o)(o.id, o.category, other.visible, other.amodal, other.occlusion_rate)
            for o, other in zip(image.objects, rotated, strict=True)
        ]
        checker = PairChecker(AnnotatedImage(image.image_id, "x.jpg", image.height, image.width, tuple(swapped)))
        said += len(pairs)
        found += sum("occlusion" in [x.code for x in checker.check(p)] for p in pairs)
    assert said > 20
    assert found > 0.8 * said
