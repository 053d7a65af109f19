"""ONNX files: every operator against ONNX Runtime, whole networks, and files that are refused."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lipscope
from helpers import lipscope_command
from lipscope.errors import ModelError
from lipscope.graph import Graph
from lipscope.jobs.brackets import bracket
from lipscope.layers.base import TORCH_RULES
from lipscope.models import load_model
from lipscope.models.onnx_file import read_onnx
from lipscope.models.onnx_operators import OPERATORS

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def real(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype="i8")


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype="f4")


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype="f4")


def save(
    path: Path,
    nodes: list[Any],
    constants: dict[str, np.ndarray],
    sizes: list[Any],
    opset: int = 13,
    *,
    kind: int = 1,
    listed: bool = False,
    outputs: tuple[str, ...] = ("y",),
    others: list[Any] | None = None,
) -> Path:
    """Write a model of one input "x" of these sizes; `listed` lists weights among the inputs, as old files do."""
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", kind, sizes), *(others or [])]
    if listed:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in held]
    results = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(nodes, "network", inputs, results, held)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 8
    )
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for result in model.graph.output:
        if not result.type.tensor_type.HasField("shape"):  # which a file must state
            result.CopyFrom(helper.make_tensor_value_info(result.name, kind, [None] * len(sizes)))
    onnx.save(model, str(path))
    return path


def run_file(path: Path, x: np.ndarray) -> np.ndarray:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return y


def imported(path: Path, shape: tuple[int, ...] | None = None) -> Graph:
    program = load_model(str(path)).module
    return lipscope.from_torch(program, program.input_shape if shape is None else shape)


def assert_same(graph: Graph, x: np.ndarray, y: np.ndarray, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        values = graph.evaluate(torch.from_numpy(x).double()).numpy()
    assert values.shape == y.shape
    np.testing.assert_allclose(values, y, rtol=tolerance, atol=tolerance * np.abs(y).max())


# ---- operators ------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One operator on an input (N, *shape); `inputs` are its other inputs, None one left out."""

    operator: str
    shape: tuple[int, ...]
    inputs: list[np.ndarray | None] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 13
    note: str = ""
    results: int = 1
    at: int = 0  # where x stands among the inputs

    @property
    def id(self) -> str:
        return f"{self.operator}-{self.opset}{'-' if self.note else ''}{self.note}"

    def save(self, path: Path) -> Path:
        names = ["" if given is None else f"c{number}" for number, given in enumerate(self.inputs)]
        names.insert(self.at, "x")
        constants = {f"c{n}": given for n, given in enumerate(self.inputs) if given is not None}
        if self.results == 1:
            nodes = [helper.make_node(self.operator, names, ["y"], name="op", **self.attributes)]
        else:
            parts = [f"part{n}" for n in range(self.results)]
            nodes = [
                helper.make_node(self.operator, names, parts, name="op", **self.attributes),
                helper.make_node("Concat", parts[::-1], ["y"], axis=1),
            ]
        return save(path, nodes, constants, ["N", *self.shape], self.opset)


W, W1 = real(4, 2, 3, 3, seed=1), real(4, 2, 3, seed=2)
IMAGE, SIGNAL = (2, 6, 7), (2, 8)


def conv(note: str, weight: np.ndarray = W, shape: tuple[int, ...] = IMAGE, **attributes: Any) -> Case:
    return Case("Conv", shape, [weight, real(4)], attributes, note=note)


def pool(
    operator: str, note: str, shape: tuple[int, ...] = IMAGE, opset: int = 13, **attributes: Any
) -> Case:
    return Case(operator, shape, [], attributes, opset, note)


UPSAMPLING = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}

