"""`lipscope verify` on folders that somebody sent: whatever was made better in them is found."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import lipscope
from helpers import command_here
from lipscope.errors import CertificateError, DataError
from lipscope.jobs.brackets import BallOptions
from lipscope.jobs.folder import read_report
from lipscope.jobs.verification import stated_shape, verify_run
from lipscope.results import (
    Bracket,
    Check,
    ConcentrationReport,
    DiscriminantReport,
    FisherReport,
    Inspection,
    Result,
)
from strategies import networks, seeds

QUANTITIES: dict[str, tuple[str, Any]] = {
    "analyze": ("result.json", Result),
    "certify": ("bracket.json", Bracket),
    "ball": ("bracket.json", Bracket),
    "inspect": ("inspect.json", Inspection),
}
"""Runs whose bounds are quantities with witnesses."""
FILES: dict[str, tuple[str, Any]] = QUANTITIES | {
    "fisher": ("fisher.json", FisherReport),
    "discriminant": ("discriminant.json", DiscriminantReport),
    "noise": ("concentration.json", ConcentrationReport),
    "noise in a ball": ("concentration.json", ConcentrationReport),
}
SIGMA = 0.05
TAILS = [
    "output 0: P",
    "output 0: exceeded, P ≤ 1e-06",
    "norm: mean",
    "norm: P",
    "norm: exceeded, P ≤ 1e-06",
]
"""What is checked of tails, names cut at the deviation."""
RADIUS = 0.5


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)).double()


@pytest.fixture(scope="module")
def graph() -> lipscope.Graph:
    return lipscope.from_torch(network(), (3,))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, graph: lipscope.Graph) -> Path:
    """One run folder of each kind."""
    place = tmp_path_factory.mktemp("runs")
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = lipscope.Options(pairs=20, jacobians=4, effort="fast", seconds=0.5)
    lipscope.analyze(graph, x, output=place / "analyze", options=options)
    lipscope.bracket(graph, output=place / "certify", effort="fast", seconds=0.5)
    over = BallOptions(torch.tensor([0.3, -0.2, 0.1]), RADIUS)
    lipscope.bracket(graph, output=place / "ball", over=over, effort="fast", seconds=0.5)
    lipscope.inspect(graph, data=x, output=place / "inspect", effort="fast", seconds=0.5)
    lipscope.fisher(network(), x, variance=0.5, directions=1, output=place / "fisher")
    lipscope.separate(graph, x, [0, 1] * 6, output=place / "discriminant")
    noise = lipscope.Noise(torch.tensor([0.3, -0.2, 0.1]), SIGMA)
    lipscope.noise_tails(graph, noise, effort="fast", seconds=0.5, draws=20, output=place / "noise")
    lipscope.noise_tails(graph, noise, in_ball=True, draws=20, output=place / "noise in a ball")
    return place


@pytest.fixture
def place(sound: Path, tmp_path: Path) -> Path:
    """Copies that may be tampered with."""
    shutil.copytree(sound, tmp_path / "runs")
    return tmp_path / "runs"


def rewrite(folder: Path, change: Any) -> None:
    """Change the record's JSON, and make what is derived from its numbers agree with them."""
    name, kind = FILES[folder.name]
    raw = json.loads((folder / name).read_text("utf-8"))
    change(raw)
    (folder / name).write_text(kind.from_json(json.dumps(raw)).to_json())


def put(raw: Any, path: tuple[str | int, ...], value: Any) -> None:
    """Replace the value at a path of keys and places; a function makes the new one from the old."""
    for key in path[:-1]:
        raw = raw[key]
    raw[path[-1]] = value(raw[path[-1]]) if callable(value) else value


def put_alone(file: Path, path: tuple[str | int, ...], value: Any) -> None:
    """Replace one value in a record's file, and leave what is derived from it."""
    raw = json.loads(file.read_text("utf-8"))
    put(raw, path, value)
    file.write_text(json.dumps(raw))


