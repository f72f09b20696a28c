"""Pictures through a server that plays a script, to the files that are written."""

import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image
from rich.console import Console

from learner.checkpoints.operating_point import SavedPoint, save_point
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.prediction.opening import open_predictor
from learner.prediction.predict import Prediction, picture_name
from learner.prediction.source import open_source
from shared.checkpoint_facts import OPERATING_POINT_FILE, USAGE_FILE
from shared.checkpoint_usage import CheckpointUsage, save_usage
from shared.config.load import load_config
from shared.config.shipped import shipped_configs
from shared.errors import ConfigError, DataError

OBJECTS = (
    GroundTruthObject("red circle", "bbox_2d", (0, 0, 500, 999)),
    GroundTruthObject("blue square", "bbox_2d", (500, 0, 999, 999)),
)
NUM_PICTURES = 12


@pytest.fixture
def pictures(tmp_path: Path, image: Callable[..., bytes]) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(NUM_PICTURES):
        (folder / f"{number:02d}.png").write_bytes(image(number))
    return folder


@pytest.fixture
def answer(checkpoint: Path) -> list[int]:
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(checkpoint)))
    return vocabulary.encode(answer_text(OBJECTS) + "<|im_end|>")


@pytest.fixture
def predicting(
    serving: Callable[..., AbstractContextManager[Any]],
    scripted: Callable[..., Any],
    checkpoint: Path,
    answer: list[int],
    tmp_path: Path,
) -> Any:
    """Open what predicts for a source, beside a server with this script: the prediction, and what is printed."""

    @asynccontextmanager
    async def opened(source: Path, classes: tuple[str, ...] = (), *, is_plain: bool = False, **script: Any) -> Any:
        console = Console(file=io.StringIO(), width=200)
        with serving(scripted({"default": answer, **script})) as running:
            overrides = (
                ("model.model", checkpoint),
                ("training.output_dir", tmp_path / "out" / "logs"),
                ("global_max_length", 256),
                ("template.max_pixels", None),
                ("custom.extra.rollout_matching.rollout_backend", "hf"),
                ("custom.extra.rollout_matching.max_new_tokens", 100),
                ("custom.extra.rollout_matching.vllm.server.servers", [{"base_url": running.url}]),
            )
            config = load_config(shipped_configs() / "predict.yaml", overrides)
            async with open_predictor(config, console, is_plain=is_plain) as predictor:
                found = open_source(source, predictor.asking.vocabulary.special_texts, tmp_path / "out")
                yield Prediction(predictor, found, tmp_path / "out", classes, console), console.file

    return opened


def written(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return tuple(json.loads((folder / name).read_text()) for name in ("predictions.json", "images.json"))  # type: ignore[return-value]


async def test_every_picture_has_its_predictions_and_is_drawn(predicting: Any, pictures: Path, tmp_path: Path) -> None:
    async with predicting(pictures) as (prediction, printed):
        await prediction.run()
    predictions, images = written(tmp_path / "out")
    assert sorted(each["id"] for each in images["images"]) == list(range(1, NUM_PICTURES + 1))
    assert {each["name"] for each in images["categories"]} == {"red circle", "blue square"}
    assert len(predictions) == 2 * NUM_PICTURES
    assert all(0 < each["score"] <= 1 for each in predictions)
    for each in images["images"]:
        assert each["picture"] == f"pictures/{each['id']:06d}-{each['id'] - 1:02d}.jpg"
        with Image.open(tmp_path / "out" / each["picture"]) as drawn:
            assert drawn.size == (640, 640)
    assert (prediction.tally.num_pictures, prediction.tally.num_failed) == (NUM_PICTURES, 0)
    assert printed.getvalue() == ""


async def test_what_cannot_be_read_or_answered_is_a_line_each_and_the_rest_goes_on(
    predicting: Any, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "03.png").write_text("no picture")
    (pictures / "04.png").write_bytes((pictures / "05.png").read_bytes()[:300])
    Image.new("RGB", (512, 512)).save(pictures / "06.png")  # its 256 tokens leave no room for an answer
    async with predicting(pictures) as (prediction, printed):
        await prediction.run()
    lines = printed.getvalue().splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == [
        f"{pictures}/03.png cannot be read", f"{pictures}/04.png cannot be read", f"{pictures}/06.png",
    ]  # fmt: skip
    assert (prediction.tally.num_pictures, prediction.tally.num_failed) == (NUM_PICTURES - 3, 3)
    assert len(written(tmp_path / "out")[1]["images"]) == NUM_PICTURES - 3
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == NUM_PICTURES - 3


async def test_wanted_names_are_kept_alone_with_ids_in_their_order(
    predicting: Any, pictures: Path, tmp_path: Path
) -> None:
    async with predicting(pictures, ("cat", "blue square")) as (prediction, _):
        await prediction.run()
    predictions, images = written(tmp_path / "out")
    assert images["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "blue square"}]
    assert [each["category_id"] for each in predictions] == [2] * NUM_PICTURES


@pytest.mark.parametrize("is_plain", [False, True])
async def test_the_operating_point_is_used_unless_it_is_left_out(
    predicting: Any, pictures: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, is_plain: bool
) -> None:
    """The script is sure of everything, so scores are made up."""
    monkeypatch.setattr("learner.evaluation.answers.score_of", lambda *_: 0.25)
    point = SavedPoint(
        stop_bias=0, score_threshold=0.5, metric="m", value=1, plain_value=1, num_images=1, annotation_recall=1
    )
    save_point(point, checkpoint)
    try:
        async with predicting(pictures, is_plain=is_plain) as (prediction, printed):
            await prediction.run()
    finally:
        (checkpoint / OPERATING_POINT_FILE).unlink()
    assert ("at the operating point of" in printed.getvalue()) != is_plain
    assert bool(prediction.tally.num_objects) == is_plain


async def test_what_was_answered_before_the_end_is_kept(predicting: Any, pictures: Path, tmp_path: Path) -> None:
    async with predicting(pictures, seconds_per_token=0.003) as (prediction, _), anyio.create_task_group() as tasks:
        tasks.start_soon(prediction.run)
        while prediction.tally.num_pictures < 2:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    predictions, images = written(tmp_path / "out")
    assert 2 <= len(images["images"]) < NUM_PICTURES
    assert len(predictions) == 2 * len(images["images"])


async def test_a_folder_without_pictures_is_an_error(predicting: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    async with predicting(tmp_path / "empty") as (prediction, _):
        with pytest.raises(DataError, match=r"empty holds no picture; name a picture"):
            await prediction.run()


async def test_another_tokenizer_than_that_of_the_training_is_told(
    predicting: Any, pictures: Path, checkpoint: Path
) -> None:
    usage = CheckpointUsage(
        system="", user_prompt="", object_ordering="sorted", min_pixels=None, max_pixels=None,
        stop_tokens=("<end>",), max_model_len=9, max_new_tokens=9,
    )  # fmt: skip
    save_usage(usage, checkpoint)
    try:
        with pytest.raises(
            ConfigError, match=r"boxloop\.json: answers end with <end>, but the tokenizer beside it has"
        ):
            async with predicting(pictures):
                pass
    finally:
        (checkpoint / USAGE_FILE).unlink()


def test_pictures_have_names_that_every_disk_takes() -> None:
    from learner.detection.record import Record

    assert picture_name(Record("picture:7", ("/d/street.view.png",), 9, 9, ()), 7) == "000007-street.view.jpg"
    long = picture_name(Record("picture:7", ("/d/" + "猫" * 80 + ".png",), 9, 9, ()), 1234567)
    assert long == "1234567-" + "猫" * 33 + ".jpg"
