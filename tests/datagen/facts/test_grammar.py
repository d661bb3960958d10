"""Words for the degree of occlusion."""

import pytest

from aura.datagen.facts.grammar import degree


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.0, "fully visible"),
        (0.019, "fully visible"),
        (0.02, "slightly hidden"),
        (0.199, "slightly hidden"),
        (0.2, "partly hidden"),
        (0.399, "partly hidden"),
        (0.4, "about half hidden"),
        (0.599, "about half hidden"),
        (0.6, "mostly hidden"),
        (1.0, "mostly hidden"),
    ],
)
def test_degrees(rate, words):
    assert degree(rate) == words
