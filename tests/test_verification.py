"""`lipscope verify` on folders that somebody sent: whatever was made better in them is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lipscope
from lipscope.errors import CertificateError, DataError
from lipscope.jobs.brackets import BallOptions
from lipscope.jobs.verification import stated_shape, verify_run
from lipscope.results import Bracket, Check, Inspection, Result

FILES: dict[str, tuple[str, Any]] = {
    "analyze": ("result.json", Result),
    "certify": ("bracket.json", Bracket),
    "ball": ("bracket.json", Bracket),
    "inspect": ("inspect.json", Inspection),
}
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
        "analyze": {"analytical", "certified", "ascent", "local", "empirical"},
        "certify": {"analytical", "certified", "ascent", "exact"},
        "ball": {"analytical", "certified", "ball", "ascent", "exact"},
        "inspect": {"analytical", "certified", "local"},
    }[run]
    assert {check.name for check in checks} == expected
    assert stated_shape(sound / run) == (3,)


@pytest.mark.parametrize("run", FILES)
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

    for change, name in ((product, "analytical"), (piece, "certified"), (ratio, "local")):
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
    ],
)
def test_derived_numbers_that_disagree_are_found(
    run: str, path: tuple[str, ...], value: Any, place: Path, graph: lipscope.Graph
) -> None:
    file = place / run / FILES[run][0]
    raw = json.loads(file.read_text("utf-8"))
    held = raw
    for key in path[:-1]:
        held = held[key]
    held[path[-1]] = value
    file.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=rf"{file.name} was altered: it says {'.'.join(path)}"):
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


@pytest.mark.parametrize("run", FILES)
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
    other = lipscope.from_torch(network(seed=1), (3,))
    with pytest.raises(DataError, match="another network"):
        verify_run(place / run, other)

    def claims(raw: dict[str, Any]) -> None:
        raw["model"]["fingerprint"] = other.fingerprint()

    # With the fingerprint forged, the proofs and witnesses are tried on that network, and some fail.
    rewrite(place / run, claims)
    assert "certified" in {check.name for check in failing(place / run, other)}


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
