"""Names of samples made when asked for, so that a million samples take no million strings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from .files import printable


class Names(Sequence[str]):
    """A read-only sequence of names; equal to any sequence of the same names."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name at an index in 0..len−1."""

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        chosen = range(len(self))[index]
        return self.name(chosen) if isinstance(chosen, int) else [self.name(i) for i in chosen]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list


class RowNames(Names):
    """name[0], name[1], ..."""

    def __init__(self, whole: str, count: int) -> None:
        self._whole = whole
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """As `Names.name`."""
        return f"{self._whole}[{index}]"


class FileNames(Names):
    """Names of files, printable even where they are not UTF-8."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """As `Names.name`."""
        return printable(self._files[index])


class ChosenNames(Names):
    """The names at some indices of others."""

    def __init__(self, names: Sequence[str], chosen: Sequence[int]) -> None:
        self._names = names
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def name(self, index: int) -> str:
        """As `Names.name`."""
        return self._names[self._chosen[index]]
