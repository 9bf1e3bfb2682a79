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
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from graph import NodeProcess, Probe, Stream, domain, noise, wait
from rclpy.qos import DurabilityPolicy, QoSProfile

from vljepa_ros.bundle.locate import find_bundle
from vljepa_ros.msg import ModelInfo
from vljepa_ros.stamps import clock, to_ns
from vljepa_ros.tabletop.language import canonical
from vljepa_ros.words.bank import read_phrases

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
BEST = "document.querySelector('#labels li.best') !== null"
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
        page.wait(f"({COLOURED.format(name=name)}) > 10")
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


def test_a_change_has_one_mark(graph: Graph, page: Browser) -> None:
    page.click("input[name=span][value='30']")
    for seed in range(31):  # seconds; all that is shown came while the page listened
        for _ in range(4):
            graph.stream.step(noise(1000 + seed))
    oldest, marks = graph.stream.now - 30 * 10**9, "document.getElementById('timeline').dataset"

    def of_those(messages: list[Any]) -> list[Any]:
        return [one for one in messages if to_ns(one.header.stamp) >= oldest]

    def one_each() -> bool:
        graph.probe.executor.spin_once(timeout_sec=0.05)
        return bool(page.js(f"{marks}.changes") == str(len(of_those(graph.probe.changes))))

    wait(one_each, "a mark for each change")
    high = [step for step in of_those(graph.probe.of("camera")) if step.change_score >= 1]
    assert len(high) > int(page.js(f"{marks}.changes")) > 2
    assert "a change" in page.text("#legend")


def test_a_question_is_answered(graph: Graph, page: Browser) -> None:
    page.fill(question="what is red ?", candidates="the cube, the ball ,nothing")
    page.click("#ask button")
    page.wait(f"{ANSWERS} === 3")
    rows = [page.text(f"#answers li:nth-child({k})") for k in (1, 2, 3)]
    figures = r"\d+ % · -?\d\.\d\d( · weak)?"
    assert {re.sub(figures, "", row) for row in rows} == {"the cube", "the ball", "nothing"}
    assert page.text("#answer") in rows[0]
    shares = [int(re.findall(r"(\d+) %", row)[0]) for row in rows]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 100) <= 2
    page.fill(candidates="the cube")  # alone it has no share of 1, but its cosine
    page.click("#ask button")
    figure = r"/^the cube-?\d\.\d\d( · weak)?$/"
    page.wait(
        f"{ANSWERS} === 1 && {figure}.test(document.querySelector('#answers li').textContent)"
    )
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


def test_the_fields_name_what_the_model_knows(graph: Graph, page: Browser) -> None:
    # In one look: more is said meanwhile.
    known = """(() => {
      const example = (id) => document.getElementById(id).placeholder.replace('e.g. ', '');
      const words = document.querySelectorAll('#said li :nth-child(2)');
      const said = [...words].map((one) => one.textContent);
      const named = [example('condition'), example('search'), ...example('candidates').split(', ')];
      return said.length > 1 && named.every((one) => said.includes(one));
    })()"""
    graph.show(page, known)
    question = page.js("document.getElementById('question').placeholder")
    assert question == f"e.g. {graph.probe.infos[-1].queries[0]}"


def test_what_it_names_of_the_bundles_that_ship_they_know(graph: Graph, page: Browser) -> None:
    shipped = page.js("import('./examples.js').then((module) => module.SHIPPED)")
    tabletop, everyday = shipped["tabletop"], shipped["everyday"]
    words = set(canonical())
    assert {tabletop["condition"], tabletop["search"]} <= words
    assert all(any(f" {one} " in text for text in words) for one in tabletop["candidates"])
    phrases = set(read_phrases(find_bundle("everyday") / "phrases.txt").phrases)
    assert {*everyday["candidates"], everyday["condition"], everyday["search"]} <= phrases


