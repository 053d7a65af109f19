"""Sources at data-set scale: tables, callables, reading ahead, selections, fingerprints, other processes."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lipscope.data import ImagePreprocessing, Samples, load_samples
from lipscope.data import images as images_module
from lipscope.errors import DataError

UNIT = ImagePreprocessing((8, 8), (0.0,) * 3, (1.0,) * 3)
ROWS = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)


def photo(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def everything(samples: Samples) -> torch.Tensor:
    return samples.batch(range(len(samples)))


def folder_of(place: Path, seeds) -> Path:
    place.mkdir(parents=True)
    for i, seed in enumerate(seeds):
        photo(seed).save(place / f"{i}.png")
    return place


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lipscope")]


# --- callables ------------------------------------------------------------------------------------

SOURCE = """
import torch
from torch.utils.data import Dataset, DataLoader, TensorDataset

rows = torch.arange(12.0).reshape(6, 2)
number = 3

def tensor(): return rows
def array(): return rows.numpy()
def items(): return [(row, 0) for row in rows]
def generator():
    buffer = torch.empty(2)
    for row in rows:
        buffer.copy_(row)
        yield buffer, 0
def loader(): return DataLoader(TensorDataset(rows, rows), 4)
def path(): return "rows.npy"
class Map(Dataset):
    def __len__(self): return 6
    def __getitem__(self, i): return rows[i]
class Duck:
    def __len__(self): return 6
    def __getitem__(self, i): return rows[i]
class Inner:
    static = staticmethod(tensor)

def raises(): raise ValueError("no disk\\nno luck")
def quits(): raise SystemExit("stop here")
def needs(path): return rows
def nothing(): return None
def table(): return {"x": rows}
def broken():
    yield rows[0]
    raise OSError(5, "disk on fire")
def text(): return ["a"]
def empty(): return iter(())
def ragged(): return iter([torch.zeros(2), torch.zeros(3)])
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "user_data.py").write_text(SOURCE)
    np.save(tmp_path / "rows.npy", np.arange(12.0, dtype=np.float32).reshape(6, 2))
    yield tmp_path
    sys.modules.pop("user_data", None)


GOOD = ["tensor", "array", "items", "generator", "loader", "path", "Map", "Duck", "Inner.static", "rows"]


@pytest.mark.parametrize("attribute", GOOD)
@pytest.mark.parametrize("place", ["user_data", "user_data.py"])
def test_a_named_callable_gives_the_data(project, place, attribute):
    samples = load_samples(f"{place}:{attribute}", (2,))
    assert torch.equal(everything(samples), torch.arange(12.0).reshape(6, 2))
    assert samples.name == ("rows.npy" if attribute == "path" else f"{place}:{attribute}")
    assert samples.names[5] == f"{samples.name}[5]"


@pytest.mark.parametrize(
    "make", [lambda: ROWS, lambda: list(ROWS), lambda: load_samples(ROWS), lambda: iter(ROWS)]
)
def test_a_callable_of_the_api(make):
    np.testing.assert_array_equal(everything(load_samples(make, (2, 3))), ROWS)


def test_a_file_in_the_way_of_a_callable_is_taken_as_file(project):
    folder_of(project / "user_data:tensor", [1, 2])
    assert load_samples("user_data:tensor", (3, 8, 8)).names == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("user_data.py:raises", r"^user_data\.py:raises raised ValueError: no disk; it is called without"),
        ("user_data:quits", "^user_data:quits raised SystemExit: stop here"),
        ("user_data:needs", "^user_data:needs raised TypeError: .*'path'; it is called without arguments"),
        ("user_data:nothing", r"cannot read data from a NoneType \(what user_data:nothing gave\)"),
        ("user_data:number", r"cannot read data from a int \(what user_data:number gave\)"),
        ("user_data:table", r"cannot read data from a dict \(what user_data:table gave\)"),
        ("user_data:broken", "^user_data:broken raised OSError: disk on fire"),
        ("user_data:text", r"^user_data:text\[0\] is a str, not a tensor"),
        ("user_data:empty", "^user_data:empty holds no samples"),
        ("user_data:ragged", r"^user_data:ragged: the samples differ in shape \(\(2,\), \(3,\)\)"),
        ("user_data:tenso", "user_data has no attribute tenso; did you mean tensor"),
        ("user_data:", "names no data; give module:callable or file.py:callable"),
        ("missing.py:f", r"there is no file missing\.py; check the path of the data"),
        ("no_such_module:f", "there is no module no_such_module in the current directory or installed"),
        ("no:such/folder", "no:such/folder is neither a file nor a folder"),
    ],
)
def test_callables_that_give_no_data(project, spec, message):
    with pytest.raises(DataError, match=message) as caught:
        load_samples(spec)
    assert "\n" not in str(caught.value)


