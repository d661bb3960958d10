"""The wording of offline questions and answers.

Each kind of question has several forms. A form is a question with its answer. The question decides the answer's
wording, so that a small language model can learn to give exactly that answer.

===================================== ===================================================================
slot                                  what stands there
===================================== ===================================================================
``objects``                           the things asked for, each as "the banana [SEG]"
``focus``                             the one thing that the question turns on
``others``                            what hides it, or what it is compared with
``context``                           a thing named without ``[SEG]``
``thing``, ``things``                 a description by purpose; ``other_thing`` a second one
``phrase``, ``do``                    the purpose's verbs in the question and in the answer
``other_phrase``, ``other_do``        those of a second purpose
``is``, ``look``, ``hide``            verbs that agree with ``objects``
``focus_is``, ``others_are``          verbs that agree with ``focus`` and with ``others``
``how_many``                          the number of ``objects``: "one", "two"
``which``                             the same with a noun: "thing", "two things"
``which_focus``, ``which_others``     the same for ``focus`` and for ``others``
``degree``                            how hidden the focus is
``side``, ``most``                    words of place and of size
===================================== ===================================================================

Most forms with "which" give the number, because people who ask "which" mostly know how many they mean.
"""

from __future__ import annotations

Form = tuple[str, str]

FULLY_VISIBLE = 0.02
DEGREES: tuple[tuple[float, str], ...] = (
    (FULLY_VISIBLE, "fully visible"),
    (0.2, "slightly hidden"),
    (0.4, "partly hidden"),
    (0.6, "about half hidden"),
    (1.01, "mostly hidden"),
)
"""Upper limits (exclusive) of the occlusion rate for each wording."""


def degree(rate: float) -> str:
    """The words for an occlusion rate in [0, 1]."""
    return next(words for limit, words in DEGREES if rate < limit)


_COULD = "You could {do} {objects}."
_YES = "Yes, you could {do} {objects}."
_CAN = "{objects} {phrase}."
_YES_CAN = "Yes, {objects} {phrase}."
_FRONT = "{objects} {is} in front of {context}."
_BEHIND = "{objects} {is} behind {context}."
_MOST = "{objects} {is} hidden the most."
_LEAST = "{objects} {is} hidden the least."
_STATE = "{focus} {focus_is} {degree}."
_HIDDEN_BY = "{focus} {focus_is} {degree} by {others}."
_SIDE = "{side} {is} {objects}."
_EXTREME = "{objects} {is} {most}."

