"""What users name in their own Python, as `module:attribute` or `file.py:attribute`: models and data."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ..errors import LipscopeError
from .files import printable, reason

What = Literal["model", "data", "labels"]


def named_object(place: str, attribute: str, what: What, error: type[LipscopeError]) -> Any:
    """The attribute (it may hold dots) of the module or file, which is imported.

    The current directory (for a file, also its own) is searched for modules.

    Raises:
        error: there is no such module, file or attribute, or importing it raised an exception.
    """
    if not place or not attribute:
        raise error(f"{place}:{attribute} names no {what}; give module:callable or file.py:callable")
    module = _import(place, what, error)
    try:
        return operator.attrgetter(attribute)(module)
    except AttributeError as failure:
        close = difflib.get_close_matches(attribute, [n for n in dir(module) if not n.startswith("__")])
        hint = f"did you mean {' or '.join(close)}?" if close else "check its name"
        raise error(f"{place} has no attribute {attribute}; {hint}") from failure


def called(function: Callable[[], Any], name: str, error: type[LipscopeError]) -> Any:
    """What the user's function returns, called without arguments.

    Raises:
        error: it raised an exception, or asked to exit.
    """
    try:
        return function()
    except (Exception, SystemExit) as failure:
        raise error(
            f"{name} raised {type(failure).__name__}: {reason(failure)}; it is called without arguments"
        ) from failure


def _import(place: str, what: What, error: type[LipscopeError]) -> ModuleType:
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise error(f"there is no file {printable(place)}; check the path of the {what}")
    # The folders stay on the path: a model may import its siblings only when it runs.
    for folder in [str(Path.cwd())] + [str(Path(place).absolute().parent)] * is_file:
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        return _import_file(Path(place), what) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as failure:
        if isinstance(failure, ModuleNotFoundError) and not is_file and _leads_to(failure.name, place):
            raise error(
                f"there is no module {place} in the current directory or installed; give module:callable or "
                "file.py:callable"
            ) from failure
        raise error(
            f"importing {printable(place)} raised {type(failure).__name__}: {reason(failure)}"
        ) from failure


def _leads_to(missing: str | None, place: str) -> bool:
    """Whether the missing module is the one asked for, and not one that it imports."""
    return missing is not None and f"{place}.".startswith(f"{missing}.")


def _import_file(path: Path, what: What) -> ModuleType:
    # Under a name of its own: a file may be called like an installed module, and hold model and data.
    name = f"_lipscope_{what}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    spec.loader.exec_module(module)
    return module
