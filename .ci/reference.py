"""Writes the reference pages of the documentation from the code: `reference.py FOLDER`."""

import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup, TyperOption

import msrec
from msrec.data.convert.sources.plain.tables_mapping import TablesMapping
from msrec.data.schema import Schema
from msrec.launch.config.run_config import RunConfig
from msrec.tools.cli.main import app

TABLES_EXAMPLE = """\
```yaml
name: my-app
description: A short-video app.
scenarios:
  feed: Videos that the app proposes.
  search: Videos found by a query.
user: { age: sparse, city: sparse, balance: dense }
item: { category: sparse, tags: multi, price: dense, title: words }
timestamp_unit: s
text: { item_title: title, item_attributes: [category], user_attributes: [city] }
```
"""

TABLES_RULES = """\
## Kinds of features

| kind | column in the raw file | feature |
|---|---|---|
| `sparse` | strings, integers, booleans or dates; no floats, no lists | one id per row, with an \
embedding table; null is the unknown id, row 0 |
| `multi` | lists; for users and items also strings with values between vertical bars | a list of \
ids per row; the model averages their vectors; null is an empty list |
| `dense` | numbers | a number per row; null, NaN and infinity are refused |
| `words` | strings of users and items | a `multi` feature `COLUMN_words` of the distinct \
words, in lower case |

`user_id` and `item_id` are always sparse features. A column that is not named is no feature. A
feature of the interactions may not be called `rating...` or `label...`.

## Rules of guessing

Without `user` (or `item`), each column of users.parquet (items.parquet) gets a kind by the first
rule that applies. The conversion prints a line per column, such as
`items.title: no feature (300 distinct values in 300 rows)`.

| column | kind |
|---|---|
| strings with vertical bars, if a value between bars occurs 1.5 times (1) | `multi` |
| named `scenario...`, `rating...` or `label...` | no feature |
| `x_name` or `raw_x`, if there is a column `x` | no feature |
| strings equal to the first value of a column of lists | no feature |
| floats without nulls | `dense` |
| floats with nulls, and types other than strings, integers and booleans (also lists) | no feature |
| strings, integers and booleans, if a value occurs 1.5 times (1) | `sparse` |
| any other | no feature |

(1) On average, at least. Integers are never guessed to be `dense`, nor columns of the interactions
to be features: name them in the file.

Without `text`, prompts may read these columns:

- the title of an item is the column `title`, if it exists;
- other columns of strings, if half of their values or more have letters, and if they are no raw
  ids (distinct values without spaces);
- columns of lists of strings;
- `x_name` instead of `x`.

Columns named `raw_...`, `scenario...`, `text`, `..._id` and `..._key` are not read.

Without `scenarios`, the names come from the column `scenario_name` or the values of `scenario`, and
a description is "Scenario NAME.".
"""


def main(folder: Path) -> None:
    """Writes all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "run-options.md": _run_options(),
        "tables-yaml.md": _yaml_page(
            "tables.yaml",
            "The mapping that `msrec convert tables RAW OUT` reads from `RAW/tables.yaml` or "
            "`--mapping`. Every field may be left out; the conversion then decides by the "
            "[rules of guessing](#rules-of-guessing) and prints what it decided.\n\n"
            + TABLES_EXAMPLE,
            TablesMapping,
            after=TABLES_RULES,
        ),
        "dataset-yaml.md": _yaml_page(
            "dataset.yaml",
            "The schema of a dataset folder, written by `msrec convert` and `msrec synthetic`. It "
            "says everything that loaders and models need; nothing is inferred from the files.",
            Schema,
        ),
        "commands.md": _commands(),
        "python-api.md": _python_api(),
    }
    for name, lines in pages.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def _run_options() -> Iterator[str]:
    yield "# Run options"
    yield ""
    yield (
        "A run is a YAML file with these keys; `key.sub=value` on the command line overrides one. "
        "Only `dataset` is required. Options of each model (`backbone.*`) are on "
        "[the page of the models](models.md)."
    )
    yield from _model(RunConfig, "", level=2)


def _yaml_page(title: str, about: str, model: type[BaseModel], after: str = "") -> Iterator[str]:
    yield f"# {title}"
    yield ""
    yield about
    yield from _model(model, "", level=2)
    if after:
        yield ""
        yield after


def _model(model: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    """A table of a model's fields, then a section for each model among them."""
    nested: dict[str, type[BaseModel]] = {}
    yield ""
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        key = prefix + name
        if inner is not None and name != "backbone":
            nested[key] = inner
        if not field.description and inner is None:
            raise SystemExit(f"{model.__name__}.{name} must have a docstring below it.")
        about = _cell(field.description or inspect.getdoc(inner) or "")
        shown = _default(field)
        yield f"| `{key}` | {_kind(field.annotation)} | {shown} | {about} |"
    for key, inner in nested.items():
        yield ""
        yield f"{'#' * level} {key}"
        yield ""
        yield _cell((inspect.getdoc(inner) or "").split("\n\n")[0])
        yield from _model(inner, "" if inner is model else f"{key}.", level)


