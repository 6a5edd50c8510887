"""The only reader and writer of YAML: no tags, bombs, repeated keys, or files that were cut."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from msrec.data.io.atomic_files import write_text
from msrec.data.io.paths import AnyPath

MAX_DEPTH = 32
"""Levels of lists and mappings in each other; the deepest file of msrec has six."""
MAX_BYTES = 1 << 24
"""Size of a file; the schema of 100,000 scenarios takes 11 MB."""
MAX_GROWTH = 1 << 18
"""Characters and values that aliases may add: a few of them can stand for billions of values."""
MAX_NUMBER = 64
"""Characters of a number."""
HEADER = '# Written by msrec. The last line is "..."; a file without it was cut.\n'
_END = "...\n"
_LINE_ENDS = re.compile("[\r\x85\u2028\u2029\ufeff]")
_ODD_NUMBER = re.compile(r"[-+]?(0[0-9]|.*:)")
"""Number in base 60 or 8, which people write for a duration or an account."""
_TEXT = "tag:yaml.org,2002:str"
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Seven times as fast where PyYAML was built with libyaml."""


def read_yaml(path: AnyPath) -> Any:
    """Returns the plain values of a YAML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `parse_yaml`, or msrec wrote the file and its end is missing.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES:,} bytes; it has more.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8; byte {error.start} of it is not."
        ) from None
    if text.startswith(HEADER) and not text.endswith(f"\n{_END}"):
        raise ValueError(
            f"{path} must end with a line {_END.strip()!r}, as msrec writes it; the file was cut "
            f"after {len(data):,} bytes. Copy or write it again."
        )
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    r"""Returns the plain values of a YAML text.

    Args:
        text: YAML.
        name: name of the text for errors.

    Raises:
        ValueError: it is not YAML, has a tag, repeats a key, is nested too deeply, or has aliases
            that stand for too much.

    Example:
        >>> parse_yaml("a: &x [1, 2]\nb: *x", "text")
        {'a': [1, 2], 'b': [1, 2]}
    """
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except _Refusal as error:
        raise ValueError(f"{name} must {error}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{name} must be YAML; {_explanation(error)}.") from None
    except (ValueError, OverflowError) as error:  # a date or a number that Python does not have
        raise ValueError(f"{name} must be YAML; {error}.") from None


def write_yaml(path: Path, value: Any) -> Path:
    """Writes plain values in one step, in a form of which `read_yaml` sees whether it was cut."""
    return write_text(path, f"{HEADER}{yaml_text(value)}{_END}")


def yaml_text(value: Any) -> str:
    """Returns plain values as YAML."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Dumper(yaml.SafeDumper):
    """Writer of plain values; PyYAML itself changes texts with unusual line ends."""


def _represented(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if _LINE_ENDS.search(text) else None
    return dumper.represent_scalar(_TEXT, text, style)


_Dumper.add_representer(str, _represented)


class _Refusal(ValueError):
    """A text is YAML, but not of the kind that msrec reads."""

    def __init__(self, must: str, found: str, mark: Any = None) -> None:
        super().__init__(f"{must}; {found}{_where(mark)}")


class _Loader(_BASE):  # type: ignore[misc]  # depends on how PyYAML was built
    """Loader of plain values that refuses repeated keys, of which YAML's takes the last one."""

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        """Returns the tag of a scalar; 1:30 and 007 are text, in YAML 1.1 they are 90 and 7."""
        tag: str = super().resolve(kind, value, implicit)
        is_number = tag.endswith((":int", ":float"))
        return _TEXT if is_number and _ODD_NUMBER.match(value) else tag

    def construct_document(self, node: yaml.Node) -> Any:
        for each in _nodes(node):
            if isinstance(each, yaml.MappingNode):
                self._refuse_repeated_keys(each)
            elif isinstance(each, yaml.ScalarNode) and len(each.value) > MAX_NUMBER:
                if each.tag.endswith((":int", ":float")):
                    found = f"it has {len(each.value):,}"
                    must = f"have numbers of at most {MAX_NUMBER} characters"
                    raise _Refusal(must, found, each.start_mark)
        return super().construct_document(node)

    def _refuse_repeated_keys(self, mapping: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in mapping.value:
            if isinstance(key, yaml.ScalarNode):  # YAML refuses others itself: no dict has them
                value = "<<" if key.tag.endswith(":merge") else self.construct_object(key)
                if value in seen:
                    raise _Refusal(
                        "have each key of a mapping once",
                        f"found {key.value!r:.80} again",
                        key.start_mark,
                    )
                seen.add(value)


def _check_events(text: str) -> None:
    """Refuses tags, deep nesting and aliases that stand for too much, before a value is made."""
    if directive := re.search(r"^%.*", text, re.MULTILINE):  # libyaml is slow on many of them
        raise _Refusal("have no directives", f"found {directive[0]!r:.80}")
    limit = len(text) + MAX_GROWTH
    open_sizes = [0]
    open_anchors: list[str | None] = [None]
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, _BASE):
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if tag is not None:
            raise _Refusal("have plain values without tags", f"found {tag!r:.80}", event.start_mark)
        if isinstance(event, yaml.CollectionStartEvent):
            open_sizes.append(1)
            open_anchors.append(anchor)
            if len(open_sizes) > MAX_DEPTH + 1:
                must = f"have at most {MAX_DEPTH} levels of lists and mappings"
                raise _Refusal(must, "it has more", event.start_mark)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = open_sizes.pop(), open_anchors.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value)
        elif isinstance(event, yaml.AliasEvent):
            if anchor in open_anchors:
                raise _Refusal("be a tree", f"*{anchor} is in itself", event.start_mark)
            size, anchor = sizes.get(str(anchor), 1), None  # YAML refuses an unknown one itself
        else:
            continue
        if anchor:
            sizes[anchor] = size
        open_sizes[-1] += size
        if open_sizes[-1] > limit:
            must = f"have aliases of at most {MAX_GROWTH:,} characters and values"
            raise _Refusal(must, "they stand for more", event.start_mark)


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yields every node once, however many aliases it has."""
    seen, left = {id(root)}, [root]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, yaml.CollectionNode):
            pairs = isinstance(node, yaml.MappingNode)
            children = [each for pair in node.value for each in pair] if pairs else node.value
            new = [child for child in children if id(child) not in seen]
            seen.update(map(id, new))
            left.extend(reversed(new))


def _where(mark: Any) -> str:
    return f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _explanation(error: yaml.YAMLError) -> str:
    """Returns what PyYAML found, with line and column."""
    if isinstance(error, yaml.MarkedYAMLError):
        return f"{error.problem}{_where(error.problem_mark or error.context_mark)}"
    return str(error).splitlines()[0]
