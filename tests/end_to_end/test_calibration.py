"""A checkpoint is calibrated, and scored at what was found, by the commands that a user has."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from learner.checkpoints.operating_point import SavedPoint, read_point, save_point

pytestmark = pytest.mark.slow


def test_what_was_found_stands_beside_the_weights_and_is_decoded_at(
    six_steps, start, config_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    config, checkpoint = config_of(tmp_path), tmp_path / "checkpoint"
    shutil.copytree(six_steps.folder / "checkpoint-6", checkpoint)

    def metrics_of(*options: str) -> tuple[dict[str, float], str]:
        run = start("eval", "--config", config, "--checkpoint", checkpoint, *options)
        assert run.end() == 0, run.told
        return json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text())["metrics"], run.told

    calibrated = start("calibrate", "--config", config, "--checkpoint", checkpoint)
    assert calibrated.end() == 0, calibrated.told
    saved = read_point(checkpoint)
    assert saved is not None
    curve = json.loads((tmp_path / "run" / "calibration" / "curve.json").read_text())
    assert curve["best"]["point"] == {"stop_bias": saved.stop_bias, "score_threshold": saved.score_threshold}
    found = {each["point"]["stop_bias"]: each for each in curve["tried"]}
    assert len({each["predictions_per_object"] for each in found.values()}) > 2

    for each in (found[-1.0], found[2.0]):  # one decode told what each of them would give
        save_point(saved.model_copy(update=each["point"]), checkpoint)
        metrics, told = metrics_of()
        assert f"stop bias {each['point']['stop_bias']:g}, scores from" in told
        assert metrics["eval_rollout_f1_iou50"] == pytest.approx(each["value"])
        predicted = metrics["eval_rollout_pred_objects"] / metrics["eval_rollout_gt_objects"]
        assert predicted == pytest.approx(each["predictions_per_object"])
    metrics, told = metrics_of("--plain")
    assert "operating point" not in told
    assert metrics["eval_rollout_f1_iou50"] == pytest.approx(saved.plain_value)


def test_a_broken_point_is_told_and_a_saved_one_is_read(tmp_path: Path) -> None:
    from shared.errors import DataError

    assert read_point(tmp_path) is None
    saved = SavedPoint(
        stop_bias=2.0, score_threshold=0.1, metric="eval_rollout_f1_iou50", value=0.7, plain_value=0.6, num_images=9,
        annotation_recall=1.0,
    )  # fmt: skip
    file = save_point(saved, tmp_path)
    assert read_point(tmp_path) == saved
    for broken in ("{", '{"stop_bias": 9}', file.read_text().replace("2.0", "NaN")):
        file.write_text(broken)
        with pytest.raises(DataError, match=r"is no operating point.*delete it, or run `boxloop calibrate`"):
            read_point(tmp_path)
