"""Real photographs for a first run without data of one's own: those in scikit-image's wheel."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..errors import DataError
from .images import ImagePreprocessing, stacked
from .samples import Samples

# All are in the wheel itself. The files are read directly: skimage.data would fetch a missing one.
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
CROP = 224
STRIDE = 112


def demo_photographs(preprocess: ImagePreprocessing) -> Samples:
    """Crops of 224×224 at stride 112 of six photographs, named like "astronaut[row,column]".

    A crop is already cut to size, so `preprocess.resize` is left out.

    Raises:
        DataError: scikit-image or one of its photographs is not installed.
    """
    folder = _photograph_folder()
    crop_preprocess = replace(preprocess, resize=None)
    crops: dict[str, Image.Image] = {}
    for file in PHOTOGRAPHS:
        try:
            with Image.open(folder / file) as opened:
                photograph = opened.convert("RGB")
        except OSError as error:
            raise DataError(
                f"the installed scikit-image lacks the photograph {file}; run: "
                "pip install --force-reinstall 'lipscope[demo]'"
            ) from error
        for top in range(0, photograph.height - CROP + 1, STRIDE):
            for left in range(0, photograph.width - CROP + 1, STRIDE):
                crop = photograph.crop((left, top, left + CROP, top + CROP))
                crops[f"{Path(file).stem}[{top},{left}]"] = crop
    sentence = f"{CROP}×{CROP} crops at stride {STRIDE}, {crop_preprocess.describe()}"
    read = _Crops(list(crops.values()), crop_preprocess)
    return Samples(list(crops), crop_preprocess.shape, sentence, "demo photographs (scikit-image)", read)


@dataclass(frozen=True)
class _Crops:
    crops: list[Image.Image]
    preprocess: ImagePreprocessing

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return stacked((self.preprocess(self.crops[i]) for i in indices), self.preprocess.shape)


def _photograph_folder() -> Path:
    spec = importlib.util.find_spec("skimage")  # finds without importing: only its files are needed
    if spec is None or not spec.submodule_search_locations:
        raise DataError("the demo photographs come with scikit-image; run: pip install 'lipscope[demo]'")
    return Path(spec.submodule_search_locations[0]) / "data"