CASES = [
    Case("Gemm", (5,), [real(5, 3), real(3)]),
    Case("Gemm", (5,), [real(3, 5), real(1, 3)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, note="transB"),
    Case("MatMul", (5,), [real(5, 3)]),
    Case("MatMul", (2, 4), [real(3, 2)], note="from the left", at=1),
    conv("plain"),
    conv("groups", real(4, 1, 3, 3), group=2),
    conv("same upper", auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("same lower", auto_pad="SAME_LOWER", strides=[2, 1]),
    conv("valid", auto_pad="VALID"),
    conv("asymmetric", pads=[0, 1, 2, 1]),
    conv("dilated", dilations=[2, 1], pads=[1, 1, 1, 1]),
    conv("1-D", W1, SIGNAL, pads=[2, 0], strides=[2]),
    Case("ConvTranspose", IMAGE, [real(2, 3, 3, 3), real(3)], UPSAMPLING),
    Case("ConvTranspose", IMAGE, [real(2, 3, 3, 3)], {"strides": [2, 2], "pads": [1, 1, 0, 0]}, note="asymmetric"),
    Case("BatchNormalization", IMAGE, [real(2), real(2), real(2), np.abs(real(2)) + 0.1], {"epsilon": 1e-3}),
    pool("MaxPool", "padded", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("MaxPool", "ceil", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    pool("MaxPool", "1-D", SIGNAL, kernel_shape=[2], strides=[2]),
    pool("AveragePool", "counted", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
    pool("AveragePool", "not counted", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("AveragePool", "asymmetric", kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1),
    pool("GlobalAveragePool", ""),
    pool("GlobalMaxPool", ""),
    Case("Clip", (5,), [scalar(-0.5), scalar(0.7)]),
    Case("Clip", (5,), [None, scalar(0.7)], note="above"),
    Case("Clip", (5,), [], {"min": -0.5, "max": 0.5}, 7),
    Case("LeakyRelu", (5,), [], {"alpha": 0.3}),
    Case("PRelu", IMAGE, [real(2, 1, 1)]),
    Case("PRelu", (5,), [floats(0.3)], note="shared"),
    Case("Elu", (5,), [], {"alpha": 1.5}),
    Case("Selu", (5,)),
    Case("Celu", (5,), [], {"alpha": 0.7}),
    Case("HardSigmoid", (5,), [], {"alpha": 0.25}),
    Case("HardSwish", (5,), [], {}, 14),
    *(Case(name, (5,)) for name in ("Abs", "Tanh", "Sigmoid", "Softplus", "Softsign", "Neg", "Erf", "Identity")),
    *(Case(name, (5,)) for name in ("Sin", "Cos", "Atan", "Exp")),
    Case("Softmax", (3, 4), [], {}, 11),
    Case("Softmax", (3, 4), [], {"axis": 1}, 13),
    Case("LogSoftmax", (3, 4), [], {"axis": 2}, 11),
    Case("LogSoftmax", (3, 4), [], {}, 13),
    Case("LayerNormalization", (3, 4), [real(4), real(4)], {}, 17),
    Case("LayerNormalization", (3, 4), [real(3, 4), real(3, 4)], {"axis": 1, "epsilon": 0.1}, 17, "two axes"),
    Case("InstanceNormalization", IMAGE, [real(2), real(2)]),
    Case("GroupNormalization", (4, 3, 3), [real(4), real(4)], {"num_groups": 2}, 21),
    Case("LRN", (5, 3, 3), [], {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.5}),
    Case("Pad", IMAGE, [ints(0, 0, 1, 0, 0, 0, 2, 1), scalar(0.5)]),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}, note="reflect"),
    Case("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "edge"}, note="edge"),
    Case("Pad", IMAGE, [], {"pads": [0, 0, 1, 0, 0, 0, 2, 1], "value": 0.5}, 7),
    Case("Slice", IMAGE, [ints(1, -1), ints(6, -100), ints(2, 3), ints(2, -2)], note="negative step"),
    Case("Slice", IMAGE, [], {"starts": [1], "ends": [-1], "axes": [3]}, 9),
    Case("Split", (6,), [ints(1, 3, 2)], {"axis": 1}, results=3),
    Case("Split", (6,), [], {"axis": 1, "split": [2, 4]}, 11, results=2),
    Case("Split", (6,), [], {"axis": 1}, 13, "equal", results=2),
    Case("Split", (5,), [], {"axis": 1, "num_outputs": 2}, 18, "unequal", results=2),
    Case("Gather", (5,), [ints(3, -1, 0)], {"axis": 1}),
    Case("Gather", (5, 2), [np.array(2)], {"axis": 1}, note="one index"),
    Case("Gather", (5, 2), [np.array([[0, 1], [4, -2]])], {"axis": 1}, note="table"),
    Case("Squeeze", (1, 5), [ints(1)]),
    Case("Squeeze", (1, 5), [], {"axes": [1]}, 11),
    Case("Unsqueeze", (5,), [ints(1, -1)]),
    Case("Unsqueeze", (5,), [], {"axes": [2]}, 11),
    Case("Reshape", (4, 3), [ints(0, 2, -1)]),
    Case("Flatten", (4, 3)),
    Case("Transpose", (4, 3), [], {"perm": [0, 2, 1]}),
    Case("Expand", (1, 3), [ints(1, 4, 3)]),
    Case("Tile", (2, 3), [ints(1, 2, 1)]),
    Case("DepthToSpace", (8, 2, 3), [], {"blocksize": 2}, note="DCR"),
    Case("DepthToSpace", (8, 2, 3), [], {"blocksize": 2, "mode": "CRD"}, note="CRD"),
    Case("SpaceToDepth", (2, 4, 6), [], {"blocksize": 2}),
    Case("Resize", IMAGE, [None, floats(1, 1, 2, 2)], {"mode": "nearest"}),
    Case("Resize", IMAGE, [floats(1, 1, 2, 2)], {"mode": "nearest"}, 10),
    Case("Upsample", IMAGE, [floats(1, 1, 2, 3)], {"mode": "nearest"}, 9),
    Case("ReduceMean", IMAGE, [], {"axes": [2, -1], "keepdims": 0}),
    Case("ReduceMean", IMAGE, [ints(2, 3)], {}, 18),
    Case("ReduceMax", IMAGE, [], {"axes": [1]}),
    Case("ReduceSum", IMAGE, [ints(1)], {"keepdims": 0}),
    Case("ReduceL2", IMAGE, [], {"axes": [1], "keepdims": 0}),
    Case("Add", (5,), [real(5)]),
    Case("Sub", (5,), [real(5)], at=1),
    Case("Mul", (5,), [real(5)]),
    Case("Div", (5,), [np.abs(real(5)) + 0.5]),
    Case("Sum", (5,), [real(5), real(1)]),
    Case("Mean", (5,), [real(5)]),
    Case("Max", (5,), [floats(0.2)]),
    Case("Min", (5, 1), [real(1, 3) * 0]),
    Case("Where", (5,), [np.array([True, False, True, True, False]), real(5)], at=1),
    Case("Pow", (5,), [scalar(2.0)]),
    Case("Pow", (5,), [floats(3.0)], note="cube"),
    Case("Gelu", (5,), [], {}, 20),
    Case("Gelu", (5,), [], {"approximate": "tanh"}, 20, "tanh"),
    *([Case("Mish", (5,), [], {}, 18)] if "aten.mish.default" in TORCH_RULES else []),
    Case("Einsum", (3, 4), [real(4, 2)], {"equation": "bij,jk->bki"}),
    Case("Cast", (5,), [], {"to": 1}),
    Case("Dropout", (5,), [], {}, 12),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_operator_is_what_onnx_runtime_computes(case: Case, tmp_path: Path) -> None:
    path = case.save(tmp_path / "op.onnx")
    x = 1.5 * real(3, *case.shape, seed=7)
    assert_same(imported(path), x, run_file(path, x))


# ---- whole networks -------------------------------------------------------------------------------------


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], name=f"/{output}/{operator}", **attributes)


def dense(
    path: Path, sizes: list[Any], start: list[Any], opset: int = 13, kind: int = 1, listed: bool = False
) -> Path:
    """5 → 8 → 3 behind the nodes that lead from "x" to "flat"."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = {"W1": real(5, 8, seed=1), "b1": real(8), "W2": real(8, 3, seed=2), "b2": real(3)}
    constants = {name: value.astype(dtype) for name, value in constants.items()}
    constants |= {"mean": real(5).astype(dtype), "range": np.array(2.0, dtype), "row": ints(1, -1)}
    nodes = [
        *start,
        node("MatMul", "flat W1", "m1"), node("Add", "m1 b1", "a1"), node("Relu", "a1", "r1"),
        node("MatMul", "r1 W2", "m2"), node("Add", "m2 b2", "y"),
    ]  # fmt: skip
    return save(path, nodes, constants, sizes, opset, kind=kind, listed=listed)


def acas(path: Path) -> Path:
    """Laid out as the networks of ACAS Xu are."""
    start = [node("Sub", "x mean", "s"), node("Div", "s range", "d"), node("Flatten", "d", "flat", axis=1)]
    return dense(path, [1, 1, 1, 5], start, 9)


def batched(path: Path) -> Path:
    return dense(path, ["N", 5], [node("Identity", "x", "flat")])


def vector(path: Path) -> Path:
    return dense(path, [5], [node("Identity", "x", "flat")])


def baked(path: Path) -> Path:
    """The batch is declared as free, but only one input fits."""
    return dense(path, ["N", 1, 5], [node("Reshape", "x row", "flat")])


def precise(path: Path) -> Path:
    return dense(path, ["N", 5], [node("Identity", "x", "flat")], kind=11)


def by_shape(path: Path) -> Path:
    """Flattened as torch exports x.view(x.shape[0], -1)."""
    start = [
        node("Shape", "x", "shape"),
        node("Constant", "", "zero", value=numpy_helper.from_array(np.array(0), "zero")),
        node("Constant", "", "rest", value=numpy_helper.from_array(ints(-1), "rest")),
        node("Constant", "", "front", value=numpy_helper.from_array(ints(0), "front")),
        node("Gather", "shape zero", "count", axis=0),
        node("Unsqueeze", "count front", "counts"),
        node("Concat", "counts rest", "wanted", axis=0),
        node("Reshape", "x wanted", "flat"),
    ]
    return dense(path, ["N", 1, 5], start)


def digits(path: Path) -> Path:
    """A convolutional network of opset 7 that lists its weights among the inputs and flattens to one row."""
    nodes = [
        node("Conv", "x W b", "c", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"), node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", "p row", "flat"), node("Gemm", "flat V v", "y", transB=1),
    ]  # fmt: skip
    constants = {"W": real(4, 1, 3, 3), "b": real(4), "V": real(3, 16), "v": real(3), "row": ints(1, -1)}
    return save(path, nodes, constants, [1, 1, 8, 8], 7, listed=True)


@pytest.mark.parametrize("write", [acas, batched, vector, baked, precise, by_shape, digits])
def test_a_network_is_imported_and_bracketed(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "net.onnx")
    graph = imported(path)
    (source,) = [i for i in onnx.load(str(path)).graph.input if i.name == "x"]
    sizes = [d.dim_value or 1 for d in source.type.tensor_type.shape.dim]
    dtype = np.float64 if write is precise else np.float32
    first, second = (real(*sizes, seed=seed).astype(dtype) for seed in (7, 8))
    y, z = run_file(path, first), run_file(path, second)
    row = (1, *y.shape) if len(sizes) == 1 else y.shape
    assert_same(
        graph, first.reshape(1, *graph.input_shape), y.reshape(row), 1e-12 if write is precise else 1e-5
    )
    found = bracket(graph, effort="none")
    stretch = np.linalg.norm(y - z) / np.linalg.norm(first - second)
    assert stretch * (1 - 1e-4) <= found.upper
    assert 0 < found.lower <= found.upper < np.inf


def test_layouts_of_one_network_get_one_bracket(tmp_path: Path) -> None:
    """Range 2 divides the bounds of the network of ACAS Xu's layout by 2."""
    found = [
        bracket(imported(write(tmp_path / "net.onnx")), effort="none")
        for write in (acas, vector, baked, by_shape)
    ]
    for one, factor in zip(found, (2, 1, 1, 1), strict=True):
        assert one.upper * factor == pytest.approx(found[1].upper, rel=1e-6)
        assert one.lower * factor <= found[1].upper


def test_a_batch_that_the_file_fixes_is_kept(tmp_path: Path) -> None:
    path = dense(tmp_path / "net.onnx", [4, 5], [node("Identity", "x", "flat")])
    x = real(4, 5, seed=7)
    assert_same(imported(path), x, run_file(path, x))


def test_an_open_shape_is_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", [node("Relu", "x", "y")], {}, ["N", "width"])
    assert load_model(str(path)).input_shape is None
    assert imported(path, (6,)).input_shape == (6,)


# ---- refusals -------------------------------------------------------------------------------------------


def relu(path: Path) -> Path:
    return save(path, [node("Relu", "x", "y")], {}, ["N", 5])


def outside(path: Path, **held: Any) -> Path:
    """A network whose weight lies in another file."""
    save(path, [node("MatMul", "x W", "y")], {"W": real(5, 3)}, ["N", 5])
    model = onnx.load(str(path))
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in held.items():
        weight.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def branch(path: Path) -> Path:
    body = helper.make_graph([node("Neg", "x", "z")], "b", [], [helper.make_tensor_value_info("z", 1, None)])
    body.output[0].CopyFrom(helper.make_tensor_value_info("z", 1, [None, 5]))
    chosen = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=body, else_branch=body)
    return save(path, [chosen], {"flag": np.array(True)}, ["N", 5])


def two_inputs(path: Path) -> Path:
    other = helper.make_tensor_value_info("z", 1, ["N", 5])
    return save(path, [node("Add", "x z", "y")], {}, ["N", 5], others=[other])


def huge(path: Path) -> Path:
    nodes = [node("ConstantOfShape", "size", "c"), node("Add", "x c", "y")]
    return save(path, nodes, {"size": ints(10**12)}, ["N", 5])


def attribute_outside(path: Path) -> Path:
    model = onnx.load(str(relu(path)))
    constant = numpy_helper.from_array(floats(1.0), "c")
    constant.ClearField("raw_data")
    constant.data_location = onnx.TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="secret.bin")
    (path.parent / "secret.bin").write_bytes(bytes(4))
    model.graph.node.insert(0, node("Constant", "", "c", value=constant))
    model.graph.node[1].CopyFrom(node("Add", "x c", "y"))
    path.write_bytes(model.SerializeToString())
    return path


def two_outputs(path: Path) -> Path:
    return save(path, [node("Relu", "x", "y"), node("Neg", "x", "z")], {}, ["N", 5], outputs=("y", "z"))


def missing(path: Path) -> Path:
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def text(path: Path) -> Path:
    path.write_text("import torch")
    return path


def unknown(path: Path) -> Path:
    return save(path, [node("Acosh", "x", "y")], {}, ["N", 5])


def discontinuous(path: Path) -> Path:
    return save(path, [node("ThresholdedRelu", "x", "y")], {}, ["N", 5])


def not_a_number(path: Path) -> Path:
    return save(path, [node("MatMul", "x W", "y")], {"W": real(5, 3) * np.nan}, ["N", 5])


def whole_numbers(path: Path) -> Path:
    return save(path, [node("Neg", "x", "y")], {}, ["N", 5], kind=7)


def without_its_weight(path: Path) -> Path:
    return save(path, [node("Add", "x nothing", "y")], {}, ["N", 5])


def truncated(path: Path) -> Path:
    batched(path).write_bytes(path.read_bytes()[:-150])
    return path


def escaping(path: Path) -> Path:
    (path.parent / "folder").mkdir()
    (path.parent / "w.bin").write_bytes(bytes(60))
    return outside(path.parent / "folder" / path.name, location="../w.bin", length=60)


def too_short(path: Path) -> Path:
    (path.parent / "w.bin").write_bytes(bytes(20))
    return outside(path, location="w.bin", length=60)


def shorter_than_stated(path: Path) -> Path:
    (path.parent / "w.bin").write_bytes(bytes(20))
    return outside(path, location="w.bin")


def linked(path: Path) -> Path:
    (path.parent / "folder").mkdir()
    (path.parent / "w.bin").write_bytes(bytes(60))
    (path.parent / "folder" / "w.bin").symlink_to(path.parent / "w.bin")
    return outside(path.parent / "folder" / path.name, location="w.bin", length=60)


REFUSED = {
    unknown: r"unsupported operator Acosh at y",
    discontinuous: r"ThresholdedRelu",
    branch: r"If at choice",
    two_inputs: r"2 inputs",
    two_outputs: r"2 outputs",
    huge: r"unreasonably large",
    attribute_outside: r"an attribute of an operator lies outside",
    not_a_number: r"NaN",
    whole_numbers: r"no real tensor",
    without_its_weight: r"nothing",
    truncated: r"no sound ONNX file",
    escaping: r"no file in its folder",
    linked: r"no file in its folder",
    too_short: r"beyond the end",
    shorter_than_stated: r"W",
    missing: r"there is no file",
    empty: r"no sound ONNX file",
    text: r"no sound ONNX file",
}


@pytest.mark.parametrize(("write", "message"), REFUSED.items(), ids=[write.__name__ for write in REFUSED])
def test_what_cannot_be_read_is_one_sentence(
    write: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "net.onnx")
    started = time.perf_counter()
    with pytest.raises(ModelError, match=message) as raised:
        imported(path)
    assert time.perf_counter() - started < 5
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_weights_in_the_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8) + real(5, 3).tobytes())
    path = outside(tmp_path / "net.onnx", location="w.bin", offset=8, length=60)
    x = real(2, 5, seed=7)
    assert_same(imported(path), x, x @ real(5, 3))


def test_without_the_onnx_package_the_way_to_get_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real_import = relu(tmp_path / "net.onnx"), importlib.import_module

    def refuse(name: str, *more: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return real_import(name, *more)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(ModelError, match=r"pip install 'lipscope\[onnx\]'"):
        read_onnx(path)


def test_what_onnx_runtime_computes_otherwise_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = relu(tmp_path / "net.onnx")
    monkeypatch.setitem(OPERATORS, "Relu", OPERATORS["Abs"])
    with pytest.raises(ModelError, match="the imported graph and ONNX Runtime disagree"):
        imported(path)


def test_the_command_line_reads_onnx_files_and_refuses_others(tmp_path: Path) -> None:
    batched(tmp_path / "net.onnx")
    truncated(tmp_path / "cut.onnx")
    unknown(tmp_path / "odd.onnx")
    runs = [
        lipscope_command("certify", f"{name}.onnx", "--effort", "none", cwd=tmp_path)
        for name in ("net", "cut", "odd")
    ]
    assert [run.returncode == 0 for run in runs] == [True, False, False], runs
    for run, word in zip(runs[1:], ("sound", "Acosh"), strict=True):
        assert word in run.stderr
        assert "Traceback" not in run.stderr