FORMS: dict[str, tuple[Form, ...]] = {
    "use": (
        ("What could I {phrase}?", _COULD),
        ("What could I {phrase} here?", _COULD),
        ("What can I {phrase} in this picture?", _COULD),
        ("Which {how_many} of these things could I {phrase}?", _COULD),
        ("Which {which} could I {phrase}?", _COULD),
        ("Please show me the {which} I could {phrase}.", _COULD),
        ("I am looking for the {which} I could {phrase}.", _COULD),
        ("Is there something to {phrase}?", _YES),
        ("Can you find the {which} I could {phrase}?", _YES),
    ),
    "situation": (
        ("{situation} What could help me?", _COULD),
        ("{situation} Which {which} would you take?", _COULD),
        ("{situation} Which {which} here {is} good for that?", _COULD),
        ("{situation} Please show me the {which} for that.", _COULD),
        ("{situation} Is there anything for me?", _YES),
    ),
    "ability": (
        ("What {phrase}?", _CAN),
        ("What here {phrase}?", _CAN),
        ("What in this picture {phrase}?", _CAN),
        ("Which {how_many} of these things {phrase}?", _CAN),
        ("Which {which} {phrase}?", _CAN),
        ("Please show me the {which} that {phrase}.", _CAN),
        ("Is there something that {phrase}?", _YES_CAN),
        ("Can you find the {which} that {phrase}?", _YES_CAN),
    ),
    "group": (
        ("Which {things} do you see?", "You can see {objects}."),
        ("What {things} are in this picture?", "You can see {objects}."),
        ("Please show me the {things}, {how_many} in all.", "You can see {objects}."),
        ("There {is} {how_many} of the {things} here. Which?", "You can see {objects}."),
        ("Point out {how_many} of the {things}, please.", "You can see {objects}."),
        ("Are there any {things} here?", "Yes, you can see {objects}."),
    ),
    "blocked": (
        (
            "What could I {phrase}, and is anything in the way?",
            "You could {do} {focus}, but {others} {others_are} in the way.",
        ),
        (
            "What could I {phrase}, and which {which_others} {others_are} in front of it?",
            "You could {do} {focus}, and {others} {others_are} in front.",
        ),
        (
            "Show me what I could {phrase}, and the {which_others} in the way.",
            "You could {do} {focus}, but {others} {others_are} in the way.",
        ),
        (
            "Show me what I could {phrase}, and the {which_others} in front of it.",
            "You could {do} {focus}, which {focus_is} hidden by {others}.",
        ),
    ),
    "free": (
        (
            "What could I {phrase}, and is anything in the way?",
            "You could {do} {focus}, and nothing is in the way.",
        ),
    ),
    "two_uses": (
        (
            "What could I {phrase}, and what could I {other_phrase}?",
            "You could {do} {focus}, and {other_do} {others}.",
        ),
        (
            "Which {which_focus} could I {phrase}, and which {which_others} could I {other_phrase}?",
            "You could {do} {focus}, and {other_do} {others}.",
        ),
        (
            "I need something to {phrase} and something to {other_phrase}.",
            "You could {do} {focus}, and {other_do} {others}.",
        ),
    ),
    "use_degree": (
        ("What could I {phrase}, and how much of it is hidden?", "You could {do} {focus}, which {focus_is} {degree}."),
        ("What could I {phrase}, and how well can I see it?", "You could {do} {focus}, which {focus_is} {degree}."),
    ),
    "hidden_by": (
        ("What hides {thing}?", _HIDDEN_BY),
        ("Which {which_others} {others_are} in front of {thing}?", _HIDDEN_BY),
        ("Please show me the {which_others} in front of {thing}.", _HIDDEN_BY),
        ("Why can I not see all of {thing}?", _HIDDEN_BY),
    ),
    "in_front": (
        ("What is in front of {context}?", _FRONT),
        ("Which {which} {is} in front of {context}?", _FRONT),
        ("What hides a part of {context}?", "{objects} {hide} a part of {context}."),
        ("Which {which} {hide} a part of {context}?", "{objects} {hide} a part of {context}."),
        ("Which {which} should I move to see all of {context}?", "You should move {objects}."),
    ),
    "behind": (
        ("What is behind {context}?", _BEHIND),
        ("Which {which} {is} hidden behind {context}?", _BEHIND),
        ("Which {which} {is} behind {context}?", _BEHIND),
        ("Please show me the {which} behind {context}.", _BEHIND),
        ("What would I see better without {context}?", "You would see {objects} better."),
    ),
    "behind_thing": (
        ("What is behind {thing}?", "{objects} {is} behind {focus}."),
        ("Which {which} {is} hidden behind {thing}?", "{objects} {is} behind {focus}."),
        ("Please show me the {which} behind {thing}.", "{objects} {is} behind {focus}."),
    ),
    "most_hidden": (
        ("Which of {things} is hidden the most?", _MOST),
        ("Of {things}, which one is hidden the most?", _MOST),
        ("Which of {things} can I see the least of?", _MOST),
    ),
    "least_hidden": (
        ("Which of {things} is hidden the least?", _LEAST),
        ("Of {things}, which one is hidden the least?", _LEAST),
    ),
    "most_hidden_by": (
        ("Which of {things} is hidden the most, and by what?", "{focus} {focus_is} hidden the most, by {others}."),
        (
            "Which of {things} is hidden the most, and by which {which_others}?",
            "{focus} {focus_is} hidden the most, by {others}.",
        ),
    ),
    "pair": (
        ("Which is hidden more, {thing} or {other_thing}?", "{focus} {focus_is} hidden more than {others}."),
        ("What can I see less of, {thing} or {other_thing}?", "{focus} {focus_is} hidden more than {others}."),
    ),
    "side": (
        ("What is {side}?", _SIDE),
        ("Which {which} {is} {side}?", _SIDE),
        ("Please show me the {which} {side}.", _SIDE),
    ),
    "extreme": (
        ("What is {most}?", _EXTREME),
        ("Which thing is {most}?", _EXTREME),
    ),
    "extreme_of": (
        ("Which of {things} is {most}?", _EXTREME),
        ("Of {things}, which one is {most}?", _EXTREME),
    ),
    "size": (
        ("Which thing looks the {most}?", "{objects} {look} the {most}."),
        ("What looks the {most} in this picture?", "{objects} {look} the {most}."),
    ),
    "visible": (
        ("What does nothing hide?", "{objects} {is} fully visible."),
        ("Which {which} {is} fully visible?", "{objects} {is} fully visible."),
        ("Which {which} can I see all of?", "{objects} {is} fully visible."),
        ("Please show me the {which} that nothing hides.", "{objects} {is} fully visible."),
    ),
    "hidden": (
        ("What stands behind something else?", "{objects} {is} hidden by something."),
        ("Which {which} {is} hidden by something?", "{objects} {is} hidden by something."),
        ("Which {which} can I not see all of?", "{objects} {is} hidden by something."),
        ("Please show me the {which} behind something else.", "{objects} {is} hidden by something."),
    ),
    "mostly_hidden": (
        ("What is mostly hidden?", "{objects} {is} mostly hidden."),
        ("Which {which} can I hardly see?", "{objects} {is} mostly hidden."),
    ),
    "everything": (
        ("What do you see?", "Here {is} {objects}."),
        ("What is in this picture?", "Here {is} {objects}."),
        ("Which things are here?", "Here {is} {objects}."),
        ("Please show me everything.", "Here {is} {objects}."),
        ("Can you find all the things here?", "Yes, here {is} {objects}."),
        ("What could I point at?", "You could point at {objects}."),
        ("Please mark every thing you see.", "Here {is} {objects}."),
        ("What stands out here?", "Here {is} {objects}."),
        ("What should I look at?", "You should look at {objects}."),
        ("Is there anything to see?", "Yes, here {is} {objects}."),
    ),
    "then_use": (
        ("And what could I {phrase}?", _COULD),
        ("And which {which} could I {phrase}?", _COULD),
        ("And the {which} I could {phrase}?", _COULD),
    ),
    "then_ability": (
        ("And what {phrase}?", _CAN),
        ("And which {which} {phrase}?", _CAN),
        ("And the {which} that {phrase}?", _CAN),
    ),
    "then_in_front": (
        ("And what is in front of it?", _FRONT),
        ("Which {which} {hide} a part of it?", "{objects} {hide} a part of {context}."),
        ("Which {which} should I move to see all of it?", "You should move {objects}."),
    ),
    "then_behind": (
        ("And what is behind it?", _BEHIND),
        ("And which {which} {is} behind it?", _BEHIND),
    ),
    "then_hidden_by": (
        ("Is anything in front of it?", "Yes, {focus} {focus_is} {degree} by {others}."),
        ("Which {which_others} {others_are} in front of it?", _HIDDEN_BY),
    ),
    "then_visible": (
        ("Is anything in front of it?", "No, {focus} {focus_is} fully visible."),
        ("Does anything hide it?", "No, {focus} {focus_is} fully visible."),
    ),
    "then_degree": (
        ("How much of it is hidden?", _STATE),
        ("And how well can I see it?", _STATE),
    ),
    "then_most_hidden": (
        ("Which of them is hidden the most?", _MOST),
        ("And which one is hidden the most?", _MOST),
    ),
    "then_extreme": (
        ("Which of them is {most}?", _EXTREME),
        ("And which one is {most}?", _EXTREME),
    ),
}