def test_more_samples_than_one_stack_from_a_generator():
    count = 1000
    samples = load_samples(torch.full((2,), float(i)) for i in range(count))
    np.testing.assert_array_equal(everything(samples)[:, 0], range(count))


# --- reading ahead --------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=8),
    st.integers(0, 4),
)
def test_batches_are_those_of_batch_in_order(index_batches, ahead):
    samples = load_samples(ROWS)
    read = list(samples.batches(iter(index_batches), ahead))
    assert len(read) == len(index_batches)
    for x, indices in zip(read, index_batches, strict=True):
        np.testing.assert_array_equal(x, ROWS[indices])
    assert own_threads() == []


class Watched:
    """A reader that counts its calls, and can be held."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = [], fail_at
        self.reached = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        self.threads = set()

    def __call__(self, indices):
        self.calls.append(list(indices))
        self.threads.add(threading.get_ident())
        self.reached.release()
        assert self.go_on.wait(30)
        if indices[0] == self.fail_at:
            raise DataError("this one")
        return torch.full((len(indices), 1), float(indices[0]))

    def samples(self, count=100):
        return Samples([str(i) for i in range(count)], (1,), "", "watched", self)


def test_the_next_batches_are_read_while_the_caller_computes():
    reader = Watched()
    batches = reader.samples().batches(([i] for i in range(10)), ahead=3)
    assert reader.calls == []
    assert next(batches).item() == 0
    for _ in range(4):  # the first and three ahead, though only one was asked for
        assert reader.reached.acquire(timeout=30)
    assert reader.calls == [[0], [1], [2], [3]]
    assert [x.item() for x in batches] == list(range(1, 10))
    assert len(reader.threads) == 1
    assert threading.get_ident() not in reader.threads


def test_an_error_comes_in_the_place_of_its_batch_and_ends_the_reading():
    reader = Watched(fail_at=4)
    batches = reader.samples().batches([[i] for i in range(100)], ahead=2)
    assert [next(batches).item() for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match="this one"):
        next(batches)
    assert len(reader.calls) <= 7
    assert own_threads() == []


@pytest.mark.parametrize("stop", ["close", "drop", "break"])
def test_no_thread_is_left_when_the_caller_stops_early(stop):
    reader = Watched()
    batches = reader.samples().batches(([i] for i in range(100)), ahead=2)
    next(batches)
    assert own_threads() != []
    if stop == "close":
        batches.close()
    elif stop == "break":
        for _ in batches:
            break
    del batches
    gc.collect()
    assert own_threads() == []
    assert len(reader.calls) <= 5


def test_index_batches_that_raise_leave_no_thread():
    def broken():
        yield [0]
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        list(load_samples(ROWS).batches(broken()))
    assert own_threads() == []


def test_images_are_decoded_on_the_workers_asked_for(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "photos", range(6))
    used, together = set(), threading.Barrier(3, timeout=30)
    decoded = images_module.EncodedImage.decoded

    def watched(image, preprocess):
        used.add(threading.get_ident())
        together.wait()  # passes only if three are decoded at once
        return decoded(image, preprocess)

    expected = everything(load_samples(folder, preprocess=UNIT, workers=1))
    monkeypatch.setattr(images_module.EncodedImage, "decoded", watched)
    assert torch.equal(everything(load_samples(folder, preprocess=UNIT, workers=3)), expected)
    assert len(used) == 3
    with pytest.raises(DataError, match="cannot be decoded by 0 workers"):
        load_samples(folder, preprocess=UNIT, workers=0)


# --- scale ----------------------------------------------------------------------------------------


def write_million(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"million.{kind}"
    if kind == "npy":
        rows = np.lib.format.open_memmap(path, "w+", np.float32, (1_000_000, 4))
        rows[:, 0] = np.arange(1_000_000)
        rows.flush()
    else:
        rows = torch.zeros(1_000_000, 4)
        rows[:, 0] = torch.arange(1_000_000)
        safetensors.torch.save_file({"x": rows, "y": torch.zeros(3)}, path)
    return path


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_million_rows_are_opened_and_drawn_from_in_little_memory(tmp_path, kind):
    path = write_million(tmp_path, kind)
    load_samples(ROWS).take(2, 0)  # imports done
    tracemalloc.start()
    samples = load_samples(path, (4,))
    first = samples.take(900_000)
    x = first.batch([899_999, 5, 6])
    name = first.names[-1]
    opened = tracemalloc.get_traced_memory()[1]
    drawn = samples.take(20_000, seed=1)
    held = tracemalloc.get_traced_memory()[0]
    values = drawn.batch(range(0, 20_000, 2_000))[:, 0]
    tracemalloc.stop()
    assert x[:, 0].tolist() == [899_999, 5, 6]
    assert name == f"million.{kind}[899999]"
    assert opened < 2**19  # 16 MB are stored; a million names alone would take 80
    assert held < 2**20  # 160 kB of indices drawn
    assert [drawn.names[i] for i in range(0, 20_000, 2_000)] == [f"million.{kind}[{int(v)}]" for v in values]
    assert len(pickle.dumps(samples)) < 1000


def test_a_fingerprint_reads_a_large_file_in_little_memory(tmp_path):
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (2**16, 1024)).flush()  # 256 MB, of zeros
    tracemalloc.start()
    load_samples(path).fingerprint()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27  # some batches of 16 MB, each copied once or twice


@given(st.lists(st.integers(0, 6), max_size=12))
def test_rows_of_safetensors_are_those_asked_for(indices):
    samples = load_samples(SAFETENSORS)
    np.testing.assert_array_equal(samples.batch(indices), ROWS[indices])


@pytest.fixture(scope="module", autouse=True)
def safetensors_file(tmp_path_factory):
    global SAFETENSORS
    SAFETENSORS = tmp_path_factory.mktemp("safetensors") / "rows.safetensors"
    safetensors.torch.save_file({"images": torch.tensor(ROWS), "y": torch.zeros(3)}, SAFETENSORS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool])
def test_number_types_of_safetensors(tmp_path, dtype):
    x = torch.tensor(ROWS).abs().mul(10).to(dtype)
    safetensors.torch.save_file({"x": x}, tmp_path / "a.safetensors")
    read = everything(load_samples(tmp_path / "a.safetensors"))
    assert read.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(read, x.to(read.dtype))


# --- names and selections -------------------------------------------------------------------------


@given(st.integers(1, 7), st.none() | st.integers(0, 99), st.integers(1, 7), st.none() | st.integers(0, 99))
def test_a_selection_of_a_selection(count, seed, again, seed_again):
    whole = load_samples(ROWS)
    once = whole.take(count, seed)
    twice = once.take(again, seed_again)
    assert len(twice) == len(twice.names) == min(count, again)
    rows = [whole.names.index(name) for name in twice.names]
    assert rows == sorted(set(rows))
    assert set(twice.names) <= set(once.names)
    np.testing.assert_array_equal(everything(twice), ROWS[rows])


def test_names_are_like_a_list():
    names = load_samples(ROWS).names
    listed = [f"array[{i}]" for i in range(7)]
    assert names == listed
    assert list(names) == listed
    assert names[-1] == "array[6]"
    assert names[1:5:2] == listed[1:5:2]
    assert names != listed[:-1]
    assert names != [*listed[:-1], "other"]
    assert names != "array"
    for outside in (7, -8):
        with pytest.raises(IndexError):
            names[outside]


# --- fingerprints ---------------------------------------------------------------------------------


def test_a_fingerprint_of_images_decodes_none(tmp_path, monkeypatch):
    samples = load_samples(folder_of(tmp_path / "photos", range(3)), preprocess=UNIT)
    monkeypatch.setattr(Image, "open", None)
    assert len(samples.fingerprint()) == 64


def test_a_fingerprint_of_images_is_of_bytes_order_and_preprocessing(tmp_path):
    def printed(place, seeds, preprocess=UNIT):
        return load_samples(folder_of(tmp_path / place, seeds), preprocess=preprocess).fingerprint()

    first = printed("a", [1, 2, 3])
    copy = folder_of(tmp_path / "elsewhere" / "b", [1, 2, 3])
    for path in list(copy.iterdir()):
        os.utime(path, (1, 1))
        path.rename(path.with_name("renamed-" + path.name))
    assert load_samples(copy, preprocess=UNIT).fingerprint() == first
    half, close = (ImagePreprocessing((8, 8), (0.5,) * 3, (0.5, 0.5, s)) for s in (0.5, 0.5000001))
    assert close.describe() == half.describe()
    others = [
        printed("order", [1, 3, 2]),
        printed("other", [1, 2, 4]),
        printed("fewer", [1, 2]),
        printed("more", [1, 2, 3, 3]),
        printed("half", [1, 2, 3], half),
        printed("close", [1, 2, 3], close),
        printed("resized", [1, 2, 3], ImagePreprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, resize=8)),
        printed("crop", [1, 2, 3], ImagePreprocessing((8, 7), (0.0,) * 3, (1.0,) * 3)),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_a_fingerprint_names_the_file_it_cannot_read(tmp_path):
    folder = folder_of(tmp_path / "photos", range(3))
    (folder / "1.png").write_bytes(b"")
    samples = load_samples(folder, preprocess=UNIT)
    with pytest.raises(DataError, match=r"cannot read the image .*1\.png: it is empty"):
        samples.fingerprint()
    (folder / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: No such file"):
        samples.fingerprint()


@pytest.mark.parametrize("kind", ["photos", "array"])
def test_selections_have_fingerprints_of_their_own(tmp_path, kind):
    source = folder_of(tmp_path / "photos", range(7)) if kind == "photos" else np.random.rand(7, 3, 8, 8)
    samples = load_samples(source, preprocess=UNIT)
    selections = [samples, *(samples.take(n) for n in range(1, 7))]
    selections += [samples.take(3, seed) for seed in range(9)]
    distinct = {tuple(s.names) for s in selections}
    by_print = {s.fingerprint(): tuple(s.names) for s in selections}
    assert len(by_print) == len(distinct)
    assert all(by_print[s.fingerprint()] == tuple(s.names) for s in selections)
    chosen = samples.take(3, 1)
    if kind == "photos":
        seeds = [int(Path(name).stem) for name in chosen.names]
        direct = load_samples(folder_of(tmp_path / "direct", seeds), preprocess=UNIT)
        assert direct.fingerprint() == chosen.fingerprint()


# --- other processes ------------------------------------------------------------------------------

READ_THERE = """
import pickle, sys
samples = pickle.load(sys.stdin.buffer)
x = samples.batch(range(len(samples)))
pickle.dump((x.numpy(), samples.fingerprint(), list(samples.names)), sys.stdout.buffer)
"""


def read_elsewhere(samples: Samples, place: Path):
    done = subprocess.run(
        [sys.executable, "-c", READ_THERE],
        input=pickle.dumps(samples), capture_output=True, cwd=place, check=True,
        env={"PYTHONPATH": str(Path(images_module.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return pickle.loads(done.stdout)


SOURCES = {
    "tensor": lambda: torch.tensor(ROWS),
    "array": lambda: ROWS,
    "list": lambda: list(torch.tensor(ROWS)),
    "dataset": lambda: TensorDataset(torch.tensor(ROWS)),
    "loader": lambda: DataLoader(torch.tensor(ROWS), 3),
    "pictures": lambda: np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8),
    "npy": lambda: "a.npy",
    "npz": lambda: "a.npz",
    "pt": lambda: "a.pt",
    "safetensors": lambda: "a.safetensors",
    "folder": lambda: "photos",
    "image": lambda: "photos/0.png",
    "demo": lambda: "demo",
}


@pytest.mark.parametrize("selected", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
def test_samples_are_read_from_a_pickle(tmp_path, monkeypatch, kind, selected):
    if kind == "demo":
        pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", ROWS)
    np.savez("a.npz", ROWS)
    torch.save(torch.tensor(ROWS), "a.pt")
    safetensors.torch.save_file({"x": torch.tensor(ROWS)}, "a.safetensors")
    folder_of(Path("photos"), range(3))
    (tmp_path / "elsewhere").mkdir()
    samples = load_samples(SOURCES[kind](), preprocess=UNIT)
    if selected:
        samples = samples.take(3, seed=1)
    monkeypatch.chdir("elsewhere")  # paths were relative
    copy = pickle.loads(pickle.dumps(samples))
    assert torch.equal(everything(copy), everything(samples))
    assert copy.fingerprint() == samples.fingerprint()
    assert copy.names == samples.names
    if kind in ("npy", "safetensors", "folder", "list", "dataset"):
        x, printed, names = read_elsewhere(samples, tmp_path / "elsewhere")
        np.testing.assert_array_equal(x, everything(samples))
        assert printed == samples.fingerprint()
        assert names == samples.names


def test_files_travel_as_paths_not_as_content(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((1000, 100)))
    torch.save(torch.zeros(1000, 100), tmp_path / "a.pt")
    for name in ("a.npz", "a.pt"):
        assert len(pickle.dumps(load_samples(tmp_path / name))) < 1000


class Held(Dataset):
    """Picklable, of the user."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def test_a_data_set_of_the_user_is_pickled_with_the_samples():
    copy = pickle.loads(pickle.dumps(load_samples(Held(torch.tensor(ROWS)))))
    np.testing.assert_array_equal(everything(copy), ROWS)


