"""A checkpoint predicts by the command that a user has: no configuration, real processes, the answers of `eval`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from learner.channels.reward_averages import RewardAverages
from learner.checkpoints.checkpoint import Checkpoints, Followed
from learner.checkpoints.export import export
from learner.checkpoints.operating_point import SavedPoint, save_point
from learner.families.load import load_model
from learner.plan.progress import Progress
from learner.reporting.collapse_guard import Guard
from learner.training.optim import StepOptimizer
from shared.checkpoint_usage import read_usage
from shared.config.stage2 import GuardSection, RewardSection
from shared.config.training import TrainingSection, TunerSection

pytestmark = pytest.mark.slow

Found = dict[int, list[tuple[str, tuple[float, ...], float]]]


def found_in(folder: Path) -> Found:
    """What was predicted for each image: names, boxes and scores."""
    images = json.loads((folder / "images.json").read_text())
    names = {each["id"]: each["name"] for each in images["categories"]}
    found: Found = {each["id"]: [] for each in images["images"]}
    for each in json.loads((folder / "predictions.json").read_text()):
        found[each["image_id"]].append((names[each["category_id"]], tuple(each["bbox"]), each["score"]))
    return {image_id: sorted(objects) for image_id, objects in found.items()}


def alike(one: Found, other: Found) -> bool:
    """The same names and boxes, and scores up to rounding: what is decoded side by side differs."""
    return {image_id: [each[:2] for each in objects] for image_id, objects in one.items()} == {
        image_id: [each[:2] for each in objects] for image_id, objects in other.items()
    } and all(
        mine[2] == pytest.approx(theirs[2], abs=1e-4)
        for image_id in one
        for mine, theirs in zip(one[image_id], other[image_id], strict=True)
    )


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.very_slow)])
def test_predictions_are_the_answers_that_an_evaluation_scores(
    stage1: Path, start: Any, config_of: Callable[[Path], Path], shapes: Path, tmp_path: Path, engine: str
) -> None:
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(stage1, checkpoint)
    save_point(
        SavedPoint(
            stop_bias=3.0, score_threshold=0.0, metric="eval_rollout_f1_iou50", value=1, plain_value=1, num_images=1,
            annotation_recall=1,
        ),
        checkpoint,
    )  # fmt: skip
    found = {}
    for options in ((), ("--plain",)):
        backend = f"custom.extra.rollout_matching.rollout_backend={engine}"
        scored = start("eval", "--config", config_of(tmp_path), "--checkpoint", checkpoint, *options, backend)
        assert scored.end(300) == 0, scored.told
        out = tmp_path / f"out{''.join(options)}"
        predicted = start(
            "predict", shapes / "val.jsonl", "--model", checkpoint, "--out", out, "--engine", engine, *options
        )
        assert predicted.end(300) == 0, predicted.told
        assert ("stop bias 3" in predicted.told) == (not options)
        assert "warning" not in predicted.told
        found[options] = found_in(out)
        assert sum(map(len, found[options].values()))
        assert alike(found_in(tmp_path / "run" / "evaluation"), found[options])
        assert len(list((out / "pictures").iterdir())) == len(found[options]) == 8
    assert sum(map(len, found[()].values())) > sum(map(len, found[("--plain",)].values()))


def test_a_bad_picture_is_one_line_and_the_others_are_there(
    stage1: Path, start: Any, shapes: Path, tmp_path: Path
) -> None:
    folder, checkpoint, out = tmp_path / "in", tmp_path / "checkpoint", tmp_path / "out"
    shutil.copytree(stage1, checkpoint)
    (checkpoint / "boxloop.json").unlink()
    shutil.copytree(shapes / "images" / "val", folder)
    whole = sorted(folder.iterdir())
    (folder / "broken.jpg").write_text("no picture")
    (folder / "cut.png").write_bytes(whole[0].read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture, and not meant to be one")
    command = start("predict", folder, "--model", checkpoint, "--out", out, "--classes", "red circle,blue square")
    assert command.end(300) == 1, command.told
    assert command.told.count("warning: ") == 1
    for name in ("broken.jpg", "cut.png"):
        assert sum(name in line for line in command.told.splitlines()) == 1
    assert f"pictures: {len(whole)}, objects: " in command.told
    assert "failed: 2, other files: 1" in command.told
    images = json.loads((out / "images.json").read_text())
    assert [each["file_name"] for each in sorted(images["images"], key=lambda each: each["id"])] == [
        path.name for path in whole
    ]
    assert [each["name"] for each in images["categories"]] == ["red circle", "blue square"]
    for each in images["images"]:
        with Image.open(out / each["picture"]) as opened:
            assert max(opened.size) == 640
    assert command.pids() == []


def test_adapters_predict_as_their_export_does(stage1: Path, start: Any, shapes: Path, tmp_path: Path) -> None:
    adapters = adapters_on(stage1, tmp_path / "run")
    export(adapters, tmp_path / "plain")
    found = []
    for model in (stage1, adapters, tmp_path / "plain"):
        out = tmp_path / f"out-{len(found)}"
        command = start("predict", shapes / "val.jsonl", "--model", model, "--out", out)
        assert command.end(300) == 0, command.told
        found.append(found_in(out))
    base, merged, exported = found
    assert alike(merged, exported)
    assert not alike(merged, base)


def adapters_on(base: Path, folder: Path) -> Path:
    """A checkpoint of adapters on `base` that change its answers a little."""
    loaded = load_model(str(base), dtype="float32", device="cpu", tuner=TunerSection(train_type="lora", use_dora=True))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    training = TrainingSection(output_dir=folder, save_only_model=True)
    followed = Followed(Guard(GuardSection()), RewardAverages(RewardSection()), 1.0)
    optimizer, usage = StepOptimizer(loaded, training, 1), read_usage(base)
    return Checkpoints(loaded, optimizer, followed, training, "digest", usage=usage).save(Progress(1, step=1))
