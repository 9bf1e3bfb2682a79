"""The memory node: what was perceived is kept as moments, and found again by its meaning.

Invariant: the executor's callbacks put messages into a queue; the worker alone records, writes and
searches. Nothing that the node heard is lost silently: messages that do not fit, that the queue had
no room for, and moments that cannot be written are counted and reported.
"""

from __future__ import annotations

import dataclasses
import math
import re
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from vljepa_ros.bundle.spec import Bundle, load_bundle
from vljepa_ros.client.source import OTHERS, Sources
from vljepa_ros.errors import VLJepaError, counted
from vljepa_ros.memory.fleet import COLLECTION
from vljepa_ros.memory.moment import Moment
from vljepa_ros.memory.recorder import Recorder
from vljepa_ros.memory.store import Limits, MomentStore, default_store
from vljepa_ros.memory.writer import Writer
from vljepa_ros.msg import ModelInfo, SemanticChange, SemanticEmbedding, Utterance
from vljepa_ros.ros.diagnostics import ERROR, WARN, Rate, Status
from vljepa_ros.ros.lifecycle import AUTOSTART, BUNDLE, ModelNode
from vljepa_ros.ros.parameters import Spec
from vljepa_ros.stamps import to_ns

from .poses import Poses
from .recall import Recall
from .store_state import StoreState

DEPTH = 1000  # messages of each topic that DDS keeps while a callback is late
QUEUE = 4096  # messages that wait for the worker
PIECE = 256  # of them in one turn of the worker
RETRY = 1.0  # seconds between two tries to write what could not be written
CAMERAS = 64  # whose thumbnails are listened to
MODELS = 16  # foreign models that are reported

SPECS = (
    AUTOSTART,
    BUNDLE,
    Spec("store", "", "Folder of the moments; empty: $VLJEPA_MEMORY, else "
         "~/.local/share/vljepa/memory."),
    Spec("robot", "", "Name of this robot in its moments; empty: the host's name."),
    Spec("max_moments", 100_000, "Moments that are kept, the oldest go first; 0: no limit.",
         low=0, high=10_000_000),
    Spec("max_megabytes", 2048, "Megabytes on the disk, the oldest go first; 0: no limit.",
         low=0, high=10_000_000),
    Spec("max_days", 0.0, "Days that a moment is kept; 0: no limit.", low=0, high=36500),
    Spec("pose_frame", "", "TF frame of the robot, whose pose is kept with each moment; empty: "
         "none."),
    Spec("pose_reference", "map", "TF frame that the pose is given in."),
    Spec("thumbnails", True, "Keep a small picture with each moment."),
    Spec("server", "", "URL of the fleet's Qdrant server, which recalls with `fleet` ask; its key "
         "is in the environment, QDRANT_API_KEY; empty: none."),
    Spec("collection", COLLECTION, "Collection on that server."),
)  # fmt: skip


