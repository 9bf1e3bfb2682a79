"""Every page is found from the README, and links between pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked(page: Path) -> set[tuple[Path, str]]:
    """File and anchor of the links of a page that stay in the repository."""
    found = set()
    for link in LINK.findall(page.read_text("utf-8")):
        if not re.match(r"https?:", link):
            name, _, anchor = link.partition("#")
            found.add(((page.parent / name).resolve() if name else page, anchor))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in linked(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file), f"{file}#{anchor}"


def test_the_readme_leads_to_every_page() -> None:
    assert {file for file, _ in linked(PAGES[0])} >= set(PAGES[1:])


def test_the_first_picture_moves_is_small_and_is_made_by_a_command() -> None:
    text = PAGES[0].read_text("utf-8")
    picture = ROOT / LINK.findall(text.split("![")[1])[0]
    assert b"ANIM" in picture.read_bytes()[:100]  # WebP's chunk of an animation
    assert picture.stat().st_size < 3_000_000
    assert (ROOT / re.findall(r"Made by `(scripts/\w+)`", text)[0]).stat().st_mode & 0o100


def test_pages_that_the_code_cites_are_there() -> None:
    cited = set()
    for folder in ("vljepa_ros", "test", "scripts", "config", "launch", "examples", "msg", "srv"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                text = file.read_text("utf-8", errors="replace")
                cited |= set(re.findall(r"docs/[\w-]+\.(?:md|json|png|webp|svg)\b", text))
    assert {"docs/ros-api.md", "docs/bundle-format.md", "docs/architecture.md"} <= cited
    assert [name for name in sorted(cited) if not (ROOT / name).is_file()] == []
