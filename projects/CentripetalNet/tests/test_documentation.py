"""Generated pages are up to date, and links are valid."""

import importlib
import re
import subprocess
import sys

import pytest
from conftest import PROJECT

REPOSITORY = PROJECT.parents[1]
pytestmark = pytest.mark.skipif(
    not (REPOSITORY / "dev").is_dir(), reason="the project is outside its repository"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def pages():
    found = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *PROJECT.rglob("*.md")]
    left_out = {"output", "build"}
    return [x for x in found if not left_out & set(x.relative_to(REPOSITORY).parts)]


def anchors_of(page):
    """The anchors of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", x.lower()).strip().replace(" ", "-") for x in titles}


def test_the_page_of_config_keys_is_up_to_date():
    command = [sys.executable, REPOSITORY / "dev" / "config_page.py", "--check"]

    result = subprocess.run(command, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr


def test_links_between_pages_lead_to_files_and_headings():
    broken, seen = [], 0
    for page in pages():
        for target in LINK.findall(page.read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            seen += 1
            if not file.exists() or (anchor and anchor not in anchors_of(file)):
                broken.append(f"{page.relative_to(REPOSITORY)}: {target}")
    assert broken == []
    assert seen > 5


def test_urls_are_well_formed():
    for page in pages():
        for target in LINK.findall(page.read_text()):
            if "://" in target:
                assert re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./@#%?=&+-]*)?", target), (
                    page,
                    target,
                )


def test_the_names_on_the_page_of_the_architecture_exist():
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    names = re.findall(r"`((?:\w+\.)+\w+)`", page[page.index("## From") :])
    assert len(names) > 25
    for name in names:
        module, rest = "centripetalnet", name.split(".")
        while rest and is_module(f"{module}.{rest[0]}"):
            module = f"{module}.{rest.pop(0)}"
        thing = importlib.import_module(module)
        for part in rest:
            thing = getattr(thing, part)


def is_module(name):
    path = PROJECT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()
