"""Samples as the network sees them: every source, the preprocessing, and every error by its message."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lipscope.data import ImagePreprocessing, Samples, load_samples
from lipscope.errors import DataError

UNIT = ImagePreprocessing((8, 8), (0.0,) * 3, (1.0,) * 3)
IMAGENET = ImagePreprocessing((24, 20), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=30)


def photo(height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def everything(samples: Samples) -> torch.Tensor:
    return samples.batch(range(len(samples)))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    for seed, name in enumerate(["c.png", "b/a.png", "a.PNG"]):
        Image.fromarray(photo(seed=seed)).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    return root


# --- images ---------------------------------------------------------------------------------------


def test_a_folder_is_read_recursively_in_the_order_of_names(folder):
    samples = load_samples(folder, (3, 8, 8))
    assert samples.names == ["a.PNG", "b/a.png", "c.png"]
    assert samples.name == "photos"
    assert "0..1" in samples.preprocessing
    expected = np.stack([photo(seed=s) for s in (2, 1, 0)]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert everything(samples).dtype == torch.float32
    np.testing.assert_array_equal(everything(samples), expected)
    np.testing.assert_array_equal(samples.batch([2, 0]), expected[[2, 0]])


def test_a_single_image(folder):
    assert load_samples(folder / "c.png", (3, 8, 8)).names == ["c.png"]


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (30, 30), (7, 9), (31, 47)])
def test_preprocessing_is_that_of_torchvision(size):
    width, height = size
    image = Image.fromarray(photo(height, width))
    scale = 30 / min(size)
    resized = (30, int(scale * height)) if width <= height else (int(scale * width), 30)
    image_30 = image if resized == size else image.resize(resized, Image.Resampling.BILINEAR)
    top, left = round((resized[1] - 24) / 2.0), round((resized[0] - 20) / 2.0)
    crop = np.asarray(image_30)[top : top + 24, left : left + 20].astype(np.float32) / np.float32(255)
    expected = (crop - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
    np.testing.assert_array_equal(IMAGENET(image), expected.transpose(2, 0, 1))


def test_without_resize_only_images_smaller_than_the_crop_are_resized():
    big = photo(12, 20)
    np.testing.assert_allclose(
        UNIT(Image.fromarray(big)), big[2:10, 6:14].transpose(2, 0, 1) / 255, atol=1e-7
    )
    small = Image.fromarray(photo(4, 6))
    enlarged = np.asarray(small.resize((12, 8), Image.Resampling.BILINEAR))[:, 2:10]
    np.testing.assert_allclose(UNIT(small), enlarged.transpose(2, 0, 1) / 255, atol=1e-7)


def test_describe_says_all_steps():
    assert IMAGENET.describe() == (
        "shorter side resized to 30 (bilinear, antialiased), centre crop 24×20 (smaller images enlarged), "
        "RGB in 0..1, minus mean (0.485, 0.456, 0.406), over std (0.229, 0.224, 0.225)"
    )
    assert UNIT.describe() == "centre crop 8×8 (smaller images enlarged), RGB in 0..1"


def test_colour_modes_give_the_same_picture(tmp_path):
    grey = photo()[:, :, 0]
    expected = np.broadcast_to(grey / np.float32(255), (3, 8, 8))
    alpha = np.full_like(grey, 7)
    pictures = {
        "rgb.png": Image.fromarray(np.stack([grey] * 3, -1)),
        "grey.png": Image.fromarray(grey),
        "rgba.png": Image.fromarray(np.stack([grey] * 3 + [alpha], -1)),
        "la.png": Image.fromarray(np.stack([grey, alpha], -1), "LA"),
        "palette.png": Image.fromarray(grey).convert("P"),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(grey.astype(np.uint16) * 257),
        "first-frame.gif": Image.fromarray(grey),
        "bitmap.bmp": Image.fromarray(grey),
        "netpbm.ppm": Image.fromarray(np.stack([grey] * 3, -1)),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    pictures["palette.png"].save(tmp_path / "transparent.png", transparency=bytes(range(256)))
    samples = load_samples(tmp_path, preprocess=UNIT)
    for name, x in zip(samples.names, everything(samples), strict=True):
        np.testing.assert_array_equal(x, expected, err_msg=name)
    one = load_samples(tmp_path / "rgba.png", (1, 8, 8))
    np.testing.assert_array_equal(everything(one)[0], expected[:1])


def test_exif_orientation_is_applied(tmp_path):
    pixels = photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown rotated by 90° clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    x = everything(load_samples(tmp_path / "turned.png", preprocess=UNIT))[0]
    np.testing.assert_allclose(x, np.rot90(pixels, -1).transpose(2, 0, 1) / 255, atol=1e-7)


def test_symlink_loops_end_and_links_are_followed_once(folder, tmp_path):
    (folder / "b" / "loop").symlink_to(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(photo(seed=9)).save(elsewhere / "x.png")
    (folder / "link").symlink_to(elsewhere)
    assert load_samples(folder, (3, 8, 8)).names == ["a.PNG", "b/a.png", "c.png", "link/x.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_names_that_are_not_utf8(folder):
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(photo()).save(folder / name)
    samples = load_samples(folder, (3, 8, 8))
    assert "caf\\xe9.png" in samples.names
    assert len(everything(samples)) == 4
    (folder / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"caf\\xe9\.png: it is empty"):
        everything(samples)


def broken(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    contents = {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"this is no image"}
    path.write_bytes(contents[kind])


@pytest.mark.parametrize(
    ("kind", "why"),
    [("empty", r"it is empty \(0 bytes\)"), ("truncated", "truncated"), ("text", "no known image format")],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_unreadable_image_is_named(tmp_path, kind, why, suffix):
    path = tmp_path / f"bad.{suffix}"
    Image.fromarray(photo(64, 64)).save(path)
    broken(path, kind)
    with pytest.raises(
        DataError, match=rf"cannot read the image .*bad\.{suffix}: .*{why}.*; repair or remove"
    ):
        everything(load_samples(tmp_path, preprocess=UNIT))


def test_a_decompression_bomb_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"a\.PNG: it has too many pixels"):
        everything(load_samples(folder, (3, 8, 8)))


def test_enlarging_a_thread_like_image_is_refused(tmp_path):
    Image.fromarray(photo(1, 60_000)).save(tmp_path / "thread.png")
    preprocess = ImagePreprocessing((224, 224), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(DataError, match=r"thread\.png: its sides of 60000×1 are too unequal"):
        everything(load_samples(tmp_path, preprocess=preprocess))


def test_32_bit_pixels_have_no_range(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif: its 32-bit pixels have no known range"):
        everything(load_samples(tmp_path, preprocess=UNIT))


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match=r"missing is neither a file nor a folder"):
        load_samples(tmp_path / "missing", (3, 8, 8))
    with pytest.raises(DataError, match=r"holds no images \(bmp, gif, jpeg.*; name another"):
        load_samples(tmp_path, (3, 8, 8))
    Image.fromarray(photo()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="images need the model's input shape"):
        load_samples(tmp_path)
    with pytest.raises(DataError, match=r"images do not fit the model's input of shape \(7,\)"):
        load_samples(tmp_path, (7,))
    with pytest.raises(
        DataError, match=r"shape \(3, 8, 8\) do not fit the model's input of shape \(3, 9, 9\)"
    ):
        load_samples(tmp_path, (3, 9, 9), UNIT)
    (tmp_path / "a.doc").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"a\.doc is of no known kind; give a folder of images or a file of \.npy"
    ):
        load_samples(tmp_path / "a.doc")


def test_impossible_preprocessing_is_refused():
    with pytest.raises(DataError, match="RGB images need 3 values"):
        ImagePreprocessing((8, 8), (0.0,), (1.0,))
    with pytest.raises(DataError, match="must be positive"):
        ImagePreprocessing((8, 8), (0.0,), (0.0,), "L")


def test_a_folder_is_decoded_per_batch(folder):
    samples = load_samples(folder, (3, 8, 8))
    (folder / "c.png").unlink()
    assert len(samples.batch([0, 1])) == 2
    with pytest.raises(DataError, match=r"c\.png: No such file"):
        samples.batch([2])


# --- arrays ---------------------------------------------------------------------------------------


def saved(tmp_path: Path, suffix: str, array: np.ndarray) -> Path:
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez(path, labels=np.zeros(3), data=array)
    elif suffix == ".safetensors":
        safetensors.torch.save_file({"images": torch.tensor(array), "y": torch.zeros(3)}, path)
    else:
        torch.save(torch.tensor(array), path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_array_files_round_trip(tmp_path, suffix, dtype):
    array = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(dtype)
    samples = load_samples(saved(tmp_path, suffix, array), (2, 3))
    assert samples.names == [f"a{suffix}[{i}]" for i in range(5)]
    assert samples.preprocessing == f"taken as stored ({np.dtype(dtype).name})"
    assert everything(samples).dtype == torch.from_numpy(array).dtype
    np.testing.assert_array_equal(samples.batch([3, 1]), array[[3, 1]])


def test_npy_is_mapped_not_read(tmp_path):
    path = saved(tmp_path, ".npy", np.zeros((5, 2)))
    samples = load_samples(path)
    np.lib.format.open_memmap(path, "r+")[3] = 7  # seen only because nothing was read before
    np.testing.assert_array_equal(samples.batch([2, 3]), [[0, 0], [7, 7]])


def test_number_types():
    integers = load_samples(np.arange(6, dtype=np.int64).reshape(3, 2))
    assert "not scaled" in integers.preprocessing
    np.testing.assert_array_equal(everything(integers), [[0, 1], [2, 3], [4, 5]])
    for array in (
        torch.ones(2, 3, dtype=torch.bfloat16),
        torch.ones(2, 3, dtype=torch.bool),
        np.ones((2, 3), np.float16),
        np.ones((2, 3), ">f4"),
        torch.ones(2, 3, requires_grad=True),
    ):
        x = everything(load_samples(array))
        assert x.dtype == torch.float32
        assert torch.equal(x, torch.ones(2, 3))
    assert everything(load_samples(np.ones((2, 3), ">f8"))).dtype == torch.float64


def test_8_bit_images_are_preprocessed_only_when_asked():
    pixels = np.stack([photo(10, 12, seed=s) for s in range(3)])
    expected = pixels[:, 1:9, 2:10].transpose(0, 3, 1, 2).astype(np.float32) / 255
    for array in (
        pixels,
        pixels.transpose(0, 3, 1, 2),
        torch.tensor(pixels),
        [torch.tensor(p) for p in pixels],
    ):
        samples = load_samples(array, (3, 8, 8), UNIT)
        assert samples.preprocessing.startswith("8-bit images of shape")
        np.testing.assert_allclose(everything(samples), expected, atol=1e-7)
    grey = load_samples(pixels[..., 0], preprocess=UNIT)
    np.testing.assert_allclose(everything(grey)[:, 0], pixels[:, 1:9, 2:10, 0] / 255.0, atol=1e-7)
    raw = load_samples(pixels.transpose(0, 3, 1, 2), (3, 10, 12))
    assert raw.preprocessing == "uint8 values converted to float32, not scaled"
    np.testing.assert_array_equal(everything(raw), pixels.transpose(0, 3, 1, 2))
    floats = load_samples(np.ones((2, 3, 8, 8), np.float32), (3, 8, 8), UNIT)
    assert torch.equal(everything(floats), torch.ones(2, 3, 8, 8))


def test_nan_and_infinity_name_the_sample():
    for bad in (np.nan, np.inf):
        array = np.zeros((4, 3), np.float32)
        array[2, 1] = bad
        samples = load_samples(array)
        samples.batch([0, 1])
        with pytest.raises(DataError, match=r"array\[2\] holds NaN or infinite values; repair"):
            samples.batch([3, 2])
        with pytest.raises(DataError, match=r"array\[2\]"):
            samples.fingerprint()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a", "b"]), "holds text, not real numbers; convert"),
        (np.array([None, 1]), "holds Python objects, not real numbers"),
        (np.zeros((2, 2), complex), "holds complex numbers"),
        (np.zeros(2, [("a", int)]), "not real numbers"),
        (torch.zeros(2, 2).to_sparse(), "not a dense tensor"),
        (np.zeros((0, 3)), "holds no samples"),
        (np.float32(3)[...], "holds no samples"),
        ([], "holds no samples"),
        ([torch.zeros(2), torch.zeros(3)], r"samples differ in shape \(\(2,\), \(3,\)\)"),
        (["a"], r"list\[0\] is a str, not a tensor"),
        ([Image.new("L", (2, 2))], "is an image, not a tensor; add a transform"),
        (7, "cannot read data from a int"),
    ],
)
def test_wrong_arrays(array, message):
    with pytest.raises(DataError, match=message):
        everything(load_samples(array))


def test_wrong_shape_says_both():
    with pytest.raises(
        DataError, match=r"shape \(4, 4, 3\) do not fit the model's input of shape \(3, 4, 4\)"
    ):
        load_samples(np.zeros((2, 4, 4, 3)), (3, 4, 4))
    with pytest.raises(DataError, match="a single sample needs a first dimension of 1"):
        load_samples(np.zeros((3, 4, 4)), (3, 4, 4))


class Code:
    pass


def corrupt_files(tmp_path: Path) -> dict[str, str]:
    good = np.arange(1000.0)
    np.save(tmp_path / "cut.npy", good)
    np.savez(tmp_path / "cut.npz", x=good)
    np.savez(tmp_path / "flipped.npz", x=good)
    safetensors.torch.save_file({"x": torch.tensor(good)}, tmp_path / "cut.safetensors")
    torch.save(torch.tensor(good), tmp_path / "cut.pt")
    for path in tmp_path.glob("cut.*"):
        path.write_bytes(path.read_bytes()[:500])
    flipped = bytearray((tmp_path / "flipped.npz").read_bytes())
    flipped[2000] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for suffix in ("npy", "npz", "safetensors", "pt"):
        (tmp_path / f"empty.{suffix}").write_bytes(b"")
        (tmp_path / f"text.{suffix}").write_bytes(b"hello world, this is no array")
    np.save(tmp_path / "objects.npy", np.array([None]))
    np.savez(tmp_path / "objects.npz", x=np.array([None]))
    np.savez(tmp_path / "keys.npz", a=good, b=good)
    np.savez(tmp_path / "nothing.npz")
    safetensors.torch.save_file({k: torch.zeros(2) for k in "pq"}, tmp_path / "keys.safetensors")
    torch.save(Code(), tmp_path / "code.pt")
    torch.save({"x": torch.zeros(2)}, tmp_path / "dict.pt")
    for suffix in ("npy", "pt"):
        (tmp_path / f"pickle.{suffix}").write_bytes(pickle.dumps(os.getcwd))
    unreadable = r"cannot be read: .*; save it again"
    return {
        **dict.fromkeys(("cut.npy", "cut.npz", "flipped.npz", "empty.npy", "empty.npz"), unreadable),
        "text.npy": "no NumPy file",
        "text.npz": "no NumPy file",
        "pickle.npy": "no NumPy file, or a pickle",
        "objects.npy": "Python objects, not numbers",
        "objects.npz": "Python objects, not numbers",
        "keys.npz": r"several arrays or none \(a, b\); name the samples x, data or images",
        "nothing.npz": r"several arrays or none \(nothing\)",
        "keys.safetensors": r"several arrays or none \(p, q\)",
        **dict.fromkeys(("cut.safetensors", "empty.safetensors", "text.safetensors"), "cannot be read: "),
        **dict.fromkeys(("cut.pt", "empty.pt"), "cannot be read: .*check that the file is whole"),
        "text.pt": "cannot be read: KeyError",
        "pickle.pt": "is corrupt, or needs code to load",
        "code.pt": r"needs code to load \(it holds .*Code\); save plain tensors",
        "dict.pt": "holds a dict, not a tensor",
    }


def test_bad_array_files_are_refused_in_one_sentence(tmp_path):
    for name, message in corrupt_files(tmp_path).items():
        with pytest.raises(DataError, match=message) as caught:
            load_samples(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


# --- torch data sets ------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.full((2,), float(i)), i) for i in range(5)])


class Failing(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise OSError(5, "disk on fire")
        return torch.zeros(2)


class Unsized(Dataset):
    def __getitem__(self, index):
        return torch.zeros(2)


def test_data_sets_and_loaders():
    x = torch.randn(5, 2)
    labelled = TensorDataset(x, torch.arange(5))
    for source in (labelled, DataLoader(labelled, 2), DataLoader(x, 2), list(x), [(row, 0) for row in x]):
        assert torch.equal(everything(load_samples(source, (2,))), x)
    assert load_samples(labelled).names[4] == "TensorDataset[4]"
    np.testing.assert_array_equal(everything(load_samples(Stream()))[:, 0], range(5))


def test_failing_data_sets():
    samples = load_samples(Failing())
    with pytest.raises(DataError, match=r"Failing\[1\] raised OSError: disk on fire"):
        samples.batch([0, 1])
    with pytest.raises(DataError, match="DataLoader raised OSError"):
        load_samples(DataLoader(Failing(), 2))
    with pytest.raises(DataError, match="Unsized has no length"):
        load_samples(Unsized())


# --- Samples --------------------------------------------------------------------------------------


def test_take():
    samples = load_samples(np.arange(10.0)[:, None])
    assert samples.take(3).names == ["array[0]", "array[1]", "array[2]"]
    np.testing.assert_array_equal(everything(samples.take(3))[:, 0], [0, 1, 2])
    drawn = samples.take(4, seed=1)
    values = everything(drawn)[:, 0].tolist()
    assert values == sorted(set(values))
    assert [f"array[{int(v)}]" for v in values] == drawn.names
    assert drawn.names == samples.take(4, seed=1).names != samples.take(4, seed=2).names
    assert samples.take(99, seed=1) is samples
    with pytest.raises(DataError, match="cannot take 0 samples"):
        samples.take(0)


def test_fingerprint(monkeypatch):
    x = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
    samples = load_samples(x)
    expected = hashlib.sha256(b"float32 100 (3,)" + x.tobytes()).hexdigest()
    assert samples.fingerprint() == expected
    assert load_samples(x).take(99).fingerprint() != expected
    assert load_samples(x.astype(np.float64)).fingerprint() != expected
    assert load_samples(x.reshape(100, 3, 1)).fingerprint() != expected
    monkeypatch.setattr("lipscope.data.samples._HASHED_SAMPLES", 7)
    assert load_samples(torch.tensor(x)).fingerprint() == expected
    monkeypatch.setattr(samples, "read", None)  # cached: nothing is read again
    assert samples.fingerprint() == expected


def test_samples_of_nothing_or_of_mixed_shapes():
    with pytest.raises(DataError, match="none holds no samples"):
        Samples([], (1,), "", "none", lambda i: torch.zeros(0, 1))
    mixed = Samples(["a"], (2,), "", "mixed", lambda i: torch.zeros(1, 3))
    with pytest.raises(DataError, match=r"mixed: samples of shape \(3,\) among those of \(2,\)"):
        mixed.batch([0])


# --- demo -----------------------------------------------------------------------------------------


def test_demo_photographs(monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr("socket.socket.connect", None)  # the network must not be touched
    preprocess = ImagePreprocessing((224, 224), (0.0,) * 3, (1.0,) * 3, resize=256)
    samples = load_samples("demo", (3, 224, 224), preprocess)
    assert 40 <= len(samples) <= 80
    assert len(set(samples.names)) == len(samples)
    spec = importlib.util.find_spec("skimage")
    astronaut = np.asarray(Image.open(Path(spec.origin).parent / "data" / "astronaut.png"))
    crop = astronaut[:224, 112 : 112 + 224].transpose(2, 0, 1) / 255
    x = samples.batch([samples.names.index("astronaut[0,112]")])[0]
    np.testing.assert_allclose(x, crop, atol=1e-7)
    assert samples.take(6, 0).fingerprint() == load_samples("demo", (3, 224, 224)).take(6, 0).fingerprint()


def test_demo_without_scikit_image(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'lipscope\[demo\]'"):
        load_samples("demo", (3, 224, 224))
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("lipscope.data.demo._photograph_folder", lambda: tmp_path / "data")
    with pytest.raises(DataError, match=r"lacks the photograph astronaut\.png"):
        load_samples("demo", (3, 224, 224))
