"""The documentation: tutorials print what they show, what is named exists, the site builds without a warning."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

import lipscope
import lipscope.train
from lipscope.cli import app
from lipscope.layers.base import TORCH_RULES

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TUTORIALS = [
    ["index.md"],
    ["tutorials/first-bracket.md"],
    ["tutorials/trained-network.md", "tutorials/certified-radius.md"],
    ["tutorials/custom-layer.md"],
]
"""Pages whose code is run, in one folder and one Python for each list."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a Python block is, by its first line."""
        named = re.match(r"# (\S+\.py)\n", self.text)
        return named[1] if named else None


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


# ---- what is shown is what is printed ---------------------------------------------------------------

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*\.?\d*(?:e[+-]?\d+)?(?!\w)")


def difference(shown: str, printed: str) -> str:
    """Where the output differs from what a page shows, or nothing.

    Space and rules do not count, a line … stands for any lines, and numbers may differ by a tenth, since certificates
    depend on the clock.
    """
    expected, real = _lines(shown), _lines(printed)
    at, skipping = 0, False
    for line in expected:
        if line == "…":
            skipping = True
            continue
        places = range(at, len(real)) if skipping else range(at, min(at + 1, len(real)))
        found = next((place for place in places if _same(line, real[place])), None)
        if found is None:
            return f"{line!r} is not in the output:\n{printed}"
        at, skipping = found + 1, False
    return "" if skipping or at == len(real) else f"the output has more lines:\n{printed}"


def _lines(text: str) -> list[str]:
    return [" ".join(re.sub("─+", "─", line).split()) for line in text.splitlines() if line.strip()]


def _same(shown: str, printed: str) -> bool:
    pattern = ".*".join(re.escape(NUMBER.sub("#", part)) for part in shown.split("…"))
    if not re.fullmatch(pattern, NUMBER.sub("#", printed)):
        return False
    if "…" in shown:
        return True
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(math.isclose(_number(a), _number(b), rel_tol=0.1) for a, b in pairs)


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def test_the_comparison_finds_what_differs() -> None:
    assert not difference("a 1.00\n…\nd  4\n", "a   1.04\nb\nc\nd 4\n")
    assert "'a 1'" in difference("a 1\n", "a 2\n")
    assert "'b'" in difference("a\nb\n", "a\n")
    assert "more" in difference("a\n", "a\nb\n")
    assert "more" in difference("…\na\n", "a\nb\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    before, rules = set(sys.modules), set(TORCH_RULES)
    yield tmp_path
    for rule in set(TORCH_RULES) - rules:
        del TORCH_RULES[rule]
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("pages", TUTORIALS, ids=lambda pages: pages[0])
def test_a_tutorial_prints_what_it_shows(pages: list[str], folder: Path) -> None:
    texts = [(ROOT / "docs" / page).read_text("utf-8") for page in pages]
    if any("sklearn" in text for text in texts):
        pytest.importorskip("sklearn")
    for text in texts:
        namespace: dict[str, object] = {"__name__": "tutorial"}
        found = blocks(text)
        assert any(block.language == "python" for block in found)
        for block, after in zip(found, [*found[1:], Block("", "")], strict=True):
            if block.file:
                (folder / block.file).write_text(block.text, "utf-8")
                importlib.invalidate_caches()
            elif block.language == "python":
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(block.text, "tutorial", "exec"), namespace)
                assert not difference(after.text if after.language == "text" else "", printed.getvalue())
            elif block.language == "console":
                for command, shown in commands_with_output(block.text):
                    assert not difference(shown, run(command))


