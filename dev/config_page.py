#!/usr/bin/env python3
"""Generates docs/config.md, all config keys with defaults and meanings, from config.py.

dev/config_page.py           writes the page
dev/config_page.py --check   exits with an error if the page is not up to date
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import get_cfg

from centripetalnet import config

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
DETECTRON2 = "https://detectron2.readthedocs.io/en/latest/modules/config.html#config-references"
COLUMNS = "| key | default | meaning |\n|---|---|---|\n"
HEAD = f"""# Config keys

The keys that this project adds to [Detectron2's keys]({DETECTRON2}).
The defaults are those of the released Hourglass-104 model. `configs/*.yaml` changes some of them,
`KEY VALUE` pairs at the end of a command line change any. `make docs` generates this page from
[config.py](../projects/CentripetalNet/centripetalnet/config.py).
"""
# A key, or a group of keys, which may get a local name.
ASSIGNMENT = re.compile(r"([\w.]+) = (?:(\w+) = )?(.+)")


def page(source: str) -> Iterator[str]:
    """The page as Markdown, in parts.

    Args:
        source: text of config.py, with comments above the keys of ``add_centripetalnet_config``.
            Adjacent keys share the comment of the first one.

    Raises:
        ValueError: if a key has no comment.
    """
    yield HEAD
    cfg = get_cfg()
    config.add_centripetalnet_config(cfg)
    local_names: dict[str, list[str]] = {"cfg": []}
    comment: list[str] = []
    above_is_comment = False
    start = source.index("def add_centripetalnet_config")
    for line in source[start : source.index("\n\n\n", start)].splitlines():
        line = line.strip()
        assignment = ASSIGNMENT.fullmatch(line)
        if line.startswith("# ---"):
            title = line.strip("#- ")
            yield f"\n## {title[0].upper()}{title[1:]}\n\n{COLUMNS}"
            comment = []
        elif line.startswith("#"):
            comment = [*comment, line[1:].strip()] if above_is_comment else [line[1:].strip()]
        elif assignment:
            target, local_name, value = assignment.groups()
            first, *rest = target.split(".")
            names = local_names[first] + rest
            is_group = value == "CfgNode()"
            if local_name:
                local_names[local_name] = names
            if not comment and not is_group:
                raise ValueError(f"config.py: the key {'.'.join(names)} has no comment above it")
            if comment and (above_is_comment or not is_group):
                meaning = " ".join(comment).replace("|", "\\|")
                default = "" if is_group else f"`{value_at(cfg, names)!r}`"
                yield f"| `{'.'.join(names)}` | {default} | {meaning} |\n"
            if is_group:
                comment = []
        elif not line:
            comment = []
        above_is_comment = line.startswith("#")


def value_at(cfg, names):
    for name in names:
        cfg = cfg[name]
    return cfg


def main() -> int:
    text = "".join(page(Path(config.__file__).read_text(encoding="utf-8")))
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"error: {PAGE} does not match config.py. Run `make docs`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
