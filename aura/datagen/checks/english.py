"""A test whether a short text is English, by its script and its function words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_ENGLISH = (
    "the of and to is it you that he was for are with as his they be at this have from or had by what there "
    "which how their if will other about many then them these so some her would like him into has more could "
    "no than been who its now did get can may where do does i my me we our your she one here any something "
    "anything nothing when should might on in not but a an all out up see help need want keep use hidden "
    "behind front"
)
_OTHERS = (
    "der die das und ist nicht ein eine einen dem den zu mit auf für von sich ich du wir ihr sie es was wo wie "
    "kann könnte könntest hier hinter vor auch noch mir mich oder aber im am um zum zur",
    "le la les un une des est et dans je tu il nous vous que qui pour sur avec ne pas ce cette ces mon ma mes "
    "plus pourrais peux où quoi quel quelle derrière devant ici au aux du de en",
    "el la los las un una y es en que de para con por no se su lo como más pero qué dónde puedo podría podrías "
    "yo mi este esta estos detrás delante aquí hay al del",
    "il lo la gli un una e è di che per con non si su come più ma cosa dove posso potrei potresti io mio "
    "questo questa dietro davanti qui c'è al del della nel nella",
    "o a os as um uma e é de que para com não se em por mais mas como onde posso poderia você eu meu este esta "
    "atrás frente aqui há ao do da no na",
    "de het een en is van dat niet in op te met voor zijn er aan ik je wij wat waar hoe kan zou hier achter "
    "ook om naar uit bij deze dit",
    "och är en ett att det som på för med inte den jag du vi var vad hur kan skulle här bakom framför",
    "i w na z do że się nie jest to co jak dla czy gdzie mogę możesz tu za przed",
)
ENGLISH = frozenset(_ENGLISH.split())
_LANGUAGES: dict[str, list[int]] = {}
for _language, _words in enumerate(_OTHERS):
    for _word in set(_words.split()):
        _LANGUAGES.setdefault(_word, []).append(_language)


def not_english(text: str) -> str | None:
    """Why ``text`` is not English, or ``None``. Texts of fewer than three words are only judged by their script."""
    for letter in text:
        if not letter.isascii() and letter.isalpha() and not unicodedata.name(letter, "").startswith("LATIN"):
            return f"it holds the letter {letter!r}"
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower().replace("’", "'"))
    if len(words) < 3:
        return None
    english = sum(word.split("'")[0] in ENGLISH for word in words)
    others = Counter(language for word in words for language in _LANGUAGES.get(word, ()))
    other = max(others.values(), default=0)
    if english == 0 and len(words) >= 4:
        return "it holds none of the common English words"
    return "its words are those of another language" if other > english else None
