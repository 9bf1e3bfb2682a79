"""The `watch` action between processes: it fires or it does not, and ends in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from action_msgs.msg import GoalStatus
from agent import Agent
from builtin_interfaces.msg import Duration
from bundles import make_bundle
from graph import NodeProcess, Probe, Stream, domain, noise
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile
from rosgraph_msgs.msg import Clock

from vljepa_ros.action import Watch
from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.thumbnails import thumbnail
from vljepa_ros.ros.messages import to_time
from vljepa_ros.stamps import to_ns

NEVER, ALWAYS = 0.999, 1e-6  # thresholds; the tiny bundle's cosines lie in between, or below both
BUNDLE_THRESHOLD = 0.6
SUCCEEDED, CANCELED, ABORTED = (
    GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED, GoalStatus.STATUS_ABORTED,
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    thresholds = {"gate": 3.0, "change": 0.05, "watch": BUNDLE_THRESHOLD}
    return make_bundle(tmp_path_factory.mktemp("watch") / "tiny", thresholds=thresholds)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Runtime]:
    model = Runtime(load_bundle(bundle), "onnxruntime-cpu", parts=("y_encoder",))
    yield model
    model.close()


@pytest.fixture(scope="module")
def domain_id() -> int:
    return domain()


@pytest.fixture(scope="module")
def perception(bundle: Path, domain_id: int) -> Iterator[tuple[NodeProcess, Probe]]:
    node = NodeProcess("perception_node", domain_id, bundle=bundle, cameras=["front", "rear"])
    node.wait_for_log("Active.")
    probe = Probe(domain_id)
    yield node, probe
    probe.close()
    assert node.end() == 0
    assert "Traceback" not in node.log


@pytest.fixture(scope="module")
def probe(perception: tuple[NodeProcess, Probe]) -> Probe:
    return perception[1]


@pytest.fixture(scope="module")
def client(probe: Probe) -> Iterator[ActionClient]:
    # Several results or scores at once are more than a client keeps by default.
    deep = QoSProfile(depth=1000)
    client = ActionClient(
        probe.node, Watch, "watch",
        result_service_qos_profile=deep, feedback_sub_qos_profile=deep,
    )  # fmt: skip
    probe.wait(client.server_is_ready, "the action server")
    yield client
    client.destroy()


@pytest.fixture(autouse=True)
def _none_is_left(probe: Probe) -> Iterator[None]:
    """No watch of a test that failed stands in the way of the next."""
    Goal.all.clear()
    yield
    left = [goal for goal in Goal.all if not goal.ended.done()]
    for goal in left:
        goal.handle.cancel_goal_async()
    probe.wait(lambda: all(goal.ended.done() for goal in left), "what is left to end")


@pytest.fixture(scope="module")
def camera(probe: Probe) -> Stream:
    return Stream(probe, "front", noise(0))


class Goal:
    """One goal: its feedback, and its result when it ends."""

    all: ClassVar[list[Goal]] = []

    def __init__(self, probe: Probe, client: ActionClient, **fields: Any) -> None:
        self.probe = probe
        self.feedback: list[Any] = []
        goal = Watch.Goal(**{"camera": "front", "text": "the red cube", **fields})
        sent = client.send_goal_async(goal, lambda message: self.feedback.append(message.feedback))
        probe.wait(sent.done, "the goal to be accepted")
        self.handle = sent.result()
        assert self.handle.accepted
        self.ended = self.handle.get_result_async()
        Goal.all.append(self)

    def result(self) -> tuple[int, Any]:
        """Status and result."""
        self.probe.wait(self.ended.done, "the goal to end")
        return self.ended.result().status, self.ended.result().result

    def refused(self, ended: int = ABORTED) -> str:
        """The sentence with which it was refused or ended."""
        status, result = self.result()
        assert (status, result.success) == (ended, False)
        return result.message

    def wait_for_feedback(self, camera: Stream, seed: int = 0) -> None:
        """Step until the watch is heard of."""
        before = len(self.feedback)

        def heard() -> bool:
            camera.step(noise(seed))
            return len(self.feedback) > before

        self.probe.wait(heard, "feedback")


def cosine(model: Runtime, text: str, embedding: Any) -> float:
    return float(model.embed_text([text])[0] @ np.asarray(embedding, np.float32))


def likely(camera: Stream, model: Runtime, seed: int = 0) -> str:
    """A condition that is met, somewhat, by what the camera sees."""
    (step,) = camera.step(noise(seed))
    words = "the red green cube ball falls on table".split()
    texts = [f"{a} {b}" for a in words for b in ("a", "?")]
    return max(texts, key=lambda text: cosine(model, text, step.embedding))


def test_feedback_is_the_cosine_at_every_step(
    camera: Stream, probe: Probe, client: ActionClient, model: Runtime
) -> None:
    goal = Goal(probe, client, threshold=NEVER)
    goal.wait_for_feedback(camera)
    stamps = []
    for k in range(5):
        camera.step(noise(10 + k))
        stamps.append(camera.now)
    probe.wait(lambda: to_ns(goal.feedback[-1].stamp) == camera.now, "the last feedback")
    heard = {to_ns(f.stamp): f.score for f in goal.feedback}
    for stamp in stamps:
        embedding = probe.at("front", stamp)[0].embedding
        assert heard[stamp] == pytest.approx(cosine(model, "the red cube", embedding), abs=1e-5)
    assert not goal.ended.done()
    probe.wait_for_health("perception: watches", lambda v: v["standing"] == "1")
    probe.wait_for_health("perception: stages", lambda v: float(v["watches p50 (ms)"]) > 0)
    goal.handle.cancel_goal_async()
    goal.result()


def test_it_fires_at_the_step_that_reaches_the_threshold(
    camera: Stream, probe: Probe, client: ActionClient, model: Runtime
) -> None:
    text = likely(camera, model, 3)
    pictures = [noise(20 + k) for k in range(4)] + [noise(3)] * 6
    scores = []
    for picture in pictures:  # once to see, once to watch
        (step,) = camera.step(picture)
        scores.append(cosine(model, text, step.embedding))
    threshold = max(scores[3:]) - 1e-4  # of clips that will be the same again
    assert threshold > 0
    for _ in range(4):
        camera.step(noise(20))
    goal = Goal(probe, client, text=text, threshold=threshold)
    sentinel = Goal(probe, client, text=text, threshold=NEVER)
    sentinel.wait_for_feedback(camera, 20)
    for picture in pictures:
        camera.step(picture)
    status, result = goal.result()
    assert (status, result.success, result.message) == (SUCCEEDED, True, "")
    moment = result.moment
    fired = to_ns(moment.end)
    began = to_ns(goal.feedback[0].stamp)
    steps = [e for e in probe.of("front") if began <= to_ns(e.header.stamp)]
    first = next(e for e in steps if cosine(model, text, e.embedding) >= threshold)
    assert fired == to_ns(first.header.stamp)
    assert moment.score == pytest.approx(cosine(model, text, first.embedding), abs=1e-5)
    assert (moment.camera, moment.query) == ("front", "What is happening?")
    assert (moment.segment_id, moment.text) == (first.segment_id, "")
    change = [c for c in probe.changes if c.camera == "front" and c.segment_id == first.segment_id]
    assert moment.start == change[-1].segment_start
    assert moment.thumbnail.format == "jpeg"
    assert moment.thumbnail.header == first.header
    assert cv2.imdecode(np.frombuffer(moment.thumbnail.data, np.uint8), 1).shape == (48, 64, 3)
    # The sentinel heard steps after that one, and never fired.
    probe.wait(lambda: to_ns(sentinel.feedback[-1].stamp) == camera.now, "the last feedback")
    assert not sentinel.ended.done()
    sentinel.handle.cancel_goal_async()
    assert sentinel.result()[0] == CANCELED


def test_the_bundles_threshold_holds_where_none_is_given(
    camera: Stream, probe: Probe, client: ActionClient, model: Runtime
) -> None:
    goals = {
        text: Goal(probe, client, text=text)
        for text in (likely(camera, model, 5), "the red cube", "nothing", "a hand stops ?")
    }
    sentinel = Goal(probe, client, threshold=NEVER)
    sentinel.wait_for_feedback(camera, 5)
    (step,) = camera.step(noise(5))
    probe.wait(lambda: to_ns(sentinel.feedback[-1].stamp) == camera.now, "the last feedback")
    steps = [e for e in probe.of("front") if e.header.stamp.sec >= camera.begin // 10**9]
    for goal in goals.values():
        heard = [f.score for f in goal.feedback]
        came_true = max(heard) >= BUNDLE_THRESHOLD
        if came_true:
            assert goal.result()[0] == SUCCEEDED
            assert all(score < BUNDLE_THRESHOLD for score in heard[:-1])
        else:
            assert not goal.ended.done()
    assert steps and step
    for goal in (sentinel, *goals.values()):
        if not goal.ended.done():
            goal.handle.cancel_goal_async()
            assert goal.result()[0] == CANCELED


def test_what_is_true_already_fires_at_the_next_step_with_its_picture(
    camera: Stream, probe: Probe, client: ActionClient, model: Runtime
) -> None:
    text = likely(camera, model, 7)
    for _ in range(6):
        (step,) = camera.step(noise(7))
    assert cosine(model, text, step.embedding) > ALWAYS
    goal = Goal(probe, client, text=text, threshold=ALWAYS)

    def ended() -> bool:
        camera.step(noise(7))  # the gate passes over it: the same picture again
        return goal.ended.done()

    probe.wait(ended, "the goal to end")
    status, result = goal.result()
    assert status == SUCCEEDED
    assert len(goal.feedback) == 1
    assert bytes(result.moment.thumbnail.data) == thumbnail(noise(7))


def test_a_cancelled_goal_ends_cancelled(
    camera: Stream, probe: Probe, client: ActionClient
) -> None:
    goal = Goal(probe, client, threshold=NEVER)
    cancelling = goal.handle.cancel_goal_async()
    status, result = goal.result()
    assert (status, result.success) == (CANCELED, False)
    assert result.message == "The watch was cancelled."
    probe.wait(cancelling.done, "an answer to the request")
    assert len(cancelling.result().goals_canceling) == 1
    again = goal.handle.cancel_goal_async()
    probe.wait(again.done, "an answer to the second request")
    assert len(again.result().goals_canceling) == 0
    probe.wait_for_health("perception: watches", lambda v: v["standing"] == "0")


def test_a_timeout_fires_though_the_stream_stalls(
    camera: Stream, probe: Probe, client: ActionClient
) -> None:
    timeout = Duration(nanosec=200_000_000)
    stalled = Goal(probe, client, threshold=NEVER, timeout=timeout)
    sentence = stalled.refused(ended=SUCCEEDED)  # it watched to the end: no error
    assert "did not come true within 0.2 s; camera 'front' made no step" in sentence
    never = Goal(probe, client, threshold=NEVER, timeout=Duration(sec=1))
    never.wait_for_feedback(camera)
    sentence = never.refused(ended=SUCCEEDED)
    assert "'the red cube' did not come true within 1 s; its best score was" in sentence
    assert "of 1.00." in sentence


REFUSED: dict[str, dict[str, Any]] = {
    "The condition is empty": {"text": "  "},
    "The condition has 1,001 characters": {"text": "a" * 1001},
    "control character U+0007": {"text": "the \a rings"},
    "There is no camera 'side'; there are: front, rear (nothing seen yet).": {"camera": "side"},
    "Name one of the cameras: front, rear": {"camera": ""},
    "The threshold must be in 0..1, where 0 is the bundle's, not 1.5.": {"threshold": 1.5},
    "not -0.5.": {"threshold": -0.5},
    "not nan.": {"threshold": float("nan")},
    "The timeout must not be negative, as -1 s": {"timeout": Duration(sec=-1)},
}


@pytest.mark.parametrize("words", list(REFUSED))
def test_what_cannot_be_watched_for_is_refused_in_a_sentence(
    words: str, camera: Stream, probe: Probe, client: ActionClient
) -> None:
    assert words in Goal(probe, client, **REFUSED[words]).refused()


def test_a_camera_may_begin_after_its_watch(
    probe: Probe, client: ActionClient, camera: Stream
) -> None:
    goal = Goal(probe, client, camera="rear", threshold=NEVER)
    rear = Stream(probe, "rear", noise(1))
    goal.wait_for_feedback(rear)
    probe.wait(lambda: to_ns(goal.feedback[-1].stamp) == rear.now, "the last feedback")
    feedback = len(goal.feedback)
    other = Goal(probe, client, threshold=NEVER)
    other.wait_for_feedback(camera)  # a step of the other camera is none of its own
    assert len(goal.feedback) == feedback
    for one in (goal, other):
        one.handle.cancel_goal_async()
        assert one.result()[0] == CANCELED


def test_many_watches_end_together_when_the_node_is_deactivated(
    camera: Stream, probe: Probe, client: ActionClient
) -> None:
    goals = [
        Goal(probe, client, text=f"{a} {b}", threshold=NEVER)
        for a in ("red", "green", "blue", "yellow")
        for b in ("cube", "ball", "block", "hand")
    ]
    for goal in goals:
        goal.wait_for_feedback(camera)
    assert probe.transition("perception", "deactivate")
    for goal in goals:
        assert goal.refused() == "/perception is no longer active."
    assert "/perception is inactive; activate it" in Goal(probe, client).refused()
    assert probe.transition("perception", "cleanup")
    assert "/perception is unconfigured; activate it" in Goal(probe, client).refused()
    assert probe.transition("perception", "configure")
    assert probe.transition("perception", "activate")
    goal = Goal(probe, client, threshold=NEVER)
    camera.restart(noise(9))
    goal.wait_for_feedback(camera)
    goal.handle.cancel_goal_async()
    assert goal.result()[0] == CANCELED


def test_a_watch_ends_when_its_client_has_gone(
    camera: Stream,
    probe: Probe,
    client: ActionClient,
    domain_id: int,
    perception: tuple[NodeProcess, Probe],
) -> None:
    """It says who it is, as SemanticClient does, so that the watch of another stays."""
    stays = Goal(probe, client, threshold=NEVER)
    stays.wait_for_feedback(camera)
    node = perception[0]
    agent = Agent(domain_id)
    scores: list[tuple[float, int]] = []
    agent.client().watch("a cube", "front", NEVER, on_feedback=lambda *score: scores.append(score))

    def heard() -> bool:
        camera.step(noise(0))
        return bool(scores)

    probe.wait(heard, "its feedback")
    for _ in range(2):  # the node looks at who is there more often than it tells of its health
        probe.wait_for_health("perception: watches", lambda v: v["standing"] == "2")
    agent.clients.clear()  # as a process that dies, it cancels nothing
    agent.close()
    node.wait_for_log("The client that watched for 'a cube' has gone.")
    assert not stays.ended.done()
    probe.wait_for_health("perception: watches", lambda v: v["standing"] == "1")
    stays.handle.cancel_goal_async()
    assert stays.result()[0] == CANCELED
    probe.wait_for_health("perception: watches", lambda v: v["standing"] == "0")


def test_too_many_watches_are_refused(camera: Stream, probe: Probe, client: ActionClient) -> None:
    from vljepa_ros.nodes.perception.watch_action import MOST

    goals = [Goal(probe, client, threshold=NEVER) for _ in range(MOST)]
    assert f"{MOST} watches stand already" in Goal(probe, client, threshold=NEVER).refused()
    for goal in goals:
        goal.handle.cancel_goal_async()
    probe.wait(lambda: all(goal.ended.done() for goal in goals), "all to be cancelled")
    assert {goal.ended.result().status for goal in goals} == {CANCELED}


def test_a_process_that_ends_still_sends_the_result(bundle: Path) -> None:
    domain_id = domain()
    node = NodeProcess("perception_node", domain_id, bundle=bundle, use_sim_time=True)
    node.wait_for_log("Active.")
    probe = Probe(domain_id)
    client = ActionClient(probe.node, Watch, "watch")
    clock = probe.node.create_publisher(Clock, "/clock", 10)
    try:
        probe.wait(client.server_is_ready, "the action server")
        # Simulated time that stands still is no time at all; when it goes on, the timeout fires.
        timed = Goal(probe, client, camera="", threshold=NEVER, timeout=Duration(sec=10))
        stays = Goal(probe, client, camera="", threshold=NEVER, timeout=Duration(sec=10**6))
        now = [1_000_000_000]

        def ticks() -> bool:
            now[0] += 500_000_000
            clock.publish(Clock(clock=to_time(now[0])))
            return timed.ended.done()

        probe.wait(ticks, "the timeout by simulated time")
        assert now[0] > 10_000_000_000
        assert "did not come true within 10 s" in timed.refused(ended=SUCCEEDED)
        assert not stays.ended.done()
        node.process.terminate()
        assert stays.refused() == "/perception is no longer active."
    finally:
        client.destroy()
        probe.close()
        assert node.end() == 0
    assert "Traceback" not in node.log
