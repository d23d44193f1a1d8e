"""Texts that nobody wrote, for attacks on language models that are not to touch anybody's rows.

Words of a list, drawn independently of each other and of the labels: rows that can only be learned by heart.
They stand beside planted secrets where an audit runs a plan anew.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cloister.crypto import StreamRandom
from cloister.learning.language.texts import TextFormat, TextRows

__all__ = ["synthetic_texts"]

_LIST: Final = (
    "account after again air all also always answer any apple arm around ask autumn back bank basket before "
    "begin below between bird black blue board book both bread bridge bright brother build call card care "
    "carry chair change child city clear close cloud cold colour come corner country cover cross day deep "
    "door down draw dry early earth east easy end enough evening every face fall family far farm fast few "
    "field fine fire first fish five floor follow food forest four free friend from full garden give glass "
    "go gold good great green ground group grow hand hard head hear heart help high hill home horse hour "
    "house idea island join keep kind king know lake land large last late lead leaf leave letter light line "
    "list little long look loud map market matter meet middle milk mind minute money month moon more morning "
    "most mother mountain mouth move music name near need new next night north note now number ocean offer "
    "often old one open order other over own page paper part party pass past path pay people place plain "
    "plan plant play point poor power present price pull push question quick quiet rain reach read ready red "
    "rest rich right river road rock room round row run salt same sand school sea season second see seven "
    "shape sharp ship shop short side silver simple sing sister six sky sleep slow small snow soft some song "
    "soon sound south spring stand star start stay stone stop store story street strong summer sun sure swim "
    "table take talk tall teach tell ten their thick thin thing think third three time today together top "
    "town train travel tree true turn two under until use valley very view village visit voice wait walk "
    "wall warm watch water way week well west wheel white whole wide wild wind window winter wish with wood "
    "word work world write year yellow yes young"
)
_WORDS: Final = tuple(_LIST.split())
_FEWEST, _MOST = 3, 10


def synthetic_texts(
    count: int, format: TextFormat, classes: int, random: StreamRandom, *, most_words: int = _MOST
) -> TextRows:
    """Return rows of a plan's format.

    Args:
        count: of rows.
        format: of the plan.
        classes: of a text-classifier; 0 for a causal-lm.
        random: draws them.
        most_words: of a sentence.
    """
    first = _sentences(count, random, most_words)
    if classes:
        return TextRows(first, labels=random.integers(classes, count).astype(np.float64))
    if format == "text":
        return TextRows([""] * count, answers=first)
    second = _sentences(count, random, most_words)
    if format == "pairs":
        return TextRows(first, answers=second)
    chats = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in zip(first, second, strict=True)
    ]
    return TextRows([""] * count, chats=chats)


def _sentences(count: int, random: StreamRandom, most: int) -> list[str]:
    most = max(_FEWEST, most)
    lengths = _FEWEST + random.integers(most - _FEWEST + 1, count)
    words = random.integers(len(_WORDS), (count, most))
    return [
        " ".join(_WORDS[word] for word in row[:length]).capitalize() + "."
        for row, length in zip(words.tolist(), lengths.tolist(), strict=True)
    ]
