"""The run folder: results, witnesses and the state an interrupted run resumes from.

Layout: the record (`result.json`, or another file of `REPORTS`), `report.html`,
`witness.safetensors`, `certificate.safetensors`, `run.json` (what the run is of) and `state/` (checkpoints, removed
once the result is written). Every file is written beside its place and moved there, so none is ever half-written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..atomic import is_draft, write_atomically
from ..data.files import reason
from ..errors import DataError, LipscopeError, RunFolderError
from ..quantities.checkpoint import State
from ..results import (
    Bracket,
    Comparison,
    ConcentrationReport,
    DiscriminantReport,
    FisherReport,
    Gate,
    Inspection,
    MeanFieldReport,
    Report,
    Result,
)

RESULT, REPORT, WITNESS, IDENTITY = "result.json", "report.html", "witness.safetensors", "run.json"
MEAN_FIELD, CONCENTRATION = "mean-field.json", "concentration.json"
CERTIFICATE, BRACKET, INSPECTION = "certificate.safetensors", "bracket.json", "inspect.json"
FISHER, DISCRIMINANT = "fisher.json", "discriminant.json"
COMPARISON, CHECK = "comparison.json", "check.json"
_STATE, _LOCK = "state", "lock"
_MOST_BYTES = 2**30

REPORTS: dict[str, tuple[type[Report], str]] = {
    RESULT: (Result, "effective"),
    BRACKET: (Bracket, "bounds"),
    CHECK: (Gate, "verdicts"),
    INSPECTION: (Inspection, "attained"),
    COMPARISON: (Comparison, "runs"),
    FISHER: (FisherReport, "inputs"),
    DISCRIMINANT: (DiscriminantReport, "discriminant"),
    CONCENTRATION: (ConcentrationReport, "concentration"),
    MEAN_FIELD: (MeanFieldReport, "mean_field"),
}
"""What a run is stored in: the file of the folder, the record, and a field that none of the records below has."""

R = TypeVar("R", bound=Report)


class RunFolder:
    """A folder of one run, locked while in use; it is also the run's `Checkpoint`.

    Args:
        path: created if missing.
        identity: what decides the result (fingerprints of model and data, options). A folder
            that holds a run of another identity is refused.

    Raises:
        RunFolderError: not writable, in use by another process, or of another identity.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            foreign = sorted(p.name for p in path.iterdir() if p.name != _LOCK and not is_draft(p))
        except OSError as error:
            raise RunFolderError(f"cannot use {path} as a run folder: {error.strerror or error}") from error
        if foreign and not (path / IDENTITY).exists():
            raise RunFolderError(
                f"{path} is not a run folder (it holds {foreign[0]}); choose a new or empty --output"
            )
        _refuse_links(path)
        self._lock = self._take_lock()
        try:
            self._sweep()
            self._check_identity(identity)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder to other processes."""
        self._lock.close()

    def load(self, name: str) -> State | None:
        """The last checkpoint under the name; None if there is none (or an unreadable one)."""
        path = self.path / _STATE / f"{name}.npz"
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except Exception:  # NumPy and zipfile raise many types on malformed files
            return None

    def save(self, name: str, **state: np.ndarray) -> None:
        """Replace the checkpoint under the name."""
        self._write(f"{_STATE}/{name}.npz", lambda file: np.savez(file, **state), durable=False)  # type: ignore[arg-type]

    def folder(self) -> Path | None:
        """Where large files of unfinished stages lie; removed once the result is written."""
        return self.path / _STATE

    def load_text(self, name: str) -> str | None:
        """A finished stage's record; None if there is none (or an unreadable one)."""
        try:
            return (self.path / _STATE / f"{name}.json").read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def save_text(self, name: str, text: str) -> None:
        """Record a finished stage."""
        self._write(f"{_STATE}/{name}.json", lambda file: file.write(text.encode()), durable=False)

    def save_certificate(self, content: bytes) -> None:
        """Replace the certificate; each one found on the way is a proof already."""
        self._write(CERTIFICATE, lambda file: file.write(content))

    def finished(self, kind: type[R], name: str) -> R | None:
        """The result in the file `name` if the run is complete."""
        if not all((self.path / file).exists() for file in (name, WITNESS)):
            return None
        try:
            found = kind.from_json((self.path / name).read_bytes())
        except (OSError, LipscopeError):
            return None
        # A life that ended between the last file and here left them, or nothing is in it but the folder itself.
        self._drop_state()
        return found

    def finish(self, files: Mapping[str, str], witnesses: Mapping[str, Tensor]) -> None:
        """Write the witness inputs and the files, the result last, and drop the checkpoints."""
        from safetensors.torch import save

        content = {key: tensor.contiguous() for key, tensor in witnesses.items()}
        self._write(WITNESS, lambda file: file.write(save(content)))
        for name, text in files.items():
            self.write_text(name, text)
        self._drop_state()

    def write_text(self, name: str, text: str) -> None:
        """Replace a file of the result."""
        self._write(name, lambda file: file.write(text.encode()))

    def _drop_state(self) -> None:
        shutil.rmtree(self.path / _STATE, ignore_errors=True)

    def _write(self, name: str, write: Callable[[IO[bytes]], Any], durable: bool = True) -> None:
        # Checkpoints need not be durable: an unreadable one is computed again.
        path = self.path / name
        try:
            write_atomically(path, write, durable)
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error

    def _take_lock(self) -> IO[bytes]:
        try:
            file = (self.path / _LOCK).open("ab")
        except OSError as error:
            raise RunFolderError(f"cannot write in {self.path}: {error.strerror or error}") from error
        try:
            _lock_file(file)
        except OSError as error:
            file.close()
            raise RunFolderError(
                f"the run folder {self.path} is in use by another lipscope; wait for it or choose another --output"
            ) from error
        return file

    def _sweep(self) -> None:
        """Remove what killed writes left behind; whoever holds the lock is the only one who writes."""
        for path in [*self.path.glob(".*"), *(self.path / _STATE).glob(".*")]:
            if is_draft(path):
                path.unlink(missing_ok=True)

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        path = self.path / IDENTITY
        text = json.dumps(identity, indent=2, sort_keys=True)
        if path.exists():
            try:
                held = path.read_bytes()
            except OSError as error:
                raise RunFolderError(
                    f"cannot read {path}: {error.strerror or error}; choose another --output"
                ) from error
            if held != text.encode():
                raise RunFolderError(
                    f"{self.path} holds a run of another model, data set or options; choose another --output"
                )
        else:
            self._write(IDENTITY, lambda file: file.write(text.encode()))
        try:
            (self.path / _STATE).mkdir(exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"cannot write in {self.path}: {error.strerror or error}; choose another --output"
            ) from error