def test_a_graph_without_a_stream_says_so_and_asks_what_the_model_can_be_asked(
    graph: Graph, page: Browser
) -> None:
    web = NodeProcess("web_node", domain_id := domain(), port=0)
    web.wait_for_log("The page is at ")
    probe = Probe(domain_id)
    page.open(re.findall(r"The page is at (\S+)", web.log)[0])
    page.wait_for_text("#no-picture", "The perception node is not running.")
    page.wait_for_text("#details", "No scores yet.")
    page.wait_for_text("#rate-in", "–")
    infos = probe.node.create_publisher(
        ModelInfo, "model_info", QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    )
    info = ModelInfo(model_id="everyday-1.0.0#01234567", queries=[""], stream_id=1)

    def told(condition: str) -> bool:
        infos.publish(info)
        return bool(page.js(condition))

    hidden = "document.getElementById('question-field').hidden"
    wait(lambda: told(hidden), "no question")  # that bundle is asked none
    assert page.js("document.getElementById('question').required") is False
    assert "a person" in page.js("document.getElementById('candidates').placeholder")
    info.model_id, info.queries = "unheard-of-1.0.0#01234567", ["What is it?"]
    wait(lambda: told(f"!{hidden}"), "a question")
    placeholders = "['question', 'candidates', 'condition'].map((id) => document.getElementById(id)"
    assert page.js(f"{placeholders}.placeholder)") == ["e.g. What is it?", "", ""]
    page.open(graph.url)
    assert web.end() == 0
    probe.close()


def test_a_silent_camera_is_not_taken_for_a_live_one(graph: Graph, page: Browser) -> None:
    graph.show(page, PICTURE)
    page.wait("document.getElementById('stale').hidden")
    page.js("{ let now = 1e9; performance.now = () => (now += 4000); }")  # it flies
    page.wait("!document.getElementById('stale').hidden")
    page.wait("document.getElementById('stale').textContent.startsWith('as of ')")
    page.wait("document.getElementById('state-text').textContent !== 'live'")
    page.js("delete performance.now")
    graph.show(page, "document.getElementById('stale').hidden")


def test_what_is_the_matter_with_another_camera_is_told(graph: Graph, page: Browser) -> None:
    values = [KeyValue(key=key, value="0") for key in
              ("rate in (Hz)", "rate out (Hz)", "frame age (s)", "dropped")]  # fmt: skip
    status = DiagnosticStatus(
        name="perception: camera rear", level=DiagnosticStatus.WARN, message="no frames",
        values=values,
    )  # fmt: skip
    health = graph.probe.node.create_publisher(DiagnosticArray, "/diagnostics", 10)

    def shown(condition: str) -> bool:
        health.publish(DiagnosticArray(status=[status]))
        graph.stream.step(noise(1))
        return bool(page.js(condition))

    state = "document.getElementById('state-text').textContent"
    wait(lambda: shown(f"{state} === 'live, but rear: no frames'"), "the other camera")
    page.js("document.getElementById('camera').value = 'rear'")
    page.js("document.getElementById('camera').dispatchEvent(new Event('change'))")
    wait(lambda: shown(f"{state} === 'No frames: no frames'"), "the other camera alone")
    graph.probe.node.destroy_publisher(health)
    page.wait("document.getElementById('picture').hidden")
    assert "no frames" in page.text("#no-picture")


# The lowest contrast of text with what is behind it, and where; beside it that of the fields' rims.
CONTRAST = """
(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const over = ([r, g, b, a = 1], behind) => [r, g, b].map((c, i) => a * c + (1 - a) * behind[i]);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const own = parts(getComputedStyle(element).backgroundColor);
    return own.length === 3 ? own : over(own, behind(element.parentElement));
  };
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    if (!element.checkVisibility() || element.closest('figure')) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const opacity = (one) => (one ? getComputedStyle(one).opacity * opacity(one.parentElement) : 1);
    const ink = (colour) => over([...parts(colour).slice(0, 3), opacity(element)], ground);
    const name = `${element.tagName}#${element.id}.${element.className}`;
    if ([...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
      found.push([ratio(ink(style.color), ground), 4.5, name]);
    const bar = element.closest('.bars li')?.querySelector('.bar');
    const colour = bar && parts(getComputedStyle(bar).backgroundColor);
    if (bar && element.textContent) found.push([ratio(ink(style.color), colour), 4.5, name + ' on its bar']);
    if (element.matches('input, select')) {
      const around = behind(element.parentElement);
      found.push([ratio(parts(style.borderTopColor), around), 3, name + ' rim']);
      const hint = getComputedStyle(element, '::placeholder');
      if (element.placeholder) found.push([ratio(parts(hint.color), ground), 4.5, name + ' placeholder']);
    }
  }
  return [found.length, found.filter(([value, least]) => value < least)];
})()
"""  # noqa: E501


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_text_stands_out_from_its_ground(scheme: str, graph: Graph, page: Browser) -> None:
    page.look(1280, 800, scheme)
    graph.show(page, f"{SAID} > 1 && {BEST}")
    page.fill(question="what ?", candidates="a cube, a ball", condition="a hand", threshold="1")
    for form, row in (("ask", "#answers li"), ("watch", "#watches .about")):
        page.click(f"#{form} button")
        page.wait(f"document.querySelector('{row}') !== null")
    page.fill(question="", candidates="", condition="")
    looked, faint = page.js(CONTRAST)
    page.click("#watches button")
    assert looked > 50 and faint == []  # WCAG 2.2 AA


