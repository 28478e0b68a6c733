"""What the documents name is there: their links, the files and modules, the targets of make, the commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_cli import COMMANDS

REPO = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("README.md", "docs/*.md", "firmware/**/*.md", "images/**/*.md")
    for path in REPO.glob(pattern)
)
TREES = "nicagent|hypervisor_shim|tests|docs|images|boot|firmware"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)
FILE = re.compile(rf"(?<![\w/.@-])(?:{TREES})/[\w.*/-]*[\w*]")
MODULE = re.compile(r"python3? -m ((?:nicagent|hypervisor_shim|tests|images|boot)[\w.]*)")
TARGET = re.compile(r"(?:^|[`;&|]|sudo )\s*make ([a-z0-9-]+)", re.MULTILINE)
COMMAND = re.compile(r"(?:^|[`;&|]|sudo )\s*nicagent ([a-z]+)", re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor that a heading has on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(line.lstrip("#").strip()) for line in path.read_text().splitlines() if line.startswith("#")}


def code(path: Path) -> str:
    """What a document says in the words of machines."""
    return "\n".join(CODE.findall(path.read_text()))


def is_there(name: str) -> bool:
    """A file or folder of this repository, or a module without its ending; `*` stands for any."""
    return any(REPO.glob(name)) or (REPO / f"{name}.py").exists()


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.relative_to(REPO).as_posix())
def document(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_its_links_lead_somewhere(document: Path) -> None:
    dead = []
    for link in LINK.findall(document.read_text()):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = document.parent / place if place else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def test_the_files_that_it_names_are_there(document: Path) -> None:
    assert [name for name in sorted(set(FILE.findall(code(document)))) if not is_there(name)] == []


def test_what_it_has_one_run_is_there(document: Path) -> None:
    text = code(document)
    assert [name for name in MODULE.findall(text) if not is_there(name.replace(".", "/"))] == []
    targets = re.findall(r"^([a-z0-9-]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    assert set(TARGET.findall(text)) <= set(targets), "targets of make"
    assert set(COMMAND.findall(text)) <= set(COMMANDS), "commands of nicagent"


def test_the_documents_that_the_code_names_are_there() -> None:
    dead = [
        f"{path.relative_to(REPO)} names {name}"
        for tree in TREES.split("|")
        for path in (REPO / tree).rglob("*.py")
        for name in re.findall(r"(?<![\w/.-])docs/[\w.-]+\.md", path.read_text())
        if not is_there(name)
    ]
    assert dead == []
