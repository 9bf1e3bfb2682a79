"""A semantic stream as ROS 2 messages in an MCAP file; needs no ROS.

Invariant: what is written is what the nodes would have published: the same topics, types and
stamps; a message's log time is that of the image it comes from. The file appears whole or not at
all, and never takes the place of another.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.perceiver import Step
from vljepa_ros.perception.settings import Settings
from vljepa_ros.words.speaker import Said

from .bags import BagError
from .offline import RecordedFrame

TOPICS = {
    "/embeddings": "SemanticEmbedding",
    "/changes": "SemanticChange",
    "/utterances": "Utterance",
    "/model_info": "ModelInfo",
}
PARTS = ("Setting",)  # types that those have in them
LATCHED = "/model_info"
PICTURE = "sensor_msgs/msg/CompressedImage"  # of `/<camera>/thumbnail`


def message_folder() -> Path:
    """Where the package's .msg files are: the installed share, or the source tree. BagError."""
    prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    folders = [Path(p) / "share/vljepa_ros/msg" for p in [*prefixes, sys.prefix]]
    folders.append(Path(__file__).resolve().parents[2] / "msg")
    for folder in folders:
        if (folder / "SemanticEmbedding.msg").is_file():
            return folder
    raise BagError(
        "The message definitions of vljepa_ros are not installed: SemanticEmbedding.msg is in none "
        f"of {', '.join(map(str, folders))}; install the package again."
    )


def check_stream_file(out: Path) -> None:
    """BagError where `StreamFile` would not write `out`."""
    if out.suffix != ".mcap":
        raise BagError(f"The stream is written as MCAP: {out} must have a name in .mcap.")
    if not out.parent.is_dir():
        raise BagError(f"There is no folder {out.parent} for {out.name}; make it first.")
    _refuse_old(out)


def _refuse_old(out: Path) -> None:
    if out.exists():
        raise BagError(f"{out} is there already; give another name, or remove it.")


