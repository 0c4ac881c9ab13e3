"""Cut texts into words, and number each word by a hash: a tokenizer that needs no file.

Words are what space, punctuation and symbols separate; each punctuation mark and symbol is a word
of its own, and so is each character of the scripts that are written without spaces. Letter case and
compatibility forms (Unicode NFKC) do not count.

The number of a word is a hash of its letters, the same in every pool, on every machine: a pool may
grow, and a checkpoint scores other texts, without a vocabulary to keep. The hashing trick: K.
Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009.
"""

from __future__ import annotations

import hashlib
import unicodedata
from functools import cache

_HIGHEST = 2**31 - 1
_SCRIPTS_WITHOUT_SPACES = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
"""First words of the Unicode names of characters in scripts without spaces between words."""


def cut_words(text: str) -> list[str]:
    """Return the words of a text, in order."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_SPACING).split()


@cache
def hash_word(word: str) -> int:
    """Return the number of a word, from 1 to 2^31 - 1; 0 is for padding."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % _HIGHEST


class _SpacingTable(dict[int, str]):
    """Character -> itself, with spaces around where it is a word of its own; filled on demand."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        is_single = category[0] in "PS" or (
            category[0] == "L"
            and unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_SPACES)
        )
        separates = category[0] in "ZC" and character not in "\u200c\u200d"  # joiners of letters
        self[code] = f" {character} " if is_single else " " if separates else character
        return self[code]


_SPACING = _SpacingTable()
