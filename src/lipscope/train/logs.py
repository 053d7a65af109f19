"""Where the monitor's snapshots go: a CSV file, TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..atomic import write_atomically
from ..errors import DataError, LipscopeError, RunFolderError
from ..results import Snapshot

Row = dict[str, float]
"""One snapshot of a log: `step`, `seconds` and the numbers it has, by name."""

_FIRST = ("step", "seconds")


class CsvLog:
    """Writes each snapshot as a line of a CSV file: step, seconds and `Snapshot.numbers`.

    If numbers come up that have no column yet (a layer was added), the file is written anew with one.

    Args:
        path: of the file; the folder is made if need be.
        append: go on with a file that exists, as when a training is resumed: its lines from the step of the first
            snapshot on, of a run that was cut off later, are replaced. Else it is begun anew.

    Raises:
        RunFolderError: the file cannot be written.
        DataError: it exists and is no such log.
    """

    def __init__(self, path: str | Path, append: bool = False) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        self._begun, self._kept = False, append

    def __call__(self, snapshot: Snapshot) -> None:
        """Write one line."""
        row: Row = {"step": snapshot.step, "seconds": snapshot.seconds, **snapshot.numbers}
        try:
            if self._begun and set(row) <= set(self._columns):
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self._columns).writerow(row)
                return
            known = read_log(self.path) if self._kept and self.path.exists() else []
            rows = [old for old in known if old["step"] < row["step"]] + [row]
            self._columns = list(dict.fromkeys(name for one in rows for name in one))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, lambda file: _write(file, self._columns, rows))
            self._begun = self._kept = True
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path}: {error.strerror or error}") from error


def _write(file: IO[bytes], columns: Sequence[str], rows: Iterable[Mapping[str, float]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    file.write(text.getvalue().encode())


def read_log(path: str | Path) -> list[Row]:
    """The snapshots of a file that `CsvLog` wrote, in order; a line that is being written is left out.

    Raises:
        DataError: the file cannot be read, or is no such log.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(
            f"cannot read {path}: {reason}; give a CSV file that lipscope.train.CsvLog wrote"
        ) from error
    complete = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(complete, newline=""))
    if not set(_FIRST) <= set(reader.fieldnames or ()):
        raise DataError(
            f"{path}: no columns step and seconds; give a CSV file that lipscope.train.CsvLog wrote"
        )
    try:
        return [{name: float(value) for name, value in line.items() if value} for line in reader]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}, line {reader.line_num}: not a row of numbers") from error


class TensorBoardLog:
    """Writes each snapshot as scalars `lipscope/NAME`, the mean slopes as `lipscope_slopes/LAYER`, into a folder.

    Args:
        folder: of the run; one that the training writes to itself will do.

    Raises:
        LipscopeError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise LipscopeError("this log needs tensorboard: pip install 'lipscope[tensorboard]'") from error
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, snapshot: Snapshot) -> None:
        """Write its scalars."""
        for name, value in snapshot.numbers.items():
            what, _, layer = name.partition(":")
            tag = f"lipscope_slopes/{layer}" if layer and what == "slope" else f"lipscope/{name}"
            self._writer.add_scalar(tag, value, snapshot.step)
        self._writer.flush()