class StreamFile:
    """The file `out`, a .mcap that does not exist yet, as a context manager. Raises BagError.

    What is written before the end of the context is lost where that ends with an exception.
    """

    def __init__(self, out: Path, model: Runtime, settings: Settings) -> None:
        self._out, self._model, self._settings = out, model, settings
        self._model_id = model.bundle.model_id
        check_stream_file(out)

    def __enter__(self) -> StreamFile:
        try:
            from rosbags.rosbag2 import StoragePlugin, Writer
            from rosbags.typesys import Stores, get_types_from_msg, get_typestore
        except ImportError as error:
            raise BagError(f"Writing {self._out} needs rosbags: pip install rosbags.") from error
        self._types = get_typestore(Stores.ROS2_HUMBLE)
        for name in (*PARTS, *TOPICS.values()):
            text = (message_folder() / f"{name}.msg").read_text(encoding="utf-8")
            self._types.register(get_types_from_msg(text, f"vljepa_ros/msg/{name}"))
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self._out.name}.", dir=self._out.parent))
        self._writer = Writer(  # version 9 writes QoS as words, which Humble does not read
            self._folder / "stream", version=8, storage_plugin=StoragePlugin.MCAP
        )
        self._writer.open()
        self._connections: dict[str, Any] = {}
        for topic, name in TOPICS.items():
            self._connect(topic, f"vljepa_ros/msg/{name}", _qos(latched=topic == LATCHED))
        self._introduced = False
        self._held: list[tuple[Any, int, bytes]] | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: object) -> None:
        try:
            if kind is None:
                self._writer.close()
                _refuse_old(self._out)
                (self._folder / "stream" / "stream.mcap").rename(self._out)
            else:
                self._writer.abort()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def hold(self) -> None:
        """Keep what is written from now on until `release`."""
        self._held, self._before = [], self._introduced

    def release(self, whole: bool) -> None:
        """Write what was held, or, where it is not whole, forget it."""
        held, self._held = self._held or [], None
        self._introduced = self._introduced if whole else self._before
        for one in held if whole else ():
            self._writer.write(*one)

    def picture(self, frame: RecordedFrame, jpeg: bytes) -> None:
        """Write the small picture of a frame that has steps, before those."""
        self._introduce(frame.log_ns)
        topic = f"/{frame.camera}/thumbnail"
        if topic not in self._connections:
            self._connect(topic, PICTURE, _qos(reliable=False))
        stamp = self._time(frame.stamp_ns)
        header = self._types.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame.frame_id)
        data = np.frombuffer(jpeg, np.uint8)
        self._write(topic, frame.log_ns, PICTURE, header=header, format="jpeg", data=data)

    def step(self, frame: RecordedFrame, step: Step) -> None:
        """Write a step, and the change that it found, if it did."""
        self._introduce(frame.log_ns)
        header = self._header(step)
        self._write(
            "/embeddings", frame.log_ns, header=header,
            window_start=self._time(step.window_start_ns), camera=step.camera, query=step.query,
            model_id=self._model_id, sequence=step.sequence, segment_id=step.segment_id,
            change_score=step.change_score, reused=step.reused,
            latency=(frame.log_ns - step.stamp_ns) / 1e9,
            embedding=np.asarray(step.embedding, np.float32), stream_id=0,
            familiarity=step.familiarity,
        )  # fmt: skip
        change = step.change
        if change is not None:
            self._write(
                "/changes", frame.log_ns, header=header, camera=step.camera, query=step.query,
                model_id=self._model_id, segment_id=change.segment_id,
                segment_start=self._time(change.segment_start_ns),
                previous_segment_id=change.previous_segment_id,
                previous_segment_start=self._time(change.previous_segment_start_ns),
                change_score=change.score, embedding=np.asarray(step.embedding, np.float32),
                stream_id=0, familiarity=step.familiarity, key_frames=[],
            )  # fmt: skip

    def utterance(self, frame: RecordedFrame, step: Step, said: Said, decode_time: float) -> None:
        """Write what was said of the change that the step found. `decode_time` in seconds."""
        assert step.change is not None
        self._write(
            "/utterances", frame.log_ns, header=self._header(step), camera=step.camera,
            query=step.query, model_id=self._model_id, segment_id=step.change.segment_id,
            segment_start=self._time(step.change.segment_start_ns), text=said.text,
            confidence=said.confidence, decode_time=decode_time, stream_id=0, source=said.source,
            familiarity=step.familiarity,
        )  # fmt: skip

    def _introduce(self, log_ns: int) -> None:
        """Say, before anything else, which model the stream is of."""
        if self._introduced:
            return
        self._introduced = True
        bundle, settings = self._model.bundle, self._settings
        setting = self._types.types["vljepa_ros/msg/Setting"]
        encoder = next(engine for engine in self._model.info if engine.name == "x_encoder")
        self._write(
            LATCHED, log_ns, model_id=self._model_id, backend=encoder.backend,
            precision=encoder.precision, embedding_dim=bundle.embedding_dim,
            clip_frames=bundle.clip.frames, image_size=bundle.clip.image_size,
            sample_rate=bundle.clip.sample_rate, queries=list(settings.queries_of(bundle)),
            watch_threshold=bundle.thresholds.watch, stream_id=0, cameras=[],
            familiarity_threshold=bundle.familiarity_threshold,
            settings=[setting(one.name, one.value, one.origin)
                      for one in settings.effective(bundle)],
        )  # fmt: skip

    def _connect(self, topic: str, name: str, qos: Any) -> None:
        self._connections[topic] = self._writer.add_connection(
            topic, name, typestore=self._types, offered_qos_profiles=[qos]
        )

    def _write(self, topic: str, log_ns: int, name: str = "", **fields: Any) -> None:
        name = name or f"vljepa_ros/msg/{TOPICS[topic]}"
        message = self._types.types[name](**fields)
        data = self._types.serialize_cdr(message, name)
        if self._held is not None:
            self._held.append((self._connections[topic], log_ns, bytes(data)))
        else:
            self._writer.write(self._connections[topic], log_ns, data)

    def _header(self, step: Step) -> Any:
        header = self._types.types["std_msgs/msg/Header"]
        return header(stamp=self._time(step.stamp_ns), frame_id=step.frame_id)

    def _time(self, stamp_ns: int) -> Any:
        time = self._types.types["builtin_interfaces/msg/Time"]
        return time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)


def _qos(latched: bool = False, reliable: bool = True) -> Any:
    """Keep last, as the nodes publish; without it, playing would not latch."""
    from rosbags.interfaces import (
        Qos,
        QosDurability,
        QosHistory,
        QosLiveliness,
        QosReliability,
        QosTime,
    )

    ever = QosTime(9223372036, 854775807)  # rmw's infinite
    reliability = QosReliability.RELIABLE if reliable else QosReliability.BEST_EFFORT
    return Qos(
        QosHistory.KEEP_LAST, 1 if latched else 10 if reliable else 5, reliability,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE, ever, ever,
        QosLiveliness.AUTOMATIC, ever, False,
    )  # fmt: skip
