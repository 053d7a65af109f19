"""What the site has beside the pages in docs/: reference pages written from the code, and formulas as MathML.

`commands.md` is made from the Typer application, `api.md` from the public names of `lipscope`, `records.md` from the
fields of its results, so none of them can lag behind.
"""

from __future__ import annotations

import html
import re
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written from the code."""
    written = {"commands.md": commands_page, "api.md": api_page, "records.md": records_page}
    for name, page in written.items():
        files.append(File.generated(config, name, content=page()))
    return files


def on_page_content(content: str, **_: object) -> str:
    """Formulas, `$…$` in the page, as MathML, which browsers show without a script."""
    return _FORMULA.sub(_mathml, content)


_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\(?:\(|\[)(.*?)\\(?:\)|\])</\1>', re.DOTALL)


def _mathml(found: re.Match[str]) -> str:
    try:
        from latex2mathml.converter import convert
    except ImportError as error:
        raise PluginError("formulas need latex2mathml: pip install 'lipscope[docs]'") from error
    display = "block" if found[1] == "div" else "inline"
    return str(convert(html.unescape(found[2]), display=display))


# ------------------------------------------------------------------------------------------------ commands


def commands_page() -> str:
    """Every command with its arguments, options and examples."""
    import typer

    from lipscope.cli import app

    group: Any = typer.main.get_command(app)
    callbacks = {
        command.name or command.callback.__name__.replace("_", "-"): command.callback
        for command in app.registered_commands
        if command.callback is not None
    }
    parts = ["# Commands", _paragraphs(group.help), "`lipscope --version` prints the version."]
    for name, command in group.commands.items():
        parts.append(f"## lipscope {name}")
        parts.append(_usage(name, command))
        parts.append(_paragraphs(command.help))
        parts += _parameters(command, get_type_hints(callbacks[name], include_extras=True))
    return "\n\n".join(parts) + "\n"


def _usage(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    needed = [p for p in command.params if p.param_type_name == "option" and p.required]
    words = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
    words += [f"{p.opts[0]} {p.name.upper()}" for p in needed]
    return "\n".join(["```console", " ".join(["lipscope", name, *words, "[OPTIONS]"]), "```"])


def _paragraphs(text: str) -> str:
    """A help text: paragraphs of prose, and after the word Examples commands."""
    prose, _, examples = text.partition("[bold]Examples[/]")
    parts = [" ".join(paragraph.split()) for paragraph in prose.split("\n\n") if paragraph.strip()]
    commands = [" ".join(line.split()) for line in examples.splitlines() if line.strip()]
    if commands:
        parts.append("\n".join(["```console", *commands, "```"]))
    return "\n\n".join(parts)


def _parameters(command: Any, hints: dict[str, Any]) -> Iterator[str]:
    rows = ["| | value | default | |", "|---|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        names = [parameter.name.upper()] if parameter.param_type_name == "argument" else parameter.opts
        shown = ", ".join(f"`{name}`" for name in [*names, *getattr(parameter, "secondary_opts", [])])
        value = parameter.metavar or _values(hints[parameter.name])
        default = "required" if parameter.required else _default(parameter.default)
        cells = (shown, value and f"`{value}`", default, parameter.help or "")
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    if len(rows) > 2:
        yield "\n".join(rows)


def _values(hint: Any) -> str:
    """What may be given for a parameter of this type; nothing for a flag."""
    while get_origin(hint) is typing.Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return " ".join(map(str, get_args(hint)))
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if kinds:
        return " ".join(dict.fromkeys(filter(None, map(_values, kinds))))
    names = {str: "TEXT", int: "INTEGER", float: "NUMBER", Path: "PATH", bool: ""}
    return names.get(hint, getattr(hint, "__name__", str(hint)).upper())


def _default(value: object) -> str:
    return "" if value is None or isinstance(value, bool) or value in ([], ()) else f"`{value}`"


# ------------------------------------------------------------------------------------------------ Python


_PACKAGES = ("train",)
"""Packages whose public names are used under the package's own name."""
_MODULES = ("train.lightning", "train.transformers")
"""Modules that import an optional package: they are read, not imported."""


def api_page() -> str:
    """Every public name, under the module that it comes from."""
    import lipscope

    parts = [
        "# Python",
        "Names without a module are those of `lipscope` itself: `lipscope.analyze`, `lipscope.Graph`. "
        "`lipscope.__version__` is the version. A name is imported when it is first used, so `import lipscope` is cheap.",
    ]
    for home, names in lipscope._HOMES.items():
        parts.append(f"## {home.replace('_', ' ').capitalize()}\n\n{_about(f'lipscope.{home}')}")
        parts += [f"::: {_place(getattr(lipscope, name), name, f'lipscope.{home}')}" for name in names]
    for path in _PACKAGES:
        package = import_module(f"lipscope.{path}")
        parts.append(f"## lipscope.{path}\n\n{_about(package.__name__)}")
        parts += [f"::: {_place(getattr(package, name), name, package.__name__)}" for name in package.__all__]
    parts += [f"::: lipscope.{path}\n    options:\n      heading_level: 2" for path in _MODULES]
    return "\n\n".join(parts) + "\n"


def _about(module: str) -> str:
    return " ".join((import_module(module).__doc__ or "").partition("\n\n")[0].split())


def _place(thing: Any, name: str, home: str) -> str:
    """Where a public name is written down, for mkdocstrings; constants do not know it."""
    return f"{thing.__module__ if isinstance(thing, type) or callable(thing) else home}.{name}"


def records_page() -> str:
    """Every record of a result with its fields, as they are called in Python and in the JSON files."""
    from lipscope import results

    parts = [
        "# Records",
        "What `lipscope.analyze`, `bracket` and `inspect` return, and the JSON files of a run hold: the classes of "
        "`lipscope.results`. [What a run writes](result.md) says what the numbers mean.",
    ]
    for name in results.__all__:
        record = getattr(results, name)
        if not hasattr(record, "model_fields"):
            continue
        base = record.__mro__[1]
        kind = f" A [{base.__name__}](#{base.__name__.lower()})." if base.__name__ in results.__all__ else ""
        parts += [f"## {name}", _cell(record.__doc__.partition("\n\n")[0]) + kind]
        own = {
            field: (info.annotation, info.description)
            for field, info in record.model_fields.items()
            if field not in getattr(base, "model_fields", ()) or field in record.__annotations__
        } | {
            field: (computed.return_type, computed.description)
            for field, computed in record.model_computed_fields.items()
            if field not in getattr(base, "model_computed_fields", ())
        }
        rows = [
            f"| `{field}` | `{_written(type_)}` | {_cell(what or '')} |"
            for field, (type_, what) in own.items()
        ]
        if rows:
            parts.append("\n".join(["| field | type | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _written(annotation: Any) -> str:
    """A type as one writes it, without its modules."""
    text = (
        annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    )
    return re.sub(r"\b\w+\.", "", text)


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
