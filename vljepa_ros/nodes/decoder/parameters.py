"""The decoder node's parameters, and who speaks by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vljepa_ros.inference.runtime import Runtime
from vljepa_ros.ros.parameters import ParameterError, Spec
from vljepa_ros.words.banks import Choice
from vljepa_ros.words.vlm import Endpoint

WORDS = (
    Spec("words", "auto", "Who puts changes into words: the bundle's Y-decoder, a bank of phrases, "
         "a vision-language model that is shown pictures, or nobody; auto: the Y-decoder, else "
         "phrases, who also stand in for the VLM.", live=True,
         choices=("auto", "decoder", "phrases", "vlm", "none")),
    Spec("phrases", [""], "Banks of phrases: text files with one a line, or the shipped `events`; "
         "`CAMERA=FILE` for one camera; none: the bundle's.", live=True),
    Spec("unfamiliar", "", "What is said of a change to what the bundle does not know, or that no "
         "phrase fits; empty: nothing.", live=True),
    Spec("spoken", False, "Whether what is said is also published as text for RViz, on the topic "
         "`spoken`; needs visualization_msgs."),
    Spec("frames", 1, "VLM: pictures that it is shown, the newest of those that a change carries "
         "(perception's parameter change_frames).", live=True, low=1, high=4),
    Spec("vlm.url", "", "VLM: OpenAI-compatible server, as http://HOST:PORT/v1, to which pictures "
         "go. Its key is taken from the environment, VLM_API_KEY.", live=True),
    Spec("vlm.model", "", "VLM: name of the model there; empty: the server's own.", live=True),
    Spec("vlm.prompt", "Say in one short sentence what is happening. Answer with that sentence "
         "alone.", "VLM: what it is asked.", live=True),
    Spec("vlm.timeout", 20.0, "VLM: seconds until others put the change into words.", live=True,
         low=0.1, high=600),
)  # fmt: skip


def speaks(settings: Mapping[str, Any], model: Runtime) -> str:
    """Who puts embeddings into words: decoder, phrases or none."""
    words = settings["words"]
    if words not in ("auto", "vlm"):
        return str(words)
    return "decoder" if model.bundle.decoder is not None else "phrases"


def check(settings: Mapping[str, Any], model: Runtime, choice: Choice | None) -> None:
    """VLJepaError where there are no words as the settings ask for."""
    bundle = model.bundle
    if settings["words"] == "vlm":
        endpoint(settings).check()
    if settings["words"] == "decoder" and bundle.decoder is None:
        raise ParameterError(
            f"The bundle {bundle.path} has no Y-decoder; set 'words' to phrases, or to auto."
        )
    if settings["words"] == "phrases" and choice is None:
        raise ParameterError(
            f"The bundle {bundle.path} has no phrases; name a file of phrases, or the shipped "
            "events, by the parameter 'phrases'."
        )


def endpoint(settings: Mapping[str, Any]) -> Endpoint:
    """The VLM of the settings."""
    return Endpoint(*(settings[f"vlm.{name}"] for name in ("url", "model", "prompt", "timeout")))
