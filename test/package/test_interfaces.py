"""The generated interfaces have the fields that agents rely on, in order, and document them."""

from __future__ import annotations

import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Fields of each part in order, "type name"; parts of a service or action are separated by ---.
# Classify's `label_template` is no `template`: C++ allows no field of that name.
FIELDS = {
    "msg/SemanticEmbedding.msg": """
        std_msgs/Header header, builtin_interfaces/Time window_start, string camera, string query,
        string model_id, uint64 sequence, uint64 segment_id, float32 change_score, bool reused,
        float32 latency, float32[] embedding, uint64 stream_id, float32 familiarity""",
    "msg/SemanticChange.msg": """
        std_msgs/Header header, string camera, string query, string model_id, uint64 segment_id,
        builtin_interfaces/Time segment_start, uint64 previous_segment_id,
        builtin_interfaces/Time previous_segment_start, float32 change_score,
        float32[] embedding, uint64 stream_id, float32 familiarity,
        sensor_msgs/CompressedImage[] key_frames""",
    "msg/Utterance.msg": """
        std_msgs/Header header, string camera, string query, string model_id, uint64 segment_id,
        builtin_interfaces/Time segment_start, string text, float32 confidence,
        float32 decode_time, uint64 stream_id, float32 familiarity, string source""",
    "msg/ModelInfo.msg": """
        string model_id, string backend, string precision, uint32 embedding_dim, uint32 clip_frames,
        uint32 image_size, float32 sample_rate, string[] queries, float32 watch_threshold,
        uint64 stream_id, string[] cameras, float32 familiarity_threshold,
        vljepa_ros/Setting[] settings""",
    "msg/Setting.msg": "string name, float64 value, string origin",
    "msg/Moment.msg": """
        string camera, uint64 segment_id, builtin_interfaces/Time start,
        builtin_interfaces/Time end, string text, float32 score,
        sensor_msgs/CompressedImage thumbnail, string id, string robot, string query, bool pinned,
        geometry_msgs/PoseStamped pose, float32 familiarity,
        int32 episode, string task, float64 position""",
    "msg/LabelList.msg": """
        string model_id, uint32 version, string[] labels, string label_template""",
    "msg/LabelScores.msg": """
        std_msgs/Header header, string camera, string model_id, uint32 list_version, string best,
        float32[] scores, uint64 stream_id, float32[] cosines""",
    "srv/Ask.srv": """
        string camera, string question, string[] candidates
        --- bool success, string message, string answer, float32[] scores, float32[] embedding,
        builtin_interfaces/Time stamp, float32 familiarity, float32[] cosines, float32 threshold""",
    "srv/Classify.srv": """
        string camera, string[] labels, string label_template
        --- bool success, string message, string[] labels, float32[] scores,
        builtin_interfaces/Time stamp, float32 familiarity, float32[] cosines, float32 threshold""",
    "srv/EmbedText.srv": """
        string[] texts
        --- bool success, string message, string model_id, uint32 embedding_dim,
        float32[] embeddings""",
    "srv/Decode.srv": """
        string model_id, float32[] embedding, string camera
        --- bool success, string message, string text, float32 confidence, string source""",
    "srv/Recall.srv": """
        string text, string[] cameras, builtin_interfaces/Time after,
        builtin_interfaces/Time before, uint32 limit, bool fleet
        --- bool success, string message, vljepa_ros/Moment[] moments, float32 threshold""",
    "srv/Pin.srv": """
        string id, bool pinned
        --- bool success, string message""",
    "action/Watch.action": """
        string camera, string text, float32 threshold, builtin_interfaces/Duration timeout,
        string client
        --- bool success, string message, vljepa_ros/Moment moment
        --- float32 score, builtin_interfaces/Time stamp""",
}  # fmt: skip
PARTS = {"msg": [""], "srv": ["Request", "Response"], "action": ["Goal", "Result", "Feedback"]}
# As rosidl's Python names them.
ROS_TYPES = {"float32": "float", "float64": "double", "bool": "boolean"}


def generated_type(declared: str) -> str:
    """How the generated Python class names a type of an interface file."""
    base, array = (declared[:-2], True) if declared.endswith("[]") else (declared, False)
    base = ROS_TYPES.get(base, base)
    return f"sequence<{base}>" if array else base


def wanted(part: str) -> dict[str, str]:
    pairs = (field.split() for field in part.split(",") if field.strip())
    return {name: generated_type(declared) for declared, name in pairs}


@pytest.mark.parametrize("file", FIELDS)
def test_fields_are_those_of_the_table(file: str) -> None:
    kind, name = file.split("/")[0], Path(file).stem
    interface = getattr(import_module(f"vljepa_ros.{kind}"), name)
    for part, text in zip(PARTS[kind], FIELDS[file].split("---")):
        generated = getattr(interface, part) if part else interface
        assert list(generated.get_fields_and_field_types().items()) == list(wanted(text).items())


def test_every_interface_file_is_in_the_table_and_built() -> None:
    files = {str(p.relative_to(ROOT)) for kind in PARTS for p in (ROOT / kind).iterdir()}
    assert files == set(FIELDS)
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert set(re.findall(r"(?:msg|srv|action)/\w+\.(?:msg|srv|action)", cmake)) == files


@pytest.mark.parametrize("file", FIELDS)
def test_every_field_has_its_own_comment(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    assert lines[0].startswith("# ")
    for above, line in pairwise(lines):
        if line and line != "---" and not line.startswith("#"):
            assert above.startswith("# "), f"{file}: no comment above '{line}'"


@pytest.mark.parametrize(
    ("file", "field", "unit"),
    [
        ("msg/SemanticEmbedding.msg", "latency", "seconds"),
        ("msg/SemanticEmbedding.msg", "embedding", "unit length"),
        ("msg/Utterance.msg", "decode_time", "seconds"),
        ("msg/Utterance.msg", "confidence", "-1 to 1"),
        ("msg/ModelInfo.msg", "image_size", "pixels"),
        ("msg/ModelInfo.msg", "sample_rate", "frames per second"),
        ("srv/EmbedText.srv", "embeddings", "row-major"),
        ("action/Watch.action", "threshold", "cosine"),
    ],
)
def test_comments_give_units(file: str, field: str, unit: str) -> None:
    match = re.search(rf"^# (.*)\n\S+ {field}$", (ROOT / file).read_text(), re.M)
    assert match is not None
    assert unit in match[1]
