"""The bounds of requirements: those that docs/security.md states hold in pyproject.toml, and the pins meet them."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def declared() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, list[Requirement]] = {}
    for text in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(text)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = (Version(part.version) for part in requirement.specifier if part.operator == ">=")
    return bound


def test_every_bound_of_the_table_is_declared_as_it_stands():
    rows = re.findall(r"^\| ([\w.-]+) \| ([\d.]+) \| .*(?:CVE|GHSA)-", (ROOT / "docs/security.md").read_text(), re.M)
    stated = {canonicalize_name(name): Version(bound) for name, bound in rows}
    assert len(stated) == 19
    for name, requirements in declared().items():
        for requirement in requirements:
            assert lower_bound(requirement) == stated.get(name, lower_bound(requirement)), requirement
    assert not stated.keys() - declared().keys()


def test_the_versions_that_were_tested_meet_the_bounds():
    bounds = declared()
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / file).read_text().splitlines():
            if not line or line.startswith("#"):
                continue
            pin = Requirement(line)
            versions = [part.version for part in pin.specifier if part.operator in ("==", "<=", ">=")]
            for requirement in bounds.get(canonicalize_name(pin.name), []):
                assert all(requirement.specifier.contains(version) for version in versions), f"{file}: {pin}"
