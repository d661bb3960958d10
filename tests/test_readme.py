"""What the README and the docs promise exists: files, options, make targets, and a tree that is the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OUR_FILES = [page for page in PAGES if page.name != "formats.md"]  # that page names files of other projects
COMMAND = re.compile(r"(?<![\w/])((?:scripts/)?[a-z_]+\.py)((?:[ \\\n]+(?!`)[^\s`|]+)*)")


def commands(page: Path) -> list[tuple[str, str, list[str]]]:
    """Each script call of a page, as (script, its first word, options)."""
    code = re.findall(r"```(?:bash|sh)?\n(.*?)```|`([^`\n]+)`|((?:^(?: {4}).*\n)+)", page.read_text(), re.S | re.M)
    found = []
    for block in ("".join(parts) for parts in code):
        for script, rest in COMMAND.findall(block.replace("\\\n", " ")):
            # A quoted value may hold the options of another program.
            own = re.sub(r'"[^"\n]*"', "", rest.split("\n")[0])
            first = own.split()[0] if own.split() else ""
            found.append((script, first, re.findall(r"(--[a-zA-Z_.-]*[a-zA-Z_])", own)))
    return found


def help_of(*command: str) -> str:
    call = [sys.executable, ROOT / command[0], *command[1:], "--help"]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def helps():
    """What ``--help`` says, of every script and command that a page gives options; most of it is imports, so two run
    at a time."""
    called = [call for page in OUR_FILES for call in commands(page) if call[2] and (ROOT / call[0]).is_file()]
    with ThreadPoolExecutor(2) as pool:

        def run(calls):
            calls = sorted(set(calls))
            return dict(zip(calls, pool.map(lambda call: help_of(*call), calls), strict=True))

        scripts = run((script,) for script, _, _ in called)
        several = re.compile(r"^  ([a-z]+) ", re.M)  # the commands of a script
        return scripts | run(
            (script, first) for script, first, _ in called if first in several.findall(scripts[(script,)])
        )


@pytest.mark.parametrize("page", OUR_FILES, ids=lambda page: page.name)
def test_scripts_and_options_exist(page, helps):
    for script, first, options in commands(page):
        assert (ROOT / script).is_file(), f"{page.name} calls {script}"
        known = helps.get((script,), "") + helps.get((script, first), "")
        for option in options:
            assert re.search(rf"{re.escape(option)}\b", known), f"{page.name}: {script} {first} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^ {4}|`)make ([a-z][a-z-]*)", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), f"the README says make {target}"


def test_the_annotated_tree_is_the_tree():
    tree = re.search(r"## What is where\n+```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert tree, "the README has no annotated tree"
    lines = tree.group(1).splitlines()
    assert len(lines) <= 25, "the tree is for an overview: folders only"
    outer = {name for line in lines if line[0] != " " for name in line.split() if "/" in name or name.endswith(".py")}
    inner = {line.split()[0] for line in lines if line.startswith("  ")} - {"*.py"}
    for name in outer | {f"aura/{name}" for name in inner}:
        assert (ROOT / name).exists(), f"the README's tree names {name}"
    folders = {f"{path.parent.name}/" for path in (ROOT / "aura").glob("*/__init__.py")}
    assert folders == inner, f"the README's tree and aura/ differ in {sorted(folders ^ inner)}"


@pytest.mark.parametrize("page", OUR_FILES, ids=lambda page: page.name)
def test_files_named_in_the_text_exist(page):
    for name in re.findall(r"(?<![\w/.])((?:aura|configs|scripts|docs|tests)/[\w/.-]+\.\w+)", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_sections_that_the_code_cites_exist():
    headings = set(re.findall(r"^#+ (.+)$", (ROOT / "docs/formats.md").read_text(), re.M))
    for path in [*(ROOT / "aura").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for section in re.findall(r'docs/formats\.md(?:``)?, "([^"]+)"', path.read_text()):
            assert section in headings, f"{path} cites the section {section!r} of docs/formats.md"
