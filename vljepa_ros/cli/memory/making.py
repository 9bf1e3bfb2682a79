"""What a worker of `vljepa index` opens. Invariant: it sees with the bundle of whoever began it."""

from __future__ import annotations

from dataclasses import dataclass

from vljepa_ros import __version__
from vljepa_ros.bundle.spec import REQUIRED, load_bundle
from vljepa_ros.errors import BundleError
from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.perception.images import Levels
from vljepa_ros.perception.settings import Settings
from vljepa_ros.recordings.indexing.maker import Made, Maker
from vljepa_ros.recordings.indexing.recording import Recording
from vljepa_ros.words.banks import own_speaker
from vljepa_ros.workers.pool import Work


@dataclass(frozen=True)
class Opening:
    """Opens the engines: `bundle` as `find_bundle` takes it, which is to be the model `model_id`.

    `threads`: of one run of an engine.
    """

    bundle: str
    model_id: str
    backend: str
    threads: int
    words: bool
    settings: Settings
    robot: str
    levels: Levels
    version: str = __version__

    def __call__(self) -> Work[Recording, Made]:
        if self.version != __version__:
            raise BundleError(
                f"vljepa_ros is {__version__} here and {self.version} where the command was begun: "
                "install the same on all machines."
            )
        loaded = load_bundle(self.bundle)
        if loaded.model_id != self.model_id:
            raise BundleError(
                f"The bundle {loaded.path} is {loaded.model_id} here and {self.model_id} where the "
                "command was begun: embeddings of two models cannot be compared; copy it."
            )
        parts = list(loaded.graphs) if self.words else REQUIRED
        model = Runtime(loaded, self.backend, self.threads, parts)
        speaker = own_speaker(model, lambda text: None) if self.words else None
        return Maker(model, self.settings, self.robot, speaker, levels=self.levels).whole