class MemoryNode(ModelNode):
    """The moment store; `recall` and `pin`. No engines: perception embeds what is asked."""

    specs = SPECS

    def __init__(self, **options: Any) -> None:
        self._open = StoreState()
        self.refused = 0  # messages that do not fit
        self.dropped = 0  # messages that the queue had no room for
        self._writer: Writer | None = None
        self._recorder: Recorder | None = None
        self._queue: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._poses: Poses | None = None
        self._topics: list[Any] = []
        self._thumbnails: dict[str, Any] = {}
        self._size = (0, 0)  # moments and bytes
        self._sized = 0  # moments written when that was measured
        self._measured = self._failed = -math.inf  # time.monotonic()
        self._problem = ""  # why moments cannot be written
        self._reported: set[str] = set()
        self._rate = Rate()
        self._seen = (0, 0, 0, 0)
        super().__init__("memory", **options)
        self._sources = Sources(
            self.get_logger().warning, lambda camera: self._put("begin_anew", camera)
        )
        self._recalls = Recall(self, self._open)

    # -------------------------------------------------------------- hooks

    def load(self) -> None:
        """Open the store."""
        values = self.values()
        bundle = load_bundle(values["bundle"], verify=False)
        folder = Path(values["store"]).expanduser() if values["store"] else default_store()
        limits = Limits(values["max_moments"], values["max_megabytes"], values["max_days"])
        store = MomentStore(folder, bundle.model_id, bundle.embedding_dim, limits)
        self._open.bundle, self._open.store = bundle, store
        self._open.cameras = set(store.cameras())
        self._writer = Writer(store)
        self._recorder = Recorder(
            values["robot"] or socket.gethostname(), self._keep, self._writer.say
        )
        self._measure()
        self.get_logger().info(
            f"{counted(self._size[0], 'moment')} of {bundle.model_id} in {folder}, "
            f"{self._size[1] / 1e6:.1f} MB."
        )

    def setup(self) -> None:
        """Listen to TF, where the pose is wanted."""
        values = self.values()
        if values["pose_frame"]:
            try:
                self._poses = Poses(self, values["pose_reference"], values["pose_frame"])
            except ImportError as error:
                self.get_logger().warning(
                    f"Moments are kept without a pose: parameter 'pose_frame' needs tf2_ros "
                    f"({error}); install it, or leave the parameter empty."
                )
        self._recalls.open(values["server"], values["collection"])

    def start(self) -> None:
        """Listen to the stream."""
        for kind, topic, callback in (
            (ModelInfo, "model_info", self._sources.on_info),
            (SemanticEmbedding, "embeddings", self._on_embedding),
            (SemanticChange, "changes", self._on_change),
            (Utterance, "utterances", self._on_utterance),
        ):
            self._topics.append(
                self.create_subscription(kind, topic, callback, QoSProfile(depth=DEPTH))
            )

    def stop(self) -> None:
        """Listen no longer; what is open becomes moments."""
        for subscription in (*self._topics, *self._thumbnails.values()):
            self.destroy_subscription(subscription)
        self._topics.clear()
        self._thumbnails.clear()
        if self.worker is not None:
            self.worker.call(self._end)

    def teardown(self) -> None:
        """Take back what `setup` made."""
        self._recalls.close()
        if self._poses is not None:
            self._poses.close()
            self._poses = None

    def unload(self) -> None:
        """Close the store."""
        if self._open.store is not None:
            self._open.store.close()
        self._open.store = self._writer = self._recorder = None

    @property
    def bundle(self) -> Bundle | None:
        """The bundle whose moments are kept."""
        return self._open.bundle if self._open.store is not None else None

    # -------------------------------------------------------------- the executor's side

    def _on_embedding(self, message: SemanticEmbedding) -> None:
        if not self._fits(message):
            return
        embedding = np.array(message.embedding, np.float32)
        if embedding.size != self._dim or not np.isfinite(embedding).all():
            self._refuse(
                f"an embedding of camera '{message.camera}' is not {self._dim} finite numbers"
            )
            return
        stamp_ns = to_ns(message.header.stamp)
        if stamp_ns < 0:
            self._refuse(f"a stamp of camera '{message.camera}' is before 1970")
            return
        if message.camera not in self._thumbnails:
            self._hear(message.camera)
        self._put("step", message.camera, message.query, stamp_ns, message.segment_id, embedding,
                  message.familiarity)  # fmt: skip

    def _on_change(self, message: SemanticChange) -> None:
        if self._fits(message):
            self._put(
                "change", message.camera, message.query,
                message.segment_id, to_ns(message.segment_start),
                message.previous_segment_id, to_ns(message.previous_segment_start),
            )  # fmt: skip

    def _on_utterance(self, message: Utterance) -> None:
        if not math.isfinite(message.confidence):
            self._refuse("the confidence of an utterance is not a number")
        elif self._fits(message):
            self._put("words", message.camera, message.query, message.segment_id,
                      message.text, message.confidence)  # fmt: skip

    def _hear(self, camera: str) -> None:
        """Listen to the thumbnails of a camera that was heard for the first time."""
        self._open.cameras.add(camera)
        usable = re.fullmatch(r"[A-Za-z]\w*", camera, re.ASCII) and len(self._thumbnails) < CAMERAS
        if not (usable and self.get_parameter("thumbnails").value):
            return

        def put(message: CompressedImage) -> None:
            self._put("thumbnail", camera, to_ns(message.header.stamp), bytes(message.data))

        qos = QoSProfile(depth=DEPTH // 10, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._thumbnails[camera] = self.create_subscription(
            CompressedImage, f"{camera}/thumbnail", put, qos
        )

    @property
    def _dim(self) -> int:
        return self._open.bundle.embedding_dim if self._open.bundle is not None else 0

    def _fits(self, message: Any) -> bool:
        """Whether a message comes from the store's model, and the stream that is recorded."""
        bundle = self._open.bundle
        if bundle is None or message.model_id != bundle.model_id:
            own = bundle.model_id if bundle is not None else "none"
            self._refuse(
                f"messages come from model '{message.model_id}', and the memory's is '{own}'; give "
                "both nodes the same bundle"
            )
            return False
        return self._sources.takes(message)

    def _refuse(self, problem: str) -> None:
        """Count a message that does not fit, and say why, once."""
        self.refused += 1
        if problem not in self._reported and len(self._reported) < MODELS:
            self._reported.add(problem)
            self.get_logger().warning(f"Not remembered: {problem}.")

    def _put(self, method: str, *arguments: Any) -> None:
        """Give a message to the worker."""
        if len(self._queue) >= QUEUE:
            self.dropped += 1
            return
        self._queue.append((method, arguments))
        if self.worker is not None:
            self.worker.wake()

    # -------------------------------------------------------------- the worker's side

    def work(self) -> bool:
        """Record some of what was heard, and write what has become a moment."""
        if self._recorder is None:
            return False
        for _ in range(min(PIECE, len(self._queue))):
            method, arguments = self._queue.popleft()
            getattr(self._recorder, method)(*arguments)
        if time.monotonic() - self._failed >= RETRY:
            self._write()
        return bool(self._queue)

    def _keep(self, moment: Moment) -> None:
        """Take a moment from the recorder."""
        if self._writer is None:
            return
        if self._poses is not None:
            moment = dataclasses.replace(moment, pose=self._poses.at(moment.end_ns))
        self._writer.keep(moment)

    def _write(self) -> None:
        """Write what waits; where that fails, it is tried again."""
        writer = self._writer
        if writer is None:
            return
        try:
            if writer.waiting:
                writer.write()
            if self._problem:
                self.get_logger().info("Moments can be written again, and those that waited are.")
            self._problem, self._failed = "", -math.inf
        except VLJepaError as error:
            if str(error) != self._problem:
                self.get_logger().error(f"{error} Moments wait in memory, and are tried again.")
            self._problem, self._failed = str(error), time.monotonic()
        if time.monotonic() - self._measured >= RETRY:
            self._measure()

    def _measure(self) -> None:
        store = self._open.store
        if store is not None:
            self._size, self._measured = (len(store), store.size()), time.monotonic()
            self._sized = self._writer.written if self._writer is not None else 0

    def _end(self) -> None:
        """The stream ends: record what was heard, and make moments of what is open."""
        if self._recorder is None or self._writer is None:
            return
        while self._queue:
            self.work()
        self._recorder.flush()
        self._write()
        if self._writer.waiting:
            left = counted(self._writer.waiting, "moment")
            self.get_logger().error(f"{left} could not be written.")

    # -------------------------------------------------------------- diagnostics

    def statuses(self) -> list[Status]:
        """A line for the store."""
        writer, worker = self._writer, self.worker
        if writer is None or worker is None:
            return []
        if writer.waiting or writer.written != self._sized:
            worker.wake()  # to write or to measure again, also where nothing more is heard
        status = Status("store")
        store = self._open.store
        status.values = {
            "folder": str(store.folder.absolute()) if store is not None else "",
            "moments": self._size[0],
            "bytes": self._size[1],
            "written/s": self._rate.update(writer.written),
            "pending": writer.waiting,
            "waiting": len(self._queue),
            "refused": self.refused,
            "of other streams": self._sources.refused,
            "dropped": self.dropped,
            "lost": writer.lost,
            "recalls": self._recalls.count,
            "last recall (ms)": self._recalls.latency * 1e3,
        }
        refused, dropped, lost, others = self._seen
        self._seen = (self.refused, self.dropped, writer.lost, self._sources.refused)
        if self._problem:
            status.level, status.message = ERROR, self._problem
        elif writer.lost > lost or self.dropped > dropped:
            status.level, status.message = ERROR, "moments are lost: writing is too slow"
        elif self.refused > refused:
            status.level, status.message = WARN, "messages do not fit; see the log"
        elif self._sources.refused > others:
            status.level, status.message = WARN, OTHERS
        return [status]