def bounds(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The records of bounds in the JSON of any command."""
    yield from raw.get("bounds", [])
    yield from (
        raw[key]
        for key in ("analytical", "certified", "ascent", "local", "empirical", "attained")
        if raw.get(key)
    )


def failing(folder: Path, graph: lipscope.Graph) -> list[Check]:
    return [check for check in verify_run(folder, graph) if not check.holds]


@pytest.mark.parametrize("run", FILES)
def test_a_sound_run_is_confirmed_with_every_bound(run: str, sound: Path, graph: lipscope.Graph) -> None:
    checks = verify_run(sound / run, graph)
    assert all(check.holds for check in checks)
    expected = {
        "analyze": {"analytical", "certified", "ascent", "local", "empirical", "layers"},
        "certify": {"analytical", "certified", "ascent", "exact"},
        "ball": {"analytical", "certified", "ball", "ascent", "exact"},
        "inspect": {"analytical", "certified", "local", "layers"},
        "fisher": {"λ_max of I(x)"},
        "discriminant": {"input", *(layer.place for layer in graph.nodes[1:])},
        "noise": {"L (certified)", "rank", "ΣL_i²", "V", *TAILS},
        "noise in a ball": {"L (ball)", "outside the ball", "rank", "ΣL_i²", "V", *TAILS},
    }[run]
    assert {check.name.partition("(>")[0] for check in checks} == expected
    assert stated_shape(sound / run) == (3,)


@pytest.mark.parametrize("run", QUANTITIES)
def test_every_bound_made_better_is_found(run: str, sound: Path, place: Path, graph: lipscope.Graph) -> None:
    name = FILES[run][0]
    raw = json.loads((sound / run / name).read_text("utf-8"))
    for number, bound in enumerate(bounds(raw)):
        factor = 0.999 if bound["kind"] == "upper" else 1.001

        def better(changed: dict[str, Any], number: int = number, factor: float = factor) -> None:
            held = list(bounds(changed))[number]
            held["value"] *= factor
            if "upper" in held:
                held["upper"] *= factor

        shutil.copy(sound / run / name, place / run / name)
        rewrite(place / run, better)
        assert [check.name for check in failing(place / run, graph)] == [bound["name"]]


def test_details_made_better_are_found(place: Path, sound: Path, graph: lipscope.Graph) -> None:
    def product(raw: dict[str, Any]) -> None:
        raw["analytical"]["product"] *= 0.99

    def piece(raw: dict[str, Any]) -> None:
        raw["certified"]["pieces"][0]["bound"] *= 0.99

    def ratio(raw: dict[str, Any]) -> None:
        raw["local"]["witness"]["ratio"] *= 1.01

    def constant(raw: dict[str, Any]) -> None:
        raw["analytical"]["layers"][1]["constant"] *= 0.99

    def row(raw: dict[str, Any]) -> None:
        raw["slack"]["layers"][2]["cumulative"] *= 0.99

    def places(raw: dict[str, Any]) -> None:
        layers = raw["slack"]["layers"]
        layers[1]["place"], layers[3]["place"] = layers[3]["place"], layers[1]["place"]

    changes = (
        (product, "analytical"),
        (piece, "certified"),
        (ratio, "local"),
        (constant, "analytical"),
        (row, "layers"),
        (places, "layers"),
    )
    for change, name in changes:
        shutil.copy(sound / "analyze" / "result.json", place / "analyze" / "result.json")
        rewrite(place / "analyze", change)
        assert [check.name for check in failing(place / "analyze", graph)] == [name]


@pytest.mark.parametrize(
    ("run", "path", "value"),
    [
        ("analyze", ("upper",), 1e-3),
        ("analyze", ("lower",), "Infinity"),
        ("analyze", ("local", "squared"), 1e9),
        ("certify", ("upper",), 0.5),
        ("discriminant", ("discriminant", "layers", 3, "certified_separation"), 2.0),
        ("discriminant", ("discriminant", "layers", 3, "ratio"), 2.0),
    ],
)
def test_derived_numbers_that_disagree_are_found(
    run: str, path: tuple[str | int, ...], value: Any, place: Path, graph: lipscope.Graph
) -> None:
    file = place / run / FILES[run][0]
    put_alone(file, path, value)
    with pytest.raises(DataError, match=rf"{file.name} was altered: it says {'.'.join(map(str, path))}"):
        verify_run(place / run, graph)


@pytest.mark.parametrize(
    ("key", "kind"), [("local", "upper"), ("analytical", "lower"), ("empirical", "estimate")]
)
def test_a_bound_cannot_pass_for_another_kind(
    key: str, kind: str, place: Path, graph: lipscope.Graph
) -> None:
    file = place / "analyze" / "result.json"
    raw = json.loads(file.read_text("utf-8"))
    raw[key]["kind"] = kind
    file.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=f"not a result file: {key}.kind"):
        verify_run(place / "analyze", graph)


@pytest.mark.parametrize("run", QUANTITIES)
def test_swapped_witnesses_are_found(run: str, place: Path, graph: lipscope.Graph) -> None:
    path = place / run / "witness.safetensors"
    held = load_file(path)
    keys = sorted({key.rpartition(".")[0] for key in held if key.endswith(".x1")})
    swapped = {**held, **{f"{key}.x2": held[f"{key}.x1"] + 1e-3 * torch.ones(3) for key in keys}}
    save_file(swapped, path)
    assert {check.name for check in failing(place / run, graph)} == set(keys)
    save_file({key: torch.full_like(x, torch.inf) for key, x in held.items()}, path)
    assert {check.name for check in failing(place / run, graph)} >= set(keys)


def test_a_pair_outside_the_ball_attains_nothing_of_it(place: Path, graph: lipscope.Graph) -> None:
    """The steepest pair anywhere, put in the place of the one in the ball, is above the ball's own bound."""
    anywhere = load_file(place / "certify" / "witness.safetensors")
    path = place / "ball" / "witness.safetensors"
    held = load_file(path)
    outside = [anywhere[f"ascent.{end}"] + 100.0 for end in ("x1", "x2")]
    save_file({**held, "ascent.x1": outside[0], "ascent.x2": outside[1]}, path)
    (check,) = failing(place / "ball", graph)
    assert (check.name, check.reason) == ("ascent", "its witness lies outside the ball")
    # Another ball's centre would make room for it.
    save_file({**held, "ball.center": outside[0]}, path)
    assert {"ball", "ascent"} <= {check.name for check in failing(place / "ball", graph)}
    save_file({key: x for key, x in held.items() if key != "ball.center"}, path)
    assert {check.name for check in failing(place / "ball", graph)} == {"ball", "ascent", "exact"}


def test_a_ball_that_grew_or_shrank_is_found(place: Path, graph: lipscope.Graph) -> None:
    def smaller(raw: dict[str, Any]) -> None:
        raw["ball"]["radius"] /= 10

    def larger(raw: dict[str, Any]) -> None:
        raw["ball"]["radius"] *= 10
        for bound in raw["bounds"]:
            if bound["name"] == "ball":
                bound["radius"] *= 10

    rewrite(place / "ball", smaller)
    assert "ball" in {check.name for check in failing(place / "ball", graph)}
    rewrite(place / "ball", lambda raw: raw["ball"].update(radius=RADIUS))
    assert not failing(place / "ball", graph)
    rewrite(place / "ball", larger)
    assert "ball" in {check.name for check in failing(place / "ball", graph)}


@pytest.mark.parametrize("run", FILES)
def test_a_run_of_another_network_is_refused(run: str, place: Path) -> None:
    steeper = network(seed=1)
    with torch.no_grad():
        for parameter in steeper.parameters():
            parameter *= 2
    other = lipscope.from_torch(steeper, (3,))
    with pytest.raises(DataError, match="another network"):
        verify_run(place / run, other)

    def claims(raw: dict[str, Any]) -> None:
        raw["model"]["fingerprint"] = other.fingerprint()

    # With the fingerprint forged, the proofs and witnesses are tried on that network, and some fail.
    rewrite(place / run, claims)
    failed = {check.name for check in failing(place / run, other)}
    assert "certified" in failed if run in QUANTITIES else failed


@pytest.mark.parametrize("file", ["record", "witness.safetensors", "certificate.safetensors"])
@pytest.mark.parametrize("what", ["missing", "link", "folder", "truncated"])
def test_files_that_are_none_are_refused_by_name(
    file: str, what: str, place: Path, graph: lipscope.Graph
) -> None:
    path = place / "analyze" / ("result.json" if file == "record" else file)
    content = path.read_bytes()
    path.unlink()
    if what == "link":
        (place / "elsewhere").write_bytes(content)
        path.symlink_to(place / "elsewhere")
    elif what == "folder":
        path.mkdir()
    elif what == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if file == "certificate.safetensors":
        (check,) = failing(place / "analyze", graph)
        assert check.name == "certified"
        assert path.name in check.reason
    else:
        with pytest.raises(DataError, match=path.name):
            verify_run(place / "analyze", graph)


@pytest.mark.parametrize("run", FILES)
def test_results_of_a_newer_version_ask_for_an_upgrade(run: str, place: Path, graph: lipscope.Graph) -> None:
    file = place / run / FILES[run][0]
    raw = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(raw | {"schema_version": 99}))
    with pytest.raises(DataError, match="upgrade lipscope"):
        verify_run(place / run, graph)


