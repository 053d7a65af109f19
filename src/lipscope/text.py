"""Text from outside (names in files, paths, messages of other libraries) made safe to show."""

from __future__ import annotations

import unicodedata

# Marks and overrides that reorder the text around them.
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: str) -> str:
    """Text from outside with control characters and direction overrides shown, not obeyed."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDIRECTIONAL
    return character.encode("unicode_escape").decode("ascii") if hidden else character
