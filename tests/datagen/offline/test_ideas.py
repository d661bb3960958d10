"""What may be asked about an image."""

import dataclasses
import math

from aura.datagen.facts.facts import facts_of
from aura.datagen.offline.ideas import follow_ups, ideas_of, spare_ideas
from tests.datagen.offline.corpus import corpus


def test_nothing_is_claimed_about_how_much_of_an_unknown_shape_is_hidden():
    """Every second object loses its whole shape. It may hide others, which its visible mask shows, and no more."""
    claimed = {
        **dict.fromkeys(("blocked", "free", "use_degree", "hidden_by", "most_hidden_by"), ("focus",)),
        **dict.fromkeys(("then_hidden_by", "then_visible", "then_degree"), ("focus",)),
        **dict.fromkeys(("most_hidden", "least_hidden", "visible", "hidden", "mostly_hidden"), ("objects",)),
        **dict.fromkeys(("behind", "behind_thing", "then_behind", "then_most_hidden"), ("objects",)),
        "pair": ("focus", "others"),
    }
    found = dict.fromkeys((True, False), 0)
    for image, _ in corpus()[:120]:
        objects = [
            o if number % 2 else dataclasses.replace(o, amodal=None, occlusion_rate=None)
            for number, o in enumerate(image.objects)
        ]
        facts = facts_of(dataclasses.replace(image, objects=tuple(objects)))
        unknown = {index for index, rate in enumerate(facts.rates) if math.isnan(rate)}
        assert len(unknown) == sum(o.amodal is None for o in objects)
        ideas = [*ideas_of(facts), *spare_ideas(facts)]
        for idea in [*ideas, *(after for first in ideas for after in follow_ups(facts, first))]:
            about = {index for slot in claimed.get(idea.kind, ()) for index in idea.parts[slot]}
            assert not about & unknown, idea
            found[bool(about)] += 1
    assert found[False] > 1000 and found[True] > 100