def test_a_certificate_of_a_newer_format_asks_for_an_upgrade(place: Path) -> None:
    path = place / "analyze" / "certificate.safetensors"
    certificate = lipscope.Certificate.load(path)
    header = '{"format": 99, "fingerprint": "x", "pieces": []}'
    save_file(certificate.tensors(), path, {"lipscope": header})
    with pytest.raises(CertificateError, match="upgrade lipscope"):
        lipscope.Certificate.load(path)


# ---- fisher, discriminant, concentration ------------------------------------------------------------------


@given(networks(most=4), seeds(), st.sampled_from(["gaussian", "uniform", "signs"]), st.booleans())
@settings(max_examples=5)
def test_sound_runs_of_any_network_are_confirmed(network, seed: int, law: Any, in_ball: bool) -> None:
    graph = lipscope.from_torch(network.module, network.shape)
    x = torch.randn(6, *network.shape, generator=torch.Generator().manual_seed(seed))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        noise = lipscope.Noise(x[0], 0.1, law)
        lipscope.noise_tails(graph, noise, in_ball=in_ball, draws=4, output=place / "noise")
        lipscope.separate(graph, x, [0, 1] * 3, output=place / "discriminant")
        lipscope.fisher(network.module, x, space="inputs", directions=1, output=place / "fisher")
        for folder in place.iterdir():
            assert not failing(folder, graph)


