"""Every error lipscope raises on purpose: one clear sentence for the user and an exit code for the shell."""

from __future__ import annotations


class LipscopeError(Exception):
    """Base of all errors a user can cause; the command line prints the sentence and exits with `exit_code`."""

    exit_code = 2


class ModelError(LipscopeError):
    """The model cannot be loaded, or its import does not compute what the model computes."""

    exit_code = 3


class UnsupportedLayerError(ModelError):
    """The model holds an operation that lipscope has no rule for; the message names it and its place."""

    exit_code = 4


class DataError(LipscopeError):
    """The data cannot be read, or does not fit the model's input."""

    exit_code = 5


class RunFolderError(LipscopeError):
    """The run folder is not writable, in use, or belongs to another model, data set or set of options."""

    exit_code = 6


class CertificateError(LipscopeError):
    """A proof could not be completed: nothing is reported rather than an unproved number."""

    exit_code = 7


class EngineError(LipscopeError):
    """The engine cannot be started, or its workers keep dying."""

    exit_code = 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of this process, of a device, or for another thread."""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(
        words in said for words in ("can't allocate memory", "not enough memory", "out of memory",
                                    "bad_alloc", "can't start new thread")
    )  # fmt: skip
