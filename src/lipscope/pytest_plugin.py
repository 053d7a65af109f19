"""The pytest plugin: the fixture `lipscope_check`, for tests that hold a network to limits.

pytest finds it where lipscope is installed; heavy imports wait until a test uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from torch import nn

    from .graph import Graph
    from .results import Gate


class LipscopeCheck(Protocol):
    """The type of the fixture: called as `lipscope.check`, whose arguments it takes."""

    def __call__(  # noqa: D102
        self,
        module: nn.Module | Graph,
        input_shape: tuple[int, ...] | None = None,
        data: Any = None,
        **limits: Any,
    ) -> Gate: ...


@pytest.fixture
def lipscope_check() -> LipscopeCheck:
    """`lipscope.check`, failing the test with the table of verdicts unless every limit holds.

    def test_the_classifier_is_stable(lipscope_check):
        lipscope_check(build(), (1, 28, 28), max_upper=5)
    """

    def checked(
        module: nn.Module | Graph,
        input_shape: tuple[int, ...] | None = None,
        data: Any = None,
        **limits: Any,
    ) -> Gate:
        from .jobs.gate import check

        gate = check(module, input_shape, data, **limits)
        if not gate.passed:
            pytest.fail(_table(gate), pytrace=False)
        return gate

    return checked


def _table(gate: Gate) -> str:
    """What `lipscope check` prints."""
    import io

    from rich.console import Console

    from .report import print_gate

    text = io.StringIO()
    print_gate(gate, Console(file=text, width=110, color_system=None))
    return text.getvalue()
