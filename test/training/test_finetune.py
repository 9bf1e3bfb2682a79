"""Fine-tuning in small: from a tiny bundle, on toy videos, to a bundle that names their events."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install vljepa_ros[train]")

import lightning  # noqa: E402
from blocked import run_without  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from networks import MANIFEST, scramble, tiny_config  # noqa: E402
from safetensors.torch import load_file, save_model  # noqa: E402

from vljepa_ros.bundle.manifest import write_manifest  # noqa: E402
from vljepa_ros.bundle.spec import load_bundle  # noqa: E402
from vljepa_ros.errors import BundleError, VLJepaError  # noqa: E402
from vljepa_ros.inference.verify import verify_bundle  # noqa: E402
from vljepa_ros.model.export import bundle as export  # noqa: E402
from vljepa_ros.model.export import storage  # noqa: E402
from vljepa_ros.model.networks import VLJepa  # noqa: E402
from vljepa_ros.model.restore import RestoreError, restore  # noqa: E402
from vljepa_ros.training import finetune as tuning  # noqa: E402
from vljepa_ros.training.base import UNCALIBRATED, load_base  # noqa: E402
from vljepa_ros.training.finetune import FineTuneRecipe, finetune  # noqa: E402
from vljepa_ros.training.finetune_export import export_finetuned  # noqa: E402
from vljepa_ros.training.retrieval_stop import by_query, recall_at_1, stop_on_retrieval  # noqa: E402
from vljepa_ros.training.stages import DecoderStage  # noqa: E402
from vljepa_ros.training.texts import train_tokenizer  # noqa: E402

SAYINGS = {"red": "the lamp is red", "green": "the lamp is green", "blue": "the lamp is blue"}
COLOURS = {"red": (30, 30, 220), "green": (30, 220, 30), "blue": (220, 30, 30)}  # BGR
RECIPE = FineTuneRecipe(
    steps=40, decoder_steps=150, batch=12, decoder_batch=16, decoder_clips=24, rate=3e-3,
    x_encoder_rate=1e-3, check_every=10, patience=9,
)  # fmt: skip
pytestmark = pytest.mark.timeout(600)  # a busy machine exports for minutes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights, exported as any other."""
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer(["the lamp is on", "what is happening?"], 300, folder / "words.json")
    config = tiny_config(vocabulary=300, text_vocabulary=300, query_length=20, text_length=20)
    config.y_encoder_config.max_position_embeddings = 1024  # the exporter folds tiny tables away
    model = scramble(VLJepa(config), seed=1)
    random = np.random.default_rng(0)
    clips = random.integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    texts = random.integers(3, 300, (3, 20)), np.ones((3, 20), np.int64)
    tokenizers = dict.fromkeys(("tokenizer.json", "y_tokenizer.json"), folder / "words.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "COMPRESSED", 500)  # as small as these matrices are
        return export.export_bundle(model, folder / "tiny", MANIFEST, tokenizers, clips, texts)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of a lamp that shines in each of three colours for one second."""
    folder = tmp_path_factory.mktemp("lamp")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(5):
        name = f"{number}.mp4"
        video = cv2.VideoWriter(
            str(folder / name), cv2.VideoWriter_fourcc(*"mp4v"), 8, (48, 32)
        )  # fmt: skip
        for second, kind in enumerate(rng.permutation(list(SAYINGS))):
            for _ in range(8):
                picture = np.full((32, 48, 3), 40 + 10 * number, np.uint8)
                picture[8:24, 16:32] = COLOURS[kind]
                video.write(picture)
            rows.append({"video": name, "start": second, "end": second + 1,
                         "answer": SAYINGS[kind]})  # fmt: skip
        video.release()
    file = folder / "lines.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the fine-tuning says."""
    return []


@pytest.fixture(scope="module")
def run(
    bundle: Path, lines: Path, said: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A fine-tuning that was cut off once, after its second look at the held-out part."""
    out = tmp_path_factory.mktemp("run") / "run"

    class PowerCut(Exception):
        pass

    class Cut(Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
            if trainer.global_step == 21:
                raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tuning, "stop_on_retrieval", lambda *a: [*stop_on_retrieval(*a), Cut()]
        )  # fmt: skip
        with pytest.raises(PowerCut):
            finetune(lines, str(bundle), out, RECIPE, said.append)
    assert (out / "recordings" / "last.ckpt").exists() and not (
        out / "weights.safetensors"
    ).exists()
    return finetune(lines, str(bundle), out, RECIPE, said.append)


def test_a_bundle_is_restored_as_it_is(bundle: Path):
    model = restore(bundle)
    original = scramble(VLJepa(model.config), seed=1).state_dict()
    for name, value in model.state_dict().items():
        if "pooler" not in name:
            spread = float(original[name].abs().max())
            assert torch.allclose(value, original[name], atol=0.01 * spread), name


def test_a_bundle_of_links_is_restored_too(bundle: Path, tmp_path: Path):
    """As in a workspace that colcon linked, or in the Hub's cache."""
    assert (bundle / "y_encoder.data").is_file()
    for number, file in enumerate(bundle.iterdir()):
        blob = tmp_path / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(file.read_bytes())
        (tmp_path / file.name).symlink_to(blob)
    restored, original = restore(tmp_path).state_dict(), restore(bundle).state_dict()
    assert all(torch.equal(restored[name], value) for name, value in original.items())


def copy(bundle: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def rewrite(folder: Path) -> None:
    write_manifest(folder, {**load_bundle(folder, verify=False).manifest})


def test_a_bundle_that_gives_other_numbers_is_refused(bundle: Path, tmp_path: Path):
    folder = copy(bundle, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["x_encoder_config"]["num_attention_heads"] = 2  # the same weights, used differently
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=str(folder / "config.json")):
        restore(folder)
    rewrite(folder)
    with pytest.raises(RestoreError, match="give other numbers than it does"):
        restore(folder)


def test_a_bundle_of_other_networks_is_refused(bundle: Path, tmp_path: Path):
    folder = copy(bundle, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["predictor_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    rewrite(folder)
    with pytest.raises(RestoreError, match=r"has nothing for 'blocks\.2"):
        restore(folder)
    (folder / "config.json").unlink()
    manifest = load_bundle(folder, verify=False).manifest
    del manifest["files"]["config.json"]
    write_manifest(folder, manifest)
    with pytest.raises(RestoreError, match="does not say how its networks are made"):
        restore(folder)


def test_fine_tuning_says_what_it_does(run: Path, said: list[str]):
    table, before, again, after = said
    assert table == again
    assert "recordings                   4         1" in table
    assert "segments                    12         3" in table
    assert "distinct answers             3         3" in table
    assert before.startswith("before: the right answer is nearest to")
    assert after.startswith("after ")


def test_fine_tuning_names_what_was_held_out(run: Path, said: list[str]):
    """The start is random and knows nothing of lamps; a third is chance."""

    def right(text: str) -> list[int]:
        return [int(word.rstrip("%")) for word in text.split() if word.endswith("%")]

    assert sum(right(said[1])) <= 140
    assert min(right(said[-1])) == 100


def test_only_the_frozen_part_is_kept(run: Path, bundle: Path):
    before, after = restore(bundle).state_dict(), load_file(run / "weights.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("y_encoder.model.") for name in moved)
    for part in ("x_encoder.", "predictor.", "y_encoder.projector.", "y_decoder."):
        assert any(name.startswith(part) for name in moved), part


def test_a_finished_one_is_not_run_again_and_another_is_refused(
    run: Path, bundle: Path, lines: Path, tmp_path: Path
):
    before = (run / "weights.safetensors").stat().st_mtime_ns
    assert finetune(lines, str(bundle), run, RECIPE, lambda _: None) == run
    assert (run / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(VLJepaError, match="on other lines, from another start"):
        finetune(lines, str(bundle), run, FineTuneRecipe(steps=7), lambda _: None)


def test_the_clips_can_be_larger_than_the_starts(bundle: Path, lines: Path, tmp_path: Path):
    recipe = replace(RECIPE, steps=2, decoder_steps=1, image_size=64)
    assert recipe.check_every > recipe.steps  # and yet it is judged
    run = finetune(lines, str(bundle), tmp_path / "run", recipe, lambda _: None)
    assert load_base(str(run)).model.config.x_encoder_config.crop_size == 64
    with np.load(run / tuning.HELD_OUT) as held:
        assert held["frames"].shape[-3:] == (64, 64, 3)
    export_finetuned(run, tmp_path / "large", "1.0.0")  # compares its graphs with the networks
    assert load_bundle(tmp_path / "large").clip.image_size == 64


def test_a_training_can_be_the_start_too(run: Path, bundle: Path, tmp_path: Path):
    again = load_base(str(run))
    assert again.about["thresholds"] == MANIFEST["thresholds"]
    assert load_base(str(bundle)).about["from"].startswith("tiny-0.1.0#")
    plain = tmp_path / "plain"
    plain.mkdir()
    again.model.config.to_json_file(str(plain / "config.json"), use_diff=False)
    save_model(again.model, str(plain / "weights.safetensors"))
    assert load_base(str(plain)).about["thresholds"] == UNCALIBRATED["thresholds"]
    with pytest.raises(VLJepaError, match="is no folder"):
        load_base(str(tmp_path / "absent"))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "lamp"
    export_finetuned(run, out, "2.0.0")
    return out


def test_the_bundle_has_the_thresholds_and_says_where_it_comes_from(exported: Path, lines: Path):
    assert verify_bundle(exported) == []
    manifest = load_bundle(exported).manifest
    for key in ("name", "temperature", "thresholds", "change"):
        assert manifest[key] == MANIFEST[key]
    assert manifest["version"] == "2.0.0"
    source = manifest["source"]
    assert source["weights"].startswith("tiny-0.1.0#")
    assert source["weights"].endswith("fine-tuned on lines.jsonl")
    assert source["licence"] == "Apache-2.0" and source["recipe"]["steps"] == RECIPE.steps


def test_the_bundle_names_and_says_the_new_events(exported: Path):
    earned = load_bundle(exported).evaluation["recordings"]
    assert earned["clips"] >= 3 and earned["answers"] == 3
    assert earned["video_to_text"] == earned["text_to_video"] == 1
    assert earned["said_right"] == 1


# The measure


def test_recall_at_1_by_hand():
    predicted = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    texts = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    # Clips: 0 -> text 0 (right), 1 -> text 0 (wrong), 2 -> text 1 (right).
    # Texts: "a" -> clip 0 (right), "b" -> clip 2 (right); "c" -> clip 2 (wrong).
    found = recall_at_1(predicted, ["a", "c", "b"], texts, ["a", "b", "c"])
    assert found == {"video_to_text": pytest.approx(2 / 3), "text_to_video": pytest.approx(2 / 3)}


def test_equal_meanings_are_both_right_and_what_is_not_there_is_not_sought():
    predicted, texts = np.eye(3), np.eye(3)
    found = recall_at_1(predicted, ["a", "a", "b"], texts, ["a", "a", "z"])
    assert found["video_to_text"] == pytest.approx(2 / 3)
    assert found["text_to_video"] == 1


def test_clips_and_texts_of_other_queries_do_not_compete():
    predicted = np.array([[1.0, 0.0], [1.0, 0.0]])
    texts = np.array([[1.0, 0.0], [0.6, 0.8]])
    found = by_query(predicted, ["q", "r"], ["a", "b"], texts, [("q", "a"), ("r", "b")])
    assert found == {"video_to_text": 1, "text_to_video": 1}
    one = by_query(predicted, ["q", "q"], ["a", "b"], texts, [("q", "a"), ("q", "b")])
    assert one == {"video_to_text": 0.5, "text_to_video": 0.5}


class Flat(lightning.LightningModule):
    """Logs the retrieval that it was told."""

    def __init__(self, retrieval: list[float]):
        super().__init__()
        self.weight, self.retrieval = torch.nn.Parameter(torch.zeros(1)), retrieval

    def training_step(self, _batch: object, _index: int) -> torch.Tensor:
        return self.weight.sum()

    def validation_step(self, _batch: object, _index: int) -> None:
        self.log("retrieval", self.retrieval.pop(0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_training_stops_when_retrieval_does_not_get_better(tmp_path: Path):
    told = [0.1, 0.4, 0.3, 0.4, 0.9]
    trainer = lightning.Trainer(
        max_steps=50, accelerator="cpu", callbacks=stop_on_retrieval(tmp_path, 2), logger=False,
        val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(
        Flat(told), torch.utils.data.DataLoader(range(100)), torch.utils.data.DataLoader([0])
    )
    assert trainer.global_step == 8 and told == [0.9]
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["global_step"] == 4
    assert best["state_dict"]["weight"].item() == -4


def test_recordings_are_learnt_from_where_the_simulator_is_not_installed(
    bundle: Path, lines: Path, tmp_path: Path
):
    """`vljepa train --data` imports no MuJoCo from its start to its end."""
    code = (
        "import vljepa_ros.training.finetune as tuning\n"
        "of_command = tuning.FineTuneRecipe\n"
        "tuning.FineTuneRecipe = lambda **given: of_command(\n"
        "    **given, decoder_steps=2, batch=4, decoder_batch=4, decoder_clips=4)\n"
        f"sys.argv = ['vljepa', 'train', {str(tmp_path)!r}, '--data', {str(lines)!r},\n"
        f"            '--from', {str(bundle)!r}, '--steps', '2']\n"
        "from vljepa_ros.cli import main\n"
        "main()\n"
    )
    done = run_without(["mujoco"], code, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "fine-tuned" in done.stdout
    assert (tmp_path / "weights.safetensors").is_file()


def test_an_interrupted_decoder_stage_goes_on_where_it_stopped(
    bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class PowerCut(Exception):
        pass

    steps: list[int] = []
    step = DecoderStage.training_step

    def watched(self, batch, index):
        steps.append(self.global_step)
        if len(steps) == 102:
            raise PowerCut
        return step(self, batch, index)

    monkeypatch.setattr(DecoderStage, "training_step", watched)
    recipe = replace(RECIPE, steps=2, decoder_steps=104, batch=4, decoder_batch=4, decoder_clips=4)
    with pytest.raises(PowerCut):
        finetune(lines, str(bundle), tmp_path, recipe, lambda _: None)
    finetune(lines, str(bundle), tmp_path, recipe, lambda _: None)
    assert steps == [*range(102), *range(100, 104)]
