"""A certificate: the pieces of a network with what proves a bound for each, as data that can be stored.

The file is a safetensors file: the parameters as float64 tensors, all else as JSON in its metadata.
Reading it runs no code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..atomic import write_atomically
from ..errors import CertificateError
from ..results import CertifiedPiece
from ..rounding import up_product

FORMAT = 1


class _Header(BaseModel):
    format: int
    fingerprint: str
    pieces: list[CertifiedPiece]


class Certificate:
    """An upper bound of the Lipschitz constant with its proof.

    `parameters[i]` are those of `pieces[i]` (see `verify.py`), float64.
    """

    def __init__(
        self, fingerprint: str, pieces: list[CertifiedPiece], parameters: list[dict[str, Tensor]]
    ) -> None:
        self.fingerprint = fingerprint
        self.pieces = pieces
        self.parameters = parameters

    @property
    def value(self) -> float:
        """Certified upper bound of the Euclidean Lipschitz constant: the product over the pieces."""
        return up_product(*(piece.bound for piece in self.pieces))

    def tensors(self) -> dict[str, Tensor]:
        """The parameters under the names they are stored by."""
        return {
            f"{number}.{key}": tensor.contiguous()
            for number, held in enumerate(self.parameters)
            for key, tensor in held.items()
        }

    def to_bytes(self) -> bytes:
        """The content of a certificate file."""
        from safetensors.torch import save

        header = _Header(format=FORMAT, fingerprint=self.fingerprint, pieces=self.pieces)
        content: bytes = save(self.tensors(), {"lipscope": header.model_dump_json()})
        return content

    def save(self, path: str | Path) -> None:
        """Write the certificate file."""
        write: Callable[[IO[bytes]], object] = lambda file: file.write(self.to_bytes())  # noqa: E731
        write_atomically(Path(path), write, True)

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate file.

        Raises:
            CertificateError: it cannot be read or is not a certificate.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = _Header.model_validate_json(metadata.get("lipscope", ""))
        except (OSError, SafetensorError) as error:
            raise CertificateError(f"cannot read {path}: {error}") from error
        except ValidationError as error:
            raise CertificateError(f"{path} is not a certificate of lipscope") from error
        if header.format > FORMAT:
            raise CertificateError(
                f"{path} is of format {header.format}, newer than {FORMAT}: upgrade lipscope"
            )
        parameters: list[dict[str, Tensor]] = [{} for _ in header.pieces]
        for key, tensor in tensors.items():
            number, _, name = key.partition(".")
            if not number.isdecimal() or int(number) >= len(parameters) or tensor.dtype != torch.float64:
                raise CertificateError(f"{path}: tensor {key} belongs to no piece")
            parameters[int(number)][name] = tensor
        return cls(header.fingerprint, header.pieces, parameters)