def commands_with_output(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block and what each prints; of those that show nothing, none are run."""
    for part in re.split(r"^\$ ", text.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        if shown.strip():
            yield command, shown


def run(command: str) -> str:
    """What a command prints to standard output, in this process: importing torch anew takes seconds."""
    program, *arguments = shlex.split(command)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if program == "python":
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            assert program == "lipscope"
            app(arguments, standalone_mode=False)
    return printed.getvalue()


# ---- what is named exists ---------------------------------------------------------------------------


def test_commands_in_the_documentation_exist_with_their_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {
        name: {"--help"}.union(*(p.opts + getattr(p, "secondary_opts", []) for p in command.params))
        for name, command in commands.items()
    }
    seen, wrong = set(), []
    for page in PAGES:
        text = page.read_text("utf-8")
        shells = [block.text.replace("\\\n", " ") for block in blocks(text) if block.language != "python"]
        code = "\n".join(shells + re.findall(r"`([^`\n]+)`", text))
        for name, rest in re.findall(r"^(?:\$ )?lipscope ([a-z-]+)(?= |$)(.*)$", code, re.MULTILINE):
            seen.add(name)
            unknown = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) - options.get(name, set())
            if name not in options or unknown:
                wrong.append(f"{page.name}: lipscope {name} {' '.join(sorted(unknown))}")
    assert not wrong
    assert {"analyze", "certify", "inspect", "verify"} <= seen


def test_names_in_the_documentation_exist() -> None:
    def exists(name: str) -> bool:
        return hasattr(lipscope, name) or importlib.util.find_spec(f"lipscope.{name}") is not None

    wrong, seen = [], set()
    for page in PAGES:
        for block in blocks(page.read_text("utf-8")):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.text)):
                names: list[str] = []
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "lipscope"
                ):
                    names = [node.attr]
                elif isinstance(node, ast.ImportFrom) and node.module == "lipscope":
                    names = [alias.name for alias in node.names]
                seen |= set(names)
                wrong += [f"{page.name}: lipscope.{name}" for name in names if not exists(name)]
    assert not wrong
    assert {"analyze", "bracket", "verify"} <= seen


def test_files_named_in_the_documentation_exist() -> None:
    named = r"\b(?:benchmarks|examples|docs|src/lipscope|tests)/[\w/-]+\.(?:py|md|svg|yml)\b"
    missing = [
        f"{page.name}: {path}"
        for page in PAGES
        for path in re.findall(named, page.read_text("utf-8"))
        if not (ROOT / path).exists()
    ]
    assert not missing


def test_links_between_pages_lead_somewhere() -> None:
    """Also where mkdocs is not installed, and those of the README, which the site does not hold."""
    written = {"commands.md", "api.md", "records.md"}
    broken = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
            if (
                not target.startswith("http")
                and target not in written
                and not (page.parent / target).exists()
            ):
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_exit_code_is_documented() -> None:
    def kinds(error: type[lipscope.LipscopeError]) -> Iterator[type[lipscope.LipscopeError]]:
        yield error
        for kind in error.__subclasses__():
            yield from kinds(kind)

    importlib.import_module("lipscope.errors")
    documented = {
        int(code)
        for page in PAGES
        for table in re.findall(
            r"^\| code \| .*\n\|[-| ]+\n((?:\|.*\n?)+)", page.read_text("utf-8"), re.MULTILINE
        )
        for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    }
    assert {kind.exit_code for kind in kinds(lipscope.LipscopeError)} <= documented
    assert {0, 130} <= documented


def test_the_picture_of_the_idea_is_drawn_from_bounds_in_order(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = runpy.run_path(str(ROOT / "examples" / "one_picture.py"))["main"](str(tmp_path / "picture.svg"))
    found = {name: value for name, (value, _) in drawn.items()}
    assert max(found["empirical"], found["local"], found["ascent"]) <= found["exact"] * (1 + 1e-6)
    assert found["exact"] <= found["certified"] <= found["analytical"]
    assert (tmp_path / "picture.svg").read_bytes().startswith(b"<?xml")


# ---- the site ---------------------------------------------------------------------------------------


def test_the_site_builds_strictly_and_is_complete(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package, reason=f"the site needs {package}: pip install 'lipscope[docs]'")
    path = os.pathsep.join([str(ROOT / "src"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {page.name: page.read_text("utf-8") for page in (tmp_path / "site").rglob("*.html")}
    for name in [*lipscope.__all__, *lipscope.train.__all__]:
        written = re.search(rf'id="lipscope\.[\w.]*\b{name}"', pages["api.html"])
        assert written or f"lipscope.{name}<" in pages["api.html"], name
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f">lipscope {name}" in pages["commands.html"]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"<code>{parameter.opts[0]}</code>" in pages["commands.html"]
    for name in ("Result", "Bracket", "Witness"):
        assert f'id="{name.lower()}"' in pages["records.html"]
    for name, page in pages.items():
        assert not re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", page
        ), name
        assert 'class="arithmatex"' not in page, name
    assert "<math" in pages["quantities.html"]
