"""The page itself, in headless Chromium, on a graph that runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install aiohttp")

from bundles import make_bundle
from chromium import Browser, find_chromium
from graph import NodeProcess, Probe, Stream, domain, noise, wait

from vljepa_ros.stamps import clock

BINARY = find_chromium()
if BINARY is None:
    pytest.skip("there is no Chromium: apt install chromium", allow_module_level=True)

PATIENCE = 900.0  # seconds: a busy machine must not make a stream old
LABELS = ["a red cube", "a hand"]


class Graph:
    """Perception, decoder and web node; frames come when the test sends them."""

    def __init__(self, bundle: Path) -> None:
        self.domain_id = domain()
        self.web = NodeProcess("web_node", self.domain_id, port=0)
        self.web.wait_for_log("The page is at ")
        found = re.search(r"The page is at (http://127\.0\.0\.1:(\d+)/)", self.web.log)
        assert found
        self.url, self.port = found[1], int(found[2])
        self.bundle = bundle
        self.nodes: list[NodeProcess] = []
        self.probe = Probe(self.domain_id)

    def start(self) -> None:
        """The model's nodes."""
        self.nodes = [
            NodeProcess(
                "perception_node", self.domain_id, bundle=self.bundle, labels=LABELS,
                max_gap=PATIENCE,
            ),
            NodeProcess("decoder_node", self.domain_id, bundle=self.bundle),
        ]  # fmt: skip
        for node in self.nodes:
            node.wait_for_log("Active.")
        self.stream = Stream(self.probe, "camera", noise(1))
        self.seed = 1

    def show(self, browser: Browser, condition: str) -> None:
        """Send pictures, a new one every four steps, until the page fulfils a condition."""

        def fulfilled() -> Any:
            self.seed += 1
            for _ in range(4):
                self.stream.step(noise(self.seed))
            return browser.js(condition)

        wait(fulfilled, f"{condition}; problems: {browser.problems}")

    def restart_web(self) -> None:
        """The same page by another process."""
        assert self.web.end() == 0
        self.web = NodeProcess("web_node", self.domain_id, port=self.port)
        self.web.wait_for_log("The page is at ")

    def close(self) -> None:
        codes = [node.end() for node in (self.web, *self.nodes)]
        self.probe.close()
        assert codes == [0] * len(codes)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": 0.5}
    graph = Graph(make_bundle(tmp_path_factory.mktemp("page") / "tiny", thresholds=thresholds))
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def browser(graph: Graph) -> Iterator[Browser]:
    """A browser on the page, which was opened before the model was there."""
    assert BINARY is not None
    browser = Browser(BINARY)
    browser.look(1280, 800)
    browser.open(graph.url)
    browser.wait_for_text("#state-text", "The perception node is not running.")
    graph.start()
    yield browser
    browser.close()


@pytest.fixture
def page(graph: Graph, browser: Browser) -> Iterator[Browser]:
    """The page, opened anew; it must be none that the console complains of."""
    browser.look(1280, 800)
    browser.open(graph.url)
    browser.wait("document.getElementById('camera').value === 'camera'")
    browser.problems.clear()
    yield browser
    assert browser.problems == []


PICTURE = "document.querySelector('#picture:not([hidden])')?.naturalWidth"
SAID = "document.querySelectorAll('#said li').length"
ANSWERS = "document.querySelectorAll('#answers li').length"
WATCHES = "document.querySelectorAll('#watches li').length"
# Pixels of the timeline in the colour of a custom property.
COLOURED = """
(() => {{
  const canvas = document.getElementById('timeline');
  const sample = document.createElement('canvas').getContext('2d');
  const copy = Object.assign(document.createElement('canvas'), {{width: canvas.width, height: canvas.height}});
  copy.getContext('2d', {{ willReadFrequently: true }}).drawImage(canvas, 0, 0);
  sample.fillStyle = getComputedStyle(canvas).getPropertyValue('--{name}');
  sample.fillRect(0, 0, 1, 1);
  const [r, g, b] = sample.getImageData(0, 0, 1, 1).data;
  const {{ data }} = copy.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    count += Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 12 && data[i + 3] > 200;
  return count;
}})()
"""  # noqa: E501


