"""`lipscope check`: verdicts against exact constants and other commands, and how users meet them."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipscope
from lipscope import cli
from lipscope.certificates import improve
from lipscope.quantities import exact
from lipscope.results import Gate
from strategies import randomised, seeds

pytest_plugins = ["pytester"]

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
"""


def perceptron(seed: int, *sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return randomised(nn.Sequential(*parts[:-1]), seed)


@given(seeds(), st.sampled_from([0.3, 0.9, 0.999, 1.001, 1.1, 2.0, 100.0]))
@settings(max_examples=10)
def test_a_verdict_never_contradicts_the_exact_constant(seed: int, factor: float) -> None:
    module = perceptron(seed, 3, 4, 2)
    truth = exact(lipscope.from_torch(module, (3,)), seconds=20)[0]
    limit = factor * (truth.value if factor > 1 else truth.lower)
    gate = lipscope.check(module, (3,), max_upper=limit, effort="fast", seconds=60)
    (verdict,) = gate.verdicts
    assert gate.passed == (verdict.outcome == "holds")
    if factor < 1:
        assert verdict.outcome != "holds"
    else:
        assert verdict.outcome != "exceeded"
    if verdict.outcome == "holds":
        assert truth.lower <= verdict.measured <= limit
        assert verdict.kind == "upper"
    if verdict.outcome == "exceeded":
        assert limit < verdict.measured <= truth.upper
        assert verdict.kind == "lower"
    if factor in (0.3, 100.0):
        assert verdict.outcome == ("exceeded" if factor < 1 else "holds")


def test_the_search_for_a_certificate_ends_at_the_limit_and_is_a_proof_there() -> None:
    graph = lipscope.from_torch(perceptron(1, 8, 24, 24, 24, 4), (8,))
    best = lipscope.certify(graph, "fast", 600.0).value
    norms = next(improve(graph)).value
    for enough in (1.02 * best, math.sqrt(best * norms)):
        found = list(improve(graph, "fast", 600.0, enough=enough))
        assert [certificate.value <= enough for certificate in found] == [False] * (len(found) - 1) + [True]
        assert lipscope.verify(graph, found[-1]) <= enough
        assert found[-1].value > best
    assert [c.value for c in improve(graph, "fast", 600.0, enough=norms)] == [norms]


def test_limits_on_samples_are_those_of_the_quantities() -> None:
    module = perceptron(2, 5, 8, 3)
    x = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = module(x)
    stretch = (torch.pdist(y) / torch.pdist(x)).max()
    steepest = torch.linalg.matrix_norm(torch.func.vmap(torch.func.jacrev(module))(x), 2).max()
    for factor, outcome in ((1.0001, "holds"), (0.9999, "exceeded")):
        limits = {"max_local": factor * float(steepest), "max_empirical": factor * float(stretch)}
        gate = lipscope.check(module, data=x, **limits)
        assert [(v.quantity, v.outcome) for v in gate.verdicts] == [
            ("local", outcome),
            ("empirical", outcome),
        ]
        assert gate.passed == (outcome == "holds")
        assert Gate.from_json(gate.to_json()) == gate


class Square(nn.Module):
    """Stretches more the further away: no global constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def test_a_network_without_a_bound_keeps_no_limit_on_it() -> None:
    gate = lipscope.check(nn.Sequential(nn.Linear(3, 2), Square()), (3,), max_upper=1e9, effort="fast")
    (verdict,) = gate.verdicts
    assert (verdict.outcome, verdict.measured) == ("not proved", math.inf)
    assert "no finite bound: 1" in verdict.note
    assert Gate.from_json(gate.to_json()) == gate


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "net.py").write_text(MODEL)
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype("f4"))
    return folder


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command in the user's folder: its exit code, and what it printed on either stream."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.chdir(place)
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setattr("sys.argv", ["lipscope", *args])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, " ".join(said.err.split())

    return run


MODEL_AND_DATA = ("net.py:build", "--data", "x.npy")
CERTIFICATE = ("--effort", "fast", "--seconds", "60")  # more than it takes, so that the clock decides nothing


def test_the_exit_code_is_the_verdict_and_the_run_can_be_verified(command: Command, place: Path) -> None:
    code, out, err = command(
        "check", *MODEL_AND_DATA, *CERTIFICATE, "--max-upper", "1", "--max-local", "1", "--output", "gate"
    )
    assert code == 0, err
    assert re.search(r"upper +≤ 1 .* ≤ upper +holds +all inputs", out)
    assert re.search(r"local +≤ 1 .* ≈ estimate +holds +at 20 samples", out)
    assert "passed: 2 of 2 limits hold" in out
    gate = Gate.from_json((place / "gate" / "check.json").read_bytes())
    assert (gate.passed, gate.verdicts[0].limit) == (True, 1.0)
    code, out, _ = command("verify", "gate", "net.py:build")
    assert (code, out.count("confirmed")) == (0, len([q for q in gate.quantities if q.kind != "estimate"]))

    code, out, _ = command("check", *MODEL_AND_DATA, *CERTIFICATE, "--max-upper", "0.1", "--max-local", "1")
    assert code == 1
    assert re.search(r"upper +≤ 0.1 .* ≥ lower +EXCEEDED", out)
    assert "FAILED: 1 of 2 limits hold" in out

    code, out, _ = command("check", *MODEL_AND_DATA, "--effort", "none", "--max-upper", "0.7", "--json")
    assert code == 1
    (verdict,) = json.loads(out)["verdicts"]
    assert (verdict["outcome"], json.loads(out)["passed"]) == ("not proved", False)


def test_an_earlier_run_is_a_limit(command: Command, place: Path) -> None:
    options = ("--pairs", "20", "--jacobians", "0", "--effort", "none")
    code, _, err = command("analyze", *MODEL_AND_DATA, *options, "--output", "base")
    assert code == 0, err
    base = lipscope.Result.from_json((place / "base" / "result.json").read_bytes())
    code, out, err = command(
        "check", *MODEL_AND_DATA, "--effort", "none", "--baseline", "base", "--tolerance", "5%", "--json"
    )
    assert code == 0, (out, err)
    gate = Gate.from_json(out)
    assert [v.quantity for v in gate.verdicts] == ["upper", "local", "empirical", "effective"]
    assert gate.verdicts[0].limit == pytest.approx(1.05 * base.upper)
    unit = next(e for e in base.effective if (e.level, e.reading) == ("unit", "active"))
    assert [v.measured for v in gate.verdicts[1:]] == pytest.approx(
        [max(base.local.estimates), base.empirical.value, unit.value]
    )
    # A network of twice the size exceeds all of it.
    (place / "twice.py").write_text(
        "from net import build as once\nfrom torch import nn\n"
        "def build():\n    net = once()\n    net[5].weight.data *= 2\n    return net\n"
    )
    code, out, err = command(
        "check", "twice.py:build", *MODEL_AND_DATA[1:], "--effort", "none", "--baseline", "base", "--json"
    )
    assert code == 1, err
    assert [v.outcome for v in Gate.from_json(out).verdicts[1:]] == ["exceeded"] * 3
    code, _, err = command("check", *MODEL_AND_DATA, "--samples", "5", "--baseline", "base")
    assert (code, "other data" in err) == (5, True)
    code, _, err = command(
        "check", *MODEL_AND_DATA, "--effort", "none", "--baseline", "base", "--tolerance", "ten"
    )
    assert (code, "--tolerance ten" in err) == (2, True)


def test_without_a_model_the_table_of_pyproject_says_it_all(command: Command, place: Path) -> None:
    configuration = place / "pyproject.toml"
    try:
        configuration.write_text(
            '[tool.lipscope.check]\nmodel = "net.py:build"\ninput-shape = "1x8x8"\nmax-upper = 2\neffort = "none"\n'
        )
        assert command("check")[0] == 0
        assert command("check", "--max-upper", "0.1")[0] == 1
        code, _, err = command("check", "net.py:build", "--input-shape", "1x8x8")
        assert (code, "no limit is given" in err) == (2, True)  # the table is not read beside a MODEL
        for wrong, words in (
            ("max-uper = 2", "no key max-uper"),
            ("max-upper = 2", "names no model"),
            ("max-upper = ", "cannot read pyproject.toml"),
        ):
            configuration.write_text(f"[tool.lipscope.check]\n{wrong}\n")
            code, _, err = command("check")
            assert (code, words in err) == (2, True)
    finally:
        configuration.unlink()
    code, _, err = command("check")
    assert (code, "name a MODEL" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--max-local", "3", "--input-shape", "1x8x8"], 5, "--data"),
        (["--max-upper", "3"], 5, "--input-shape"),
        (["--max-upper", "nan", "--input-shape", "1x8x8"], 2, "--max-upper"),
        (["--baseline", "nowhere", "--input-shape", "1x8x8"], 5, "nowhere"),
    ],
)
def test_a_check_that_cannot_be_made_says_why(
    args: list[str], code: int, words: str, command: Command
) -> None:
    found, _, err = command("check", "net.py:build", *args)
    assert (found, words in err) == (code, True)


def test_the_fixture_fails_a_test_with_the_verdicts(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_net="""
        from torch import nn

        def test_kept(lipscope_check):
            assert lipscope_check(nn.Linear(3, 2), (3,), max_upper=100).passed

        def test_exceeded(lipscope_check):
            lipscope_check(nn.Linear(3, 2), (3,), max_upper=1e-3)
        """
    )
    # An installation registers the plugin; in a bare checkout it is named.
    installed = any(entry.name == "lipscope" for entry in entry_points(group="pytest11"))
    plugin = () if installed else ("-p", "lipscope.pytest_plugin")
    ran = pytester.runpytest_inprocess(*plugin, "-p", "no:cacheprovider")
    ran.assert_outcomes(passed=1, failed=1)
    ran.stdout.fnmatch_lines(["*upper*0.001*lower*EXCEEDED*", "FAILED: 0 of 1 limits hold"])
