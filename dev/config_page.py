#!/usr/bin/env python3
"""Generates docs/config.md, all config keys with defaults and meanings, from config.py.

dev/config_page.py           writes the page
dev/config_page.py --check   exits with an error if the page is not up to date
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from detectron2.config import get_cfg

from centripetalnet import config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
DETECTRON2 = "https://detectron2.readthedocs.io/en/latest/modules/config.html#config-references"
HEAD = f"""# Config keys

The keys that this project adds to [Detectron2's keys]({DETECTRON2}).
The defaults are those of the released Hourglass-104 model. `configs/*.yaml` changes some of them,
`KEY VALUE` pairs at the end of a command line change any. `make docs` generates this page from
[config.py](../projects/CentripetalNet/centripetalnet/config.py).
"""


class Key(NamedTuple):
    """A config key, or a group of keys, which has no default."""

    section: str
    name: str
    default: object
    meaning: str


def keys_of(source: str) -> list[Key]:
    """The keys that ``add_centripetalnet_config`` adds, in its order.

    Args:
        source: text of config.py, with comments above the keys.

    Raises:
        ValueError: if a key has no comment.
    """
    lines = source.splitlines()
    (function,) = (
        x
        for x in ast.parse(source).body
        if isinstance(x, ast.FunctionDef) and x.name == "add_centripetalnet_config"
    )
    cfg = get_cfg()
    config.add_centripetalnet_config(cfg)
    # Local names for parts of the config.
    parts: dict[str, str] = {"cfg": ""}
    section, meaning = "", ""
    keys: list[Key] = []
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        heading, comment = _comment_above(lines, statement.lineno)
        section = heading or section
        path = _path(statement.targets[0], parts)
        for target in statement.targets[1:]:
            parts[target.id] = path
        if isinstance(statement.value, ast.Call):
            # A group of keys.
            if comment:
                keys.append(Key(section, path, None, comment))
            meaning = ""
            continue
        # Adjacent keys share the comment of the first one.
        if not comment and _comes_right_after_a_key(lines, statement.lineno):
            comment = meaning
        if not comment:
            raise ValueError(f"config.py: the key {path} has no comment above it")
        meaning = comment
        default = cfg
        for name in path.split("."):
            default = default[name]
        keys.append(Key(section, path, default, meaning))
    return keys


def _comment_above(lines: list[str], lineno: int) -> tuple[str, str]:
    """Heading and text of the comment that ends on the line before ``lineno``."""
    heading, text = "", []
    for line in reversed(lines[: lineno - 1]):
        line = line.strip()
        if not line.startswith("#"):
            break
        line = line.lstrip("#").strip()
        if line.startswith("---"):
            heading = line.lstrip("- ")
            break
        text.insert(0, line)
    return heading, " ".join(text)


def _comes_right_after_a_key(lines: list[str], lineno: int) -> bool:
    return " = " in lines[lineno - 2]


def _path(target: ast.expr, parts: dict[str, str]) -> str:
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    start = parts[target.id]
    return ".".join([start, *names] if start else names)


def page(keys: list[Key]) -> str:
    """The page as Markdown."""
    return HEAD + "".join(_section_lines(keys))


def _section_lines(keys: list[Key]) -> Iterator[str]:
    section = None
    for key in keys:
        if key.section != section:
            section = key.section
            title = section[0].upper() + section[1:]
            yield f"\n## {title}\n\n| key | default | meaning |\n|---|---|---|\n"
        meaning = key.meaning.replace("|", "\\|")
        default = "" if key.default is None else f"`{key.default!r}`"
        yield f"| `{key.name}` | {default} | {meaning} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only check the page")
    args = parser.parse_args()
    text = page(keys_of(Path(config.__file__).read_text(encoding="utf-8")))
    if args.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print(f"error: {PAGE} does not match config.py. Run `make docs`.", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