def test_its_clock_keeps_the_rule_of_the_commands(page: Browser) -> None:
    noon = round(datetime.now().replace(hour=12, minute=0, second=7).timestamp(), 1)
    for stamp in (0.0, 14.8, 1_700_000_000.1, noon):
        dom = "import(new URL('dom.js', document.querySelector('script[type=module]').src))"
        shown = page.js(f"{dom}.then((dom) => [1, 3].map((digits) => dom.clock({stamp}, digits)))")
        wanted = clock(round(stamp * 10) * 10**8)
        assert shown[1] == wanted
        assert wanted.startswith(shown[0].removesuffix(" s"))
        assert len(wanted) == len(shown[0]) + 2


def test_it_shows_the_stream(graph: Graph, page: Browser) -> None:
    graph.show(page, f"{SAID} > 1 && {PICTURE}")
    page.wait_for_text("#state-text", "live")
    page.wait("document.getElementById('picture').naturalWidth === 64")  # 0 as the next one loads
    said = page.js("document.querySelector('#said li span').textContent")
    assert said and page.text("#now") == said
    assert "tiny-1.0.0" in page.text("#model")
    assert page.js("document.getElementById('camera').value") == "camera"
    page.wait("document.querySelectorAll('#labels li').length === 2")
    assert [page.text(f"#labels li:nth-child({k}) span") for k in (1, 2)] == LABELS
    graph.show(page, "document.querySelector('#labels li.best')?.textContent.includes('%')")
    page.wait("document.getElementById('rate-out').textContent.includes('Hz')")


def test_the_timeline_draws_scores_words_and_the_threshold(graph: Graph, page: Browser) -> None:
    graph.show(page, f"{SAID} > 1")
    page.wait("Number(document.getElementById('timeline').dataset.steps) > 8")
    for name in ("line", "mark", "shade", "text"):
        assert page.js(COLOURED.format(name=name)) > 10, name
    page.js("document.getElementById('timeline').focus()")
    for key in ("End", "ArrowLeft"):
        page.send("Input.dispatchKeyEvent", type="keyDown", key=key)
    page.wait_for_text("#details", "score")
    assert re.search(r"score -?\d+\.\d\d · segment \d+", page.text("#details"))
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    page.wait("document.getElementById('details').textContent === ''")
    box = page.js("(({x, y, width}) => [x, y, width])(document.getElementById('timeline')"
                     ".getBoundingClientRect())")  # fmt: skip
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] - 5, y=box[1] + 9)
    page.wait_for_text("#details", "segment")
    page.click("input[name=span][value='30']")
    page.wait("Number(document.getElementById('timeline').dataset.steps) > 0")


def test_a_question_is_answered(graph: Graph, page: Browser) -> None:
    page.fill(question="what is red ?", candidates="the cube, the ball ,nothing")
    page.click("#ask button")
    page.wait(f"{ANSWERS} === 3")
    rows = [page.text(f"#answers li:nth-child({k})") for k in (1, 2, 3)]
    assert {re.sub(r"\d+ %", "", row) for row in rows} == {"the cube", "the ball", "nothing"}
    assert page.text("#answer") in rows[0]
    shares = [int(re.findall(r"(\d+) %", row)[0]) for row in rows]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 100) <= 2
    page.fill(candidates="")
    page.click("#ask button")
    page.wait(f"{ANSWERS} === 0 && document.getElementById('answer').textContent")
    page.fill(question="what ?", candidates=",".join("abc" * 20))
    page.click("#ask button")
    page.wait_for_text("#ask-note.bad", "give at most 32")


