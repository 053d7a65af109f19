"""How much of the training time the monitor may take."""

from __future__ import annotations

from dataclasses import dataclass

_SAVED = 2.0


@dataclass
class Account:
    """Time earned by a share of all time, and spent on one kind of work.

    What is earned beyond twice the dearest that was asked for is lost: a long pause is not followed by a rush.
    """

    share: float
    """1 and more: without limit."""
    credit: float = 0.0
    spent: float = 0.0
    dearest: float = 0.0

    def earn(self, seconds: float) -> None:
        """Time has passed, that of the monitor included."""
        self.credit = min(self.credit + self.share * seconds, max(self.credit, _SAVED * self.dearest))

    def affords(self, seconds: float) -> bool:
        """Whether so much can be spent now; if not, it will be saved for."""
        self.dearest = max(self.dearest, seconds)
        return self.share >= 1.0 or seconds <= self.credit

    def spend(self, seconds: float) -> None:
        """So much was spent; more than was earned is a debt."""
        self.credit -= seconds
        self.spent += seconds
