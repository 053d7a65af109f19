"""`load_model`: a module from the zoo or from the user's Python, with its weights."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from ..data import ImagePreprocessing
from ..data.files import printable, read_tensors, reason
from ..errors import ModelError
from .weights import weights_path
from .zoo import zoo_entry

_STATE_SUFFIXES = (".safetensors", ".pt", ".pth")
_LISTED_KEYS = 3


@dataclass(frozen=True)
class LoadedModel:
    """A module, what to call it, and what is known about its input (None: nothing)."""

    module: nn.Module
    name: str
    input_shape: tuple[int, ...] | None
    preprocessing: ImagePreprocessing | None


def load_model(
    spec: str, state: Path | None = None, notify: Callable[[str], None] | None = None
) -> LoadedModel:
    """The model of that name.

    Args:
        spec: a name of the zoo, or `module:callable` or `file.py:callable`: what a user's module calls
            the model, either a function or class that takes no arguments or the module itself. The
            current directory (for a file, also its own) is searched for modules.
        state: weights to load: .safetensors, .pt or .pth, read without running code. Every key must
            match. Without it a zoo model gets its trained weights, and another keeps its own.
        notify: told, in a sentence, before trained weights are fetched.

    Raises:
        ModelError: the model cannot be found, made or given the weights.
    """
    place, separator, attribute = spec.rpartition(":")
    if separator:
        loaded = LoadedModel(_make(place, attribute), spec, None, None)
    else:
        entry = zoo_entry(spec)
        loaded = LoadedModel(entry.build(), spec, entry.input_shape, entry.preprocessing)
        state = weights_path(spec, notify) if state is None else state
    if state is not None:
        _load_state(loaded.module, Path(state))
    return loaded


def _make(place: str, attribute: str) -> nn.Module:
    if not place or not attribute:
        raise ModelError(f"{place}:{attribute} names no model; give module:callable or file.py:callable")
    name = f"{place}:{attribute}"
    module = _import(place)
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        close = difflib.get_close_matches(attribute, [n for n in dir(module) if not n.startswith("__")])
        hint = f"did you mean {' or '.join(close)}?" if close else "check its name"
        raise ModelError(f"{place} has no attribute {attribute}; {hint}") from error
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(
            f"{name} is a {type(found).__name__}; name a torch module or a callable that returns one"
        )
    try:
        made = found()
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{name} raised {type(error).__name__}: {reason(error)}; it is called without arguments"
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"{name} returned a {type(made).__name__}, not a torch module")
    return made


def _import(place: str) -> ModuleType:
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise ModelError(f"there is no file {printable(place)}; check the path of the model")
    # The folders stay on the path: a model may import its siblings only when it runs.
    for folder in [str(Path.cwd())] + [str(Path(place).absolute().parent)] * is_file:
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        return _import_file(Path(place)) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and not is_file and _leads_to(error.name, place):
            raise ModelError(
                f"there is no module {place} in the current directory or installed; give module:callable or "
                "file.py:callable"
            ) from error
        raise ModelError(
            f"importing {printable(place)} raised {type(error).__name__}: {reason(error)}"
        ) from error


def _leads_to(missing: str | None, place: str) -> bool:
    """Whether the missing module is the one asked for, and not one that it imports."""
    return missing is not None and f"{place}.".startswith(f"{missing}.")


def _import_file(path: Path) -> ModuleType:
    # Under a name of its own: a file may be called like an installed module.
    name = f"_lipscope_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    spec.loader.exec_module(module)
    return module


def _load_state(module: nn.Module, path: Path) -> None:
    name = printable(path)
    if path.suffix.lower() not in _STATE_SUFFIXES:
        raise ModelError(f"{name} is no weights file; give one of {', '.join(_STATE_SUFFIXES)}")
    if not path.is_file():
        raise ModelError(f"there is no weights file {name}; check its path")
    held = _state_dict(read_tensors(path, ModelError), name)
    expected = module.state_dict()
    differences = [
        f"{what} {', '.join(keys[:_LISTED_KEYS])}" + (", …" if len(keys) > _LISTED_KEYS else "")
        for what, keys in (
            ("missing", [k for k in expected if k not in held]),
            ("unexpected", [k for k in held if k not in expected]),
        )
        if keys
    ]
    if differences:
        raise ModelError(f"the keys of {name} are not the model's: {'; '.join(differences)}")
    for key, value in held.items():
        if value.shape != expected[key].shape:
            raise ModelError(
                f"{key} of {name} has shape {tuple(value.shape)}, in the model {tuple(expected[key].shape)}"
            )
    try:
        module.load_state_dict(held)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the weights of {name} cannot be loaded: {reason(error)}") from error


def _state_dict(held: object, name: str) -> dict[str, Tensor]:
    for wrapper in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(wrapper), Mapping):
            held = held[wrapper]
    if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ModelError(f"{name} holds no state dict; save it with torch.save(model.state_dict(), ...)")
    return {str(key): value for key, value in held.items()}