def test_a_watch_shows_its_score_and_its_end(graph: Graph, page: Browser) -> None:
    page.fill(condition="the red cube falls", threshold="1")
    page.click("#watch button")
    page.wait(f"{WATCHES} === 1")
    graph.show(page, "document.querySelector('#watches .value').textContent.includes('.')")
    assert re.fullmatch(r"-?[01]\.\d\d", page.text("#watches .value"))
    assert "true from 1.00" in page.text("#watches .about")
    assert page.js("document.querySelector('#watches .meter').getAttribute('aria-valuenow')")
    page.click("#watches button")
    page.wait_for_text("#watches li.ended .about", "cancelled")
    page.click("#watches button")
    page.wait(f"{WATCHES} === 0")
    page.fill(condition="a hand", threshold="")
    page.click("#watch button")
    graph.show(page, "document.querySelector('#watches .value')?.textContent.includes('.')")
    assert "true from 0.50" in page.text("#watches .about")  # the bundle's
    for text in ("the red cube falls", "a hand", "nothing moves", "two green balls"):
        page.fill(condition=text, threshold="0.01")
        page.click("#watch button")
        page.wait("document.getElementById('condition').value === ''")
    graph.show(page, "document.querySelector('#watches li.fired') !== null")
    assert re.search(r"came true at .* with 0\.\d\d", page.text("#watches li.fired .about"))


def test_recall_says_that_there_is_no_memory(graph: Graph, page: Browser) -> None:
    page.wait_for_text("#recall-note", "The memory node is not running")
    page.fill(search="a hand")
    page.click("#recall button")
    page.wait_for_text("#recall-note.bad", "memory node")


def test_a_token_is_needed_once_and_leaves_the_address(graph: Graph, page: Browser) -> None:
    token = "a-secret-of-the-robot"
    web = NodeProcess("web_node", graph.domain_id, port=0, token=token)
    web.wait_for_log("The page is at ")
    url = re.findall(r"The page is at (\S+/)", web.log)[0]
    page.open(f"{url}?token={token}")
    page.wait_for_text("#model", "tiny-1.0.0")
    assert page.js("location.href") == url
    assert page.js("document.cookie") == ""  # no script can read it
    page.open(url)
    page.wait_for_text("#model", "tiny-1.0.0")
    page.open(graph.url)
    assert web.end() == 0


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_the_screen(width: int, graph: Graph, page: Browser) -> None:
    page.look(width, 740, "light")
    page.wait(f"innerWidth === {width}")
    assert page.js("document.documentElement.scrollWidth") <= width
    hanging = page.js(
        f"[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && "
        f"e.getBoundingClientRect().right > {width} + 0.5).map((e) => e.tagName + '#' + e.id)"
    )
    page.look(1280, 800)
    assert hanging == []


def test_everything_to_operate_has_a_name(graph: Graph, page: Browser) -> None:
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    page.send("Accessibility.disable")
    operated = {"button", "textbox", "combobox", "checkbox", "radio", "spinbutton", "img", "image"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in operated
    ]
    assert {"button", "textbox", "combobox", "checkbox", "radio"} <= {role for role, _ in found}
    assert all(name.strip() for _, name in found), found


def test_pictures_stop_while_the_page_is_hidden(graph: Graph, page: Browser) -> None:
    def watched(count: int) -> None:
        node = graph.probe.node
        graph.probe.wait(
            lambda: node.count_subscribers("camera/thumbnail") == count, f"{count} subscribers"
        )

    watched(1)
    hide = (
        "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.js(hide.format("true"))
    watched(0)
    page.js(hide.format("false"))
    watched(1)
    page.js("delete document.hidden")


def test_it_connects_again(graph: Graph, page: Browser) -> None:
    page.fill(condition="a hand", threshold="1")
    page.click("#watch button")
    page.wait(f"{WATCHES} === 1")
    page.js("window.mark = 'the same page'")
    assert graph.web.end() == 0
    page.wait_for_text("#state-text", "Trying again")
    page.wait("document.getElementById('state').dataset.level === 'bad'")
    graph.restart_web()
    live = "document.getElementById('state-text').textContent === 'live'"
    graph.show(page, f"{live} && {PICTURE}")
    graph.show(page, "document.querySelector('#watches .about').textContent.includes('true from')")
    assert page.js("window.mark") == "the same page"
    lost, page.problems[:] = page.problems[:], []  # the browser reports connections that fail
    assert all("WebSocket connection" in p or "ERR_CONNECTION_REFUSED" in p for p in lost), lost