# --- Hugging Face ---------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """The datasets library, with the network cut off."""
    datasets = pytest.importorskip("datasets", reason="the extra lipscope[datasets] is not installed")
    datasets.disable_progress_bars()
    monkeypatch.setattr("socket.socket.connect", None)
    return datasets


def saved(hub, place: Path, columns, features=None) -> Path:
    hub.Dataset.from_dict(columns, features=hub.Features(features) if features else None).save_to_disk(
        str(place)
    )
    return place


def with_images(hub, place: Path, count=5, column="picture") -> Path:
    columns = {column: [photo(i) for i in range(count)], "label": list(range(count))}
    return saved(hub, place, columns, {column: hub.Image(), "label": hub.Value("int64")})


def test_hub_images_are_decoded_and_preprocessed(hub, tmp_path):
    folder = with_images(hub, tmp_path / "hub")
    plain = load_samples(folder_of(tmp_path / "plain", range(5)), preprocess=UNIT)
    samples = load_samples(folder, (3, 8, 8))
    assert samples.name == "hub"
    assert samples.names == [f"hub[{i}]" for i in range(5)]
    assert samples.preprocessing == f"column picture, {UNIT.describe()}"
    assert torch.equal(samples.batch([4, 0, 2, 2]), plain.batch([4, 0, 2, 2]))
    assert samples.fingerprint() == plain.fingerprint()  # the same files
    with pytest.raises(DataError, match="images need the model's input shape"):
        load_samples(folder)


