"""Writing a file so that readers see the old content or the new one, never a part."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

_DRAFT = re.compile(r"\..+\.[0-9a-f]{16}")


def is_draft(path: Path) -> bool:
    """Whether a file is what a write that was killed left behind."""
    return _DRAFT.fullmatch(path.name) is not None


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], durable: bool = True) -> None:
    """Write a file beside its place and move it there.

    Args:
        path: replaced once its new content is complete; left as it is if anything fails.
        write: called with the open file.
        durable: wait until the disk has it. Without, a power cut may lose the file or its content.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