def test_the_keyboard_reaches_everything_and_shows_where_it_is(graph: Graph, page: Browser) -> None:
    page.js("document.body.focus()")
    reached: list[str] = []
    for _ in range(40):
        for kind in ("keyDown", "keyUp"):
            page.send("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab",
                      windowsVirtualKeyCode=9)  # fmt: skip
        name, ring = page.js(
            "(({id, form, name, parentElement}) => [id || name || form?.id, "
            "[document.activeElement, parentElement].some((e) => "
            "e && getComputedStyle(e).outlineStyle !== 'none')])(document.activeElement)"
        )
        if name in reached:
            break
        assert ring or not name, name
        reached.append(name)
    wanted = ["camera", "span", "timeline", "question", "candidates", "ask", "condition"]
    order = [name for name in reached if name in wanted]
    assert order == wanted, reached
    assert {"threshold", "watch", "search", "here", "recall"} <= set(reached)


SHIFTED = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const { value, sources } of list.getEntries())
    window.shifts.push([value, sources.map(({ node: n }) => n?.id || n?.className || n?.nodeName)]);
}).observe({ type: 'layout-shift', buffered: true });
"""


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_moves_while_the_stream_comes(width: int, graph: Graph, page: Browser) -> None:
    page.look(width, 800)
    script = page.send("Page.addScriptToEvaluateOnNewDocument", source=SHIFTED)
    page.open(graph.url)
    page.send("Page.removeScriptToEvaluateOnNewDocument", **script)
    graph.show(page, f"{SAID} > 1 && {PICTURE} && {BEST}")
    shifts = page.js("window.shifts")
    assert sum(value for value, _ in shifts) < 0.1, shifts  # what Web Vitals call good


@pytest.mark.parametrize(
    ("width", "height", "picture"),
    [(390, 844, 320), (800, 600, 400), (1280, 800, 420), (1920, 1080, 580)],
)
def test_the_first_screen_shows_the_picture_large_and_what_is_said(
    width: int, height: int, picture: int, graph: Graph, page: Browser
) -> None:
    page.look(width, height)
    page.wait(f"innerWidth === {width}")
    box = "(({x, y, right, bottom, width}) => [x, y, right, bottom, width])(document.querySelector"
    figure = page.js(f"{box}('.live figure').getBoundingClientRect())")
    said = page.js(f"{box}('.said').getBoundingClientRect())")
    chart = page.js(f"{box}('.timeline').getBoundingClientRect())")
    assert figure[4] >= picture and figure[3] <= height
    assert said[1] + 60 < height
    if width >= 800:
        assert chart[1] < height - 60
    page.look(1280, 800)


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
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
    page.wait("document.getElementById('picture').hidden")  # nothing looks as if it lived
    for name in ("rate-in", "score"):
        page.wait(f"document.getElementById('{name}').textContent === '–'")
    page.wait("!document.getElementById('labels').textContent.includes('%')")
    graph.restart_web()
    live = "document.getElementById('state-text').textContent === 'live'"
    graph.show(page, f"{live} && {PICTURE}")
    graph.show(page, "document.querySelector('#watches .about').textContent.includes('true from')")
    assert page.js("window.mark") == "the same page"
    lost, page.problems[:] = page.problems[:], []  # the browser reports connections that fail
    assert all("WebSocket connection" in p or "ERR_CONNECTION_REFUSED" in p for p in lost), lost