def certified(raw: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where the certified numbers of a report lie, and what the check of each is called."""
    if raw.get("inputs"):
        yield ("inputs", "bound"), "λ_max of I(x)"
    for number, layer in enumerate(raw.get("discriminant", {}).get("layers", [])):
        yield ("discriminant", "layers", number, "certified"), layer["place"]
    if found := raw.get("concentration"):
        yield ("concentration", "lipschitz"), f"L ({found['rests_on']})"
        yield ("concentration", "column_squares"), "ΣL_i²"
        yield ("concentration", "variance_proxy"), "V"
        for number, (what, tail) in enumerate(zip(("output 0", "norm"), found["tails"], strict=True)):
            at = ("concentration", "tails", number)
            if what == "norm":
                yield (*at, "offset"), "norm: mean"
            for k, point in enumerate(tail["points"]):
                yield (*at, "points", k, "bound"), f"{what}: P(> {point['deviation']:.4g})"
            for k, level in enumerate(tail["levels"]):
                yield (*at, "levels", k, "proved"), f"{what}: exceeded, P ≤ {level['probability']:g}"


@pytest.mark.parametrize("run", ["fisher", "discriminant", "noise"])
@pytest.mark.parametrize("change", [lambda value: value * 0.999, lambda value: -value, "NaN"])
def test_every_certified_number_made_better_is_found(
    run: str, change: Any, sound: Path, place: Path, graph: lipscope.Graph
) -> None:
    file = FILES[run][0]
    numbers = list(certified(json.loads((sound / run / file).read_text("utf-8"))))
    assert numbers
    for path, name in numbers:
        shutil.copy(sound / run / file, place / run / file)
        rewrite(place / run, lambda raw, path=path: put(raw, path, change))
        assert [check.name for check in failing(place / run, graph)] == [name]


@pytest.mark.parametrize(
    ("path", "change", "name"),
    [
        (("lipschitz",), lambda value: value * 0.999, "L (ball)"),
        (("outside",), 0.0, "outside the ball"),
        (("rank",), 1, "rank"),
        (("sigma",), 2 * SIGMA, "L (ball)"),
        (("ball_radius",), lambda value: value * 2, "L (ball)"),
        (("ball_radius",), lambda value: value / 2, "L (ball)"),
        (("ball_radius",), None, "L (ball)"),
        (("rests_on",), "analytical", "L (analytical)"),
        (("rests_on",), "certified", "L (certified)"),
        (("rests_on",), "hope", "L (hope)"),
        (("law",), "uniform", "L (ball)"),
        (("tails", 0, "points", 40, "deviation"), lambda value: value * 0.999, "output 0: P"),
        (("tails", 1, "levels", 2, "probability"), 1e-3, "norm: exceeded, P ≤ 0.001"),
        (("tails", 0, "statistic"), "norm", "norm: mean"),
    ],
)
def test_what_a_tail_rests_on_is_found(
    path: tuple[str | int, ...], change: Any, name: str, place: Path, graph: lipscope.Graph
) -> None:
    folder = place / "noise in a ball"
    rewrite(folder, lambda raw: put(raw["concentration"], path, change))
    failed = failing(folder, graph)
    assert failed[0].name.partition("(>")[0] == name


@pytest.mark.parametrize("law", ["uniform", "signs"])
def test_tails_of_one_law_do_not_pass_for_those_of_another(
    law: Any, tmp_path: Path, graph: lipscope.Graph
) -> None:
    noise = lipscope.Noise(torch.zeros(3), SIGMA, "gaussian")
    lipscope.noise_tails(graph, noise, draws=20, output=tmp_path / "noise")
    rewrite(tmp_path / "noise", lambda raw: raw["concentration"].update(law=law))
    assert "V" in {check.name for check in failing(tmp_path / "noise", graph)}


def test_a_ball_about_another_centre_is_found(tmp_path: Path, graph: lipscope.Graph) -> None:
    along = [t * torch.ones(3, dtype=torch.float64) for t in torch.linspace(-20, 20, 41)]
    flat, steep = (f(along, key=lambda x: lipscope.ball(graph, x, SIGMA).value) for f in (min, max))
    lipscope.noise_tails(
        graph, lipscope.Noise(flat, SIGMA), in_ball=True, draws=20, output=tmp_path / "noise"
    )
    assert not failing(tmp_path / "noise", graph)
    path = tmp_path / "noise" / "witness.safetensors"
    key, missing = "concentration.center", "the centre of its ball is not stored"
    for stored, reason in (
        ({key: steep}, ""),
        ({key: flat.float()}, missing),
        ({key: torch.inf * torch.ones_like(flat)}, missing),
        ({key: flat[:2]}, missing),
        ({}, missing),
    ):
        save_file(stored, path)
        first = failing(tmp_path / "noise", graph)[0]
        assert (first.name, first.reason) == ("L (ball)", reason)


@pytest.mark.parametrize("what", ["missing", "of another network"])
def test_tails_rest_on_the_stored_certificate(what: str, place: Path, graph: lipscope.Graph) -> None:
    path = place / "noise" / "certificate.safetensors"
    path.unlink()
    if what != "missing":
        other = lipscope.from_torch(network(seed=1), (3,))
        lipscope.certify(other, "fast", 0.2).save(path)
    (check,) = failing(place / "noise", graph)
    assert check.name == "L (certified)"
    assert check.found is None


def test_a_layer_does_not_pass_for_another(place: Path, sound: Path, graph: lipscope.Graph) -> None:
    def renumbered(raw: dict[str, Any]) -> None:
        # Both are ReLUs of five units.
        first, second = (raw["discriminant"]["layers"][k] for k in (2, 4))
        assert first["certified"] < second["certified"]
        second.update(node=first["node"], certified=first["certified"])

    def renamed(raw: dict[str, Any]) -> None:
        first, second = (raw["discriminant"]["layers"][k] for k in (2, 4))
        first["place"], second["place"] = second["place"], first["place"]

    def nowhere(raw: dict[str, Any]) -> None:
        raw["discriminant"]["layers"][2]["node"] = 99
        raw["discriminant"]["layers"][4]["node"] = -1

    for change, count in ((renumbered, 1), (renamed, 2), (nowhere, 2)):
        shutil.copy(sound / "discriminant" / "discriminant.json", place / "discriminant")
        rewrite(place / "discriminant", change)
        failed = failing(place / "discriminant", graph)
        assert len(failed) == count
        assert all("is another layer" in check.reason for check in failed)


def test_the_fisher_bound_is_that_of_its_likelihood(
    tmp_path: Path, place: Path, graph: lipscope.Graph
) -> None:
    for claims in ({"variance": 1.0}, {"variance": None}, {"likelihood": "softmax"}):
        rewrite(place / "fisher", lambda raw, claims=claims: raw["inputs"].update({"variance": 0.5} | claims))
        passed = not failing(place / "fisher", graph)
        # With a larger variance the bound is weaker than what is proved.
        assert passed == (claims == {"variance": 1.0})
    images = nn.Conv2d(1, 2, 2)
    x = torch.zeros(1, 1, 3, 3)
    lipscope.fisher(images, x, space="inputs", directions=1, output=tmp_path / "fisher")
    rewrite(tmp_path / "fisher", lambda raw: raw["inputs"].update(likelihood="softmax", variance=None))
    (check,) = failing(tmp_path / "fisher", lipscope.from_torch(images, (1, 3, 3)))
    assert "takes a vector of logits" in check.reason


@pytest.mark.parametrize(
    ("run", "path", "value"),
    [
        ("fisher", ("inputs", "variance"), -1.0),
        ("noise", ("concentration", "sigma"), "Infinity"),
        ("noise", ("concentration", "sigma"), 0.0),
        ("noise", ("concentration", "rank"), 10**400),
        ("noise", ("concentration", "tails", 0, "points", 3, "deviation"), "NaN"),
        ("noise", ("concentration", "tails", 1, "levels", 3, "probability"), "NaN"),
        ("noise", ("concentration", "tails", 0, "levels", 0, "probability"), "Infinity"),
    ],
)
def test_impossible_numbers_are_refused(
    run: str, path: tuple[str | int, ...], value: Any, place: Path, graph: lipscope.Graph
) -> None:
    file = place / run / FILES[run][0]
    put_alone(file, path, value)
    with pytest.raises(DataError, match=f"not a result file: {'.'.join(map(str, path))}"):
        verify_run(place / run, graph)


def test_a_layer_that_claims_to_stretch_nothing_is_found(place: Path, graph: lipscope.Graph) -> None:
    rewrite(place / "discriminant", lambda raw: put(raw, ("discriminant", "layers", 3, "certified"), 0.0))
    assert len(failing(place / "discriminant", graph)) == 1


# ---- what there is to prove -------------------------------------------------------------------------------


def test_runs_without_bounds_say_what_to_verify_instead(place: Path, monkeypatch, capsys) -> None:
    x = torch.randn(6, 3)
    graph = lipscope.from_torch(network(), (3,))
    lipscope.compare_mean_field(graph, samples=4, output=place / "field")
    lipscope.fisher(network(), x, space="parameters", directions=1, products=4, output=place / "parameters")
    (place / "compared").mkdir()
    compared = lipscope.compare(place / "certify", place / "certify")
    (place / "compared" / "comparison.json").write_text(compared.to_json())
    for run, advice in (
        ("field", "verify a run of certify or analyze"),
        ("parameters", "verify a run with --space inputs or both"),
        ("compared", "verify the runs that were compared"),
    ):
        # The model is not even looked for.
        assert command_here(["verify", run, "nowhere.py:build"], place) == 5
        said = " ".join(capsys.readouterr().err.split())
        assert "there is nothing in it to prove" in said
        assert advice in said
    with pytest.raises(DataError, match="nothing in it to prove"):
        verify_run(place / "compared", graph)


def test_a_folder_of_two_records_is_refused(place: Path, graph: lipscope.Graph) -> None:
    shutil.copy(place / "analyze" / "result.json", place / "certify" / "result.json")
    with pytest.raises(DataError, match=r"holds result\.json and bracket\.json"):
        verify_run(place / "certify", graph)


def test_the_command_confirms_noise_and_finds_what_was_altered(tmp_path: Path, capsys) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def build():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 3), nn.Tanh())\n"
    )
    options = ("--input-shape", "4", "--sigma", "0.1", "--draws", "20", "--ball", "--output", "noise")
    assert command_here(["concentration", "net.py:build", *options], tmp_path) == 0
    assert command_here(["verify", "noise", "net.py:build"], tmp_path) == 0
    assert "L (ball)" in capsys.readouterr().out
    rewrite(tmp_path / "noise", lambda raw: raw["concentration"].update(variance_proxy=1e-6))
    assert command_here(["verify", "noise", "net.py:build"], tmp_path) == 7
    assert "NOT CONFIRMED" in capsys.readouterr().out


@pytest.mark.parametrize("run", FILES)
def test_records_are_told_apart(run: str, place: Path, tmp_path: Path) -> None:
    name, kind = FILES[run]
    shutil.copy(place / run / name, tmp_path / "renamed.json")
    assert type(read_report(place / run)) is type(read_report(tmp_path / "renamed.json")) is kind