def _refuse_links(folder: Path) -> None:
    """Raise a `RunFolderError` if the folder, sent by somebody else perhaps, leads out of itself."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise RunFolderError(
                f"{path} is a link, a pipe or a device, and a run folder holds plain files; remove it, or choose "
                "another --output"
            )


def read_bytes(path: Path) -> bytes:
    """The content of a file of a run folder.

    Raises:
        DataError: it cannot be read, is no plain file, or is unreasonably large.
    """
    check_plain(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has more than {_MOST_BYTES >> 30} GiB, which no result has")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def check_plain(path: Path) -> None:
    """Raise a `DataError` unless the file of a run folder is a plain one: no link, pipe or device."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give a run folder") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is no plain file but a folder, link, pipe or device, and is not read")


def read_report(path: Path) -> Report:
    """The report of a run folder, or of a file that holds one.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    files = [path / name for name in REPORTS if (path / name).is_file()]
    if path.is_dir() and not files:
        raise DataError(f"{path} is not the folder of a finished run: it holds none of {', '.join(REPORTS)}")
    file = files[0] if files else path
    content = read_bytes(file)
    try:
        return _kind_of(content).from_json(content)
    except LipscopeError as error:
        raise DataError(f"{file}: {error}") from error


def _kind_of(content: bytes) -> type[Report]:
    """The kind of report that a file seems to hold; `Result`, whose reader says what is wrong, if of none."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return Result
    found = [kind for kind, field in REPORTS.values() if isinstance(fields, dict) and field in fields]
    return found[0] if found else Result


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        DataError: it cannot be read.
    """
    check_plain(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"cannot read {path}: {reason(error)}; ask for a whole copy of the run") from error
    return content


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The real tensors stored in a run folder, as NumPy has them or in float64; none if there is no such file.

    Raises:
        DataError: they cannot be read.
    """
    if not (folder / WITNESS).exists():
        return {}
    # NumPy does not know all of torch's types; eigenvectors of many parameters are not copied for nothing.
    known = (torch.float32, torch.float64)
    return {
        key: (x if x.dtype in known else x.double()).numpy()
        for key, x in read_tensors(folder / WITNESS).items()
        if not x.is_complex()
    }


def _lock_file(file: IO[bytes]) -> None:
    """Take an exclusive lock that the system releases when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def default_output(label: str, data: str, key: Mapping[str, Any]) -> Path:
    """A run folder named after model, data and what was asked, so that the same command resumes."""
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{label}-{Path(data).name or data}")
    return Path("runs") / f"{stem[:60].strip('-')}-{identity_key(key)}"


def identity_key(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name a run's identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
