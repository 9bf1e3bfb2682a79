"""A decoder node in a process of its own, and changes for it that mean what a text says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graph import NodeProcess, Probe, compressed, domain

from vljepa_ros.bundle.spec import load_bundle
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.msg import SemanticChange
from vljepa_ros.ros.messages import floats
from vljepa_ros.srv import Decode


class Words:
    """The node, a probe, and the model for the texts."""

    def __init__(self, bundle: Path, **parameters: Any) -> None:
        number = domain()
        self.model = Runtime(load_bundle(bundle), "onnxruntime-cpu")
        self.node = NodeProcess("decoder_node", number, bundle=bundle, **parameters)
        self.probe = Probe(number)
        self.segments = 0
        self.changes = self.probe.node.create_publisher(SemanticChange, "changes", 1000)

    def begin(self) -> None:
        """Until it hears changes: those of another model, which it refuses and counts."""
        self.node.wait_for_log("Active.")

        name = "decoder: changes"

        def refused() -> str:
            return self.probe.values(name)["refused"] if name in self.probe.health else "0"

        before = refused()  # of an activation before this one, too

        def heard() -> bool:
            self.changes.publish(SemanticChange(camera="front", model_id="another"))
            return refused() not in ("0", before)

        self.probe.wait(
            heard,
            lambda: (
                f"the decoder node to listen; {self.probe.health.keys()} are heard, "
                f"{self.probe.values(name) if name in self.probe.health else ''}, and of "
                f"{self.probe.node.get_node_names_and_namespaces()} in its log:\n{self.node.log}"
            ),
        )

    def close(self) -> None:
        self.probe.close()
        assert self.node.end() == 0
        assert "Traceback" not in self.node.log
        self.model.close()

    def change(self, text: str, camera: str = "front", pictures: Sequence[bytes] = ()) -> int:
        """Publish a change; its segment."""
        self.segments += 1
        embedding = self.model.embed_text([text])[0]
        self.changes.publish(
            SemanticChange(
                camera=camera, model_id=self.model.bundle.model_id, segment_id=self.segments,
                embedding=floats(embedding), key_frames=[compressed(one, 1) for one in pictures],
            )
        )  # fmt: skip
        return self.segments

    def said(self, text: str, camera: str = "front", pictures: Sequence[bytes] = ()) -> Any:
        """Publish a change; the utterance about it."""
        return self.words_about(self.change(text, camera, pictures))

    def words_about(self, segment: int) -> Any:
        """The utterance about a segment, once it is there."""
        self.probe.wait(lambda: self.about(segment), f"words for segment {segment}")
        return self.about(segment)[0]

    def about(self, segment: int) -> list[Any]:
        return [one for one in self.probe.utterances if one.segment_id == segment]

    def decode(self, text: str, **fields: Any) -> Any:
        embedding = floats(self.model.embed_text([text])[0])
        return self.probe.call(Decode, "decode", Decode.Request(embedding=embedding, **fields))
