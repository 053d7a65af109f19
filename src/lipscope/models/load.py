"""`load_model`: a module from the zoo or from the user's Python, with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..data import ImagePreprocessing
from ..data.callables import called, named_object
from ..data.files import printable, read_tensors, reason
from ..errors import ModelError
from ..graph.file_program import FileProgram
from .exported import read_exported
from .onnx_file import read_onnx
from .weights import weights_path
from .zoo import zoo_entry

_STATE_SUFFIXES = (".safetensors", ".pt", ".pth")
_LISTED_KEYS = 3
_READERS: dict[str, Callable[[Path], FileProgram]] = {".pt2": read_exported, ".onnx": read_onnx}
"""Files that hold a whole network."""


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
        spec: a name of the zoo; an exported program (.pt2) or an .onnx file, read without running code;
            or `module:callable` or `file.py:callable`: what a user's module calls the model, either a
            function or class that takes no arguments or the module itself. The current directory (for a
            file, also its own) is searched for modules.
        state: weights to load: .safetensors, .pt or .pth, read without running code. Every key must
            match. Without it a zoo model gets its trained weights, and another keeps its own.
        notify: told, in a sentence, before trained weights are fetched.

    Raises:
        ModelError: the model cannot be found, made or given the weights.
    """
    try:
        return _load(spec, state, notify)
    except OSError as error:
        raise ModelError(f"{printable(spec)} cannot be loaded: {reason(error)}; check its path") from error


def _load(spec: str, state: Path | None, notify: Callable[[str], None] | None) -> LoadedModel:
    place, separator, attribute = spec.rpartition(":")
    name = printable(spec)
    reader = _READERS.get(Path(spec).suffix.lower())
    if reader is not None:
        if state is not None:
            raise ModelError(f"{spec} brings its own weights; --state goes with a model given as code")
        program = reader(Path(spec))
        loaded = LoadedModel(program, name, program.input_shape, None)
    elif separator:
        loaded = LoadedModel(_make(place, attribute), name, None, None)
    else:
        entry = zoo_entry(spec)
        loaded = LoadedModel(entry.build(), spec, entry.input_shape, entry.preprocessing)
        state = weights_path(spec, notify) if state is None else state
    if state is not None:
        _load_state(loaded.module, Path(state))
    return loaded


def _make(place: str, attribute: str) -> nn.Module:
    name = f"{place}:{attribute}"
    found = named_object(place, attribute, "model", ModelError)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ModelError(
            f"{name} is a {type(found).__name__}; name a torch module or a callable that returns one"
        )
    made = called(found, name, ModelError)
    if not isinstance(made, nn.Module):
        raise ModelError(f"{name} returned a {type(made).__name__}, not a torch module")
    return made


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