def _inner_model(kind: Any) -> type[BaseModel] | None:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    found = [inner for arg in typing.get_args(kind) if (inner := _inner_model(arg))]
    return found[0] if len(found) == 1 else None


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required" if field.default_factory is None else ""
    if isinstance(value, BaseModel):
        return "see below" if type(value).__module__.startswith("msrec.launch.config.") else ""
    text = {None: "null", True: "true", False: "false"}.get(value) if _plain(value) else None
    return f"`{value if text is None else text}`"


def _plain(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _kind(kind: Any) -> str:
    """A readable name of a type."""
    if kind is type(None):
        return "null"
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _kind(args[0])
    if origin is typing.Literal:
        return ", ".join(f"`{arg}`" for arg in args)
    if origin in (typing.Union, getattr(__import__("types"), "UnionType", None)):
        if all(_inner_model(arg) for arg in args) and len(args) > 3:
            return "section"
        return " or ".join(_kind(arg) for arg in args)
    if origin is dict:
        return f"map of {_kind(args[0])} to {_kind(args[1])}"
    if origin in (list, tuple):
        return f"list of {_kind(args[0])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
    name = getattr(kind, "__name__", str(kind))
    return names.get(name, "path" if "Path" in name else name)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def _commands() -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield "`msrec COMMAND --help` prints the same."
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    yield from _group(root, "msrec")


def _group(group: TyperGroup, path: str) -> Iterator[str]:
    with typer.Context(group, info_name=path) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if command.hidden:
                continue
            if isinstance(command, TyperGroup):
                yield from _group(command, f"{path} {name}")
                continue
            yield from _command(command, f"{path} {name}")


def _command(command: Any, path: str) -> Iterator[str]:
    with typer.Context(command, info_name=path) as context:
        yield ""
        yield f"## {path}"
        yield ""
        yield re.sub(r"\[/?[a-z ]*\]", "", inspect.cleandoc(command.help or "")).replace("\f", "")
        pieces = " ".join(command.collect_usage_pieces(context))
        yield ""
        yield f"```\n{path} {pieces}\n```"
        rows = [row for p in command.get_params(context) if (row := _parameter(p, context))]
        if rows:
            yield ""
            yield "| argument or option | default | meaning |"
            yield "|---|---|---|"
            yield from rows


def _parameter(parameter: Any, context: typer.Context) -> str | None:
    if parameter.name == "help":
        return None
    about = _cell(re.sub(r"\[/?[a-z ]*\]", "", getattr(parameter, "help", "") or ""))
    if not about:
        raise SystemExit(f"{context.info_name}: {parameter.name} must have a help text.")
    is_option = isinstance(parameter, TyperOption)
    names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name or ""]
    shown = ", ".join(f"`{name if is_option else name.upper()}`" for name in names)
    default = parameter.get_default(context)
    if callable(default) or default is None or default == [] or default == ():
        default = "required" if parameter.required else ""
    elif isinstance(default, bool):
        default = "on" if default else "off"
    else:
        default = f"`{default}`" if str(default) else ""
    return f"| {shown} | {default} | {about} |"


def _python_api() -> Iterator[str]:
    yield "# Python API"
    yield ""
    yield inspect.getdoc(msrec) or ""
    for name in msrec.__all__:
        thing = getattr(msrec, name)
        yield ""
        yield f"## {name}"
        if inspect.isclass(thing):
            yield from _docstring(thing)
            for member, value in vars(thing).items():
                if member.startswith("_") or not (inspect.isfunction(value) or _is_property(value)):
                    continue
                yield ""
                yield f"### {name}.{member}"
                if inspect.isfunction(value):
                    yield f"\n```python\n{member}{_signature(value)}\n```"
                yield from _docstring(value)
        else:
            yield f"\n```python\nmsrec.{name}{_signature(thing)}\n```"
            yield from _docstring(thing)


def _is_property(value: object) -> bool:
    return isinstance(value, property) or hasattr(value, "attrname")


def _signature(function: Any) -> str:
    signature = str(inspect.signature(function)).replace("'", "").replace('"', "")
    return signature if len(signature) < 80 else signature.replace(", ", ",\n    ")


def _docstring(thing: object) -> Iterator[str]:
    """A Google docstring as Markdown: sections become bold heads with lists."""
    for line in (inspect.getdoc(thing) or "").splitlines():
        head = re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields|Example|Source):", line)
        item = re.fullmatch(r"    (\w[\w, ]*): (.*)", line)
        if head:
            yield f"\n**{head[1]}**\n"
        elif item:
            yield f"- `{item[1]}`: {item[2]}"
        else:
            yield line if not line.startswith("    ") else line[2:]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