def test_a_hub_fingerprint_decodes_nothing_and_knows_no_place(hub, tmp_path, monkeypatch):
    import shutil

    folder = with_images(hub, tmp_path / "hub")
    samples = load_samples(folder, (3, 8, 8))
    shutil.copytree(folder, tmp_path / "else" / "where")
    monkeypatch.setattr(Image, "open", None)
    printed = samples.fingerprint()
    assert load_samples(tmp_path / "else" / "where", (3, 8, 8)).fingerprint() == printed
    assert samples.take(4).fingerprint() != printed


@pytest.mark.parametrize("kind", ["lists", "nested", "array2d", "fixed", "float16", "uint8", "bool"])
def test_hub_arrays_are_taken_as_stored(hub, tmp_path, kind):
    rows = np.random.default_rng(0).standard_normal((5, 2, 3)) * 3
    feature, expected = {
        "lists": (hub.Sequence(hub.Value("float64")), rows[:, 0]),
        "nested": (hub.Sequence(hub.Sequence(hub.Value("float32"))), rows.astype(np.float32)),
        "array2d": (hub.Array2D((2, 3), "float64"), rows),
        "fixed": (hub.Sequence(hub.Value("float32"), length=3), rows[:, 1].astype(np.float32)),
        "float16": (hub.Sequence(hub.Value("float16")), rows[:, 0].astype(np.float16)),
        "uint8": (hub.Sequence(hub.Value("uint8")), rows[:, 0].astype(np.int8).view(np.uint8)),
        "bool": (hub.Sequence(hub.Value("bool")), rows[:, 0] > 0),
    }[kind]
    folder = saved(hub, tmp_path / "hub", {"v": list(expected)}, {"v": feature})
    samples = load_samples(folder, expected.shape[1:])
    dtype = np.float64 if expected.dtype == np.float64 else np.float32
    x = samples.batch([3, 1, 1])
    assert x.numpy().dtype == dtype
    np.testing.assert_array_equal(x, expected[[3, 1, 1]].astype(dtype))
    assert samples.preprocessing.startswith("column v, ")
    assert samples.fingerprint() == load_samples(expected).fingerprint()
    drawn = samples.take(3, 1)
    rows_drawn = [samples.names.index(name) for name in drawn.names]
    assert drawn.fingerprint() == load_samples(expected[rows_drawn]).fingerprint()


def test_hub_8_bit_arrays_are_images_when_preprocessing_is_known(hub, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    folder = saved(hub, tmp_path / "hub", {"v": list(pixels)}, {"v": hub.Array3D((9, 9, 3), "uint8")})
    assert torch.equal(
        everything(load_samples(folder, preprocess=UNIT)), everything(load_samples(pixels, preprocess=UNIT))
    )


def test_the_column_is_chosen_by_name_then_by_kind(hub, tmp_path):
    vectors = hub.Sequence(hub.Value("float32"))
    one, two = [[1.0, 2.0]] * 2, [[3.0, 4.0]] * 2

    def column(place, columns, features):
        return load_samples(saved(hub, tmp_path / place, columns, features), preprocess=UNIT).preprocessing

    assert "column x," in column(
        "x", {"a": one, "image": one, "x": two}, dict.fromkeys(["a", "image", "x"], vectors)
    )
    assert "column pixel_values," in column(
        "p", {"a": one, "pixel_values": two}, dict.fromkeys(["a", "pixel_values"], vectors)
    )
    pictures = {"img": [photo(1), photo(2)], "box": one}
    assert "column img," in column("i", pictures, {"img": hub.Image(), "box": vectors})
    with pytest.raises(DataError, match=r"samples in several columns \(a, b\); rename the one to take to x"):
        column("ab", {"a": one, "b": two}, {"a": vectors, "b": vectors})
    with pytest.raises(
        DataError, match=r"no column of images or arrays of numbers \(its columns: text, label\)"
    ):
        column("none", {"text": ["a", "b"], "label": [0, 1]}, None)


def test_hub_splits_are_named_by_their_folders(hub, tmp_path):
    part = hub.Dataset.from_dict({"x": ROWS.reshape(7, 6).tolist()})
    hub.DatasetDict({"train": part, "test": part.select([2, 1])}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(
        DataError, match=r"both holds the splits train, test; name one as a folder, such as .*both/train"
    ):
        load_samples(tmp_path / "both")
    np.testing.assert_array_equal(
        everything(load_samples(tmp_path / "both" / "test")), ROWS.reshape(7, 6)[[2, 1]].astype(np.float64)
    )
    hub.DatasetDict({"only": part}).save_to_disk(str(tmp_path / "one"))
    assert len(load_samples(tmp_path / "one")) == 7


def test_hub_objects_and_their_selections(hub, tmp_path):
    held = hub.Dataset.from_dict({"x": ROWS.reshape(7, 6).tolist()})
    held = held.select([5, 3]).with_format("torch")
    np.testing.assert_array_equal(
        everything(load_samples(held)), ROWS.reshape(7, 6)[[5, 3]].astype(np.float64)
    )
    name = load_samples(lambda: held).name
    assert name.endswith("<lambda>")
    assert load_samples(lambda: held).names == [f"{name}[0]", f"{name}[1]"]
    held.set_transform(lambda rows: 1 / 0)
    assert len(everything(load_samples(held))) == 2


def test_damaged_hub_data(hub, tmp_path):
    folder = with_images(hub, tmp_path / "cut")
    arrow = next(folder.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:50])
    with pytest.raises(DataError, match=r"the data set .*cut cannot be read: .*; save it again"):
        load_samples(folder, (3, 8, 8))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_dict\.json cannot be read"):
        load_samples(tmp_path / "bad", (3, 8, 8))
    vectors = {"v": hub.Sequence(hub.Value("float32"))}
    ragged = saved(hub, tmp_path / "ragged", {"v": [[1.0], [1.0, 2.0]]}, vectors)
    with pytest.raises(DataError, match=r"ragged\[0\]\.v and the rows read with it differ in shape"):
        everything(load_samples(ragged))
    for place, second in (("null", None), ("hole", [None])):
        holed = saved(hub, tmp_path / place, {"v": [[1.0], second]}, vectors)
        with pytest.raises(DataError, match=r"hold nothing|lacks numbers"):
            everything(load_samples(holed))
    with pytest.raises(DataError, match="Dataset holds no samples"):
        load_samples(hub.Dataset.from_dict({"v": []}, features=hub.Features(vectors)))


def test_hub_images_that_are_missing_broken_or_elsewhere(hub, tmp_path):
    cells = [{"bytes": b"no image", "path": None}, None, {"bytes": None, "path": "https://example.org/a.png"}]
    held = hub.Dataset.from_dict({"image": cells}, features=hub.Features({"image": hub.Image()}))
    samples = load_samples(held, (3, 8, 8))
    for index, message in enumerate(["no known image format", "holds no image", "only a reference to https"]):
        with pytest.raises(DataError, match=rf"Dataset\[{index}\]\.image.*{message}"):
            samples.batch([index])


@pytest.mark.parametrize("kind", ["images", "arrays"])
def test_hub_samples_are_read_from_a_pickle(hub, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "images":
        with_images(hub, Path("hub"))
    else:
        saved(hub, Path("hub"), {"x": ROWS.reshape(7, 6).tolist()})
    samples = load_samples("hub", preprocess=UNIT).take(4, 1)
    (tmp_path / "elsewhere").mkdir()
    x, printed, names = read_elsewhere(samples, tmp_path / "elsewhere")
    np.testing.assert_array_equal(x, everything(samples))
    assert printed == samples.fingerprint()
    assert names == samples.names


def test_without_the_library_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        DataError, match=r"takes the datasets library; run: pip install 'lipscope\[datasets\]'"
    ):
        load_samples(tmp_path, (3, 8, 8))
