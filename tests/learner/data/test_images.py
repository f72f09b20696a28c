"""Images reach the model as the checkpoint's own processor would have made them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from learner.data.images import ImageReader
from learner.detection.record import Record
from shared.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def reader(tiny_folder: Path) -> ImageReader:
    return ImageReader.from_checkpoint(tiny_folder)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def record_of(path: Path, width: int, height: int) -> Record:
    return Record("val:3", (str(path),), width, height, ())


@pytest.mark.parametrize("size", [(128, 128), (64, 96), (100, 130), (7, 90), (900, 700), (1200, 33)])
@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
def test_patches_are_those_of_the_processor(
    reader: ImageReader, tiny_folder: Path, tmp_path: Path, size: tuple[int, int], name: str
) -> None:
    noise(*size).save(tmp_path / name)
    encoded = reader.read(record_of(tmp_path / name, *size))
    processor = Qwen2VLImageProcessorPil.from_pretrained(tiny_folder)
    expected = processor(images=[Image.open(tmp_path / name)], return_tensors="np")
    assert [encoded.grid] == [tuple(grid) for grid in expected["image_grid_thw"].tolist()]
    assert encoded.pixel_values.dtype == np.float32
    np.testing.assert_array_equal(encoded.pixel_values, expected["pixel_values"])


@pytest.mark.parametrize("size", [(128, 128), (100, 130), (900, 700)])
def test_what_is_sent_gives_a_server_the_same_patches(
    reader: ImageReader, tiny_folder: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    noise(*size).save(tmp_path / "image.png")
    encoded = reader.read(record_of(tmp_path / "image.png", *size))
    processor = Qwen2VLImageProcessorPil.from_pretrained(tiny_folder)
    at_server = processor(images=[Image.open(io.BytesIO(encoded.png)).convert("RGB")], return_tensors="np")
    np.testing.assert_array_equal(encoded.pixel_values, at_server["pixel_values"])


def test_a_png_that_needs_no_change_is_sent_as_it_is(reader: ImageReader, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    noise(64, 64).save(path)
    assert reader.read(record_of(path, 64, 64)).png == path.read_bytes()


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_other_modes_become_rgb(reader: ImageReader, tmp_path: Path, mode: str) -> None:
    noise(64, 64, mode).save(tmp_path / "image.png")
    encoded = reader.read(record_of(tmp_path / "image.png", 64, 64))
    assert Image.open(io.BytesIO(encoded.png)).mode == "RGB"


def test_a_rotated_photograph_is_read_upright(reader: ImageReader, tmp_path: Path) -> None:
    upright = noise(64, 96)
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns the stored image by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    turned = reader.read(record_of(tmp_path / "turned.png", 64, 96))
    np.testing.assert_array_equal(
        turned.pixel_values, reader.read(record_of(tmp_path / "upright.png", 64, 96)).pixel_values
    )
    assert not Image.open(io.BytesIO(turned.png)).getexif()


@pytest.mark.parametrize("width", [21, 63, 200, 333, 1999])
@pytest.mark.parametrize("height", [40, 128, 511, 4000])
def test_a_resized_size_stays_as_it_is(tiny_folder: Path, width: int, height: int) -> None:
    reader = ImageReader.from_checkpoint(tiny_folder, max_pixels=40_000, min_pixels=4_000)
    resized = reader.resized(width, height)
    assert reader.resized(*resized) == resized
    assert 4_000 <= resized[0] * resized[1] <= 40_000
    assert ImageReader.from_checkpoint(tiny_folder).resized(*resized) == resized


def test_grid_and_tokens_are_known_from_the_size(reader: ImageReader, tmp_path: Path) -> None:
    noise(100, 130).save(tmp_path / "image.png")
    encoded = reader.read(record_of(tmp_path / "image.png", 100, 130))
    assert reader.grid_of(100, 130) == encoded.grid
    assert reader.num_tokens(encoded.grid) == len(encoded.pixel_values) // 4


@pytest.mark.parametrize("bounds", [{"max_pixels": 10**9}, {"min_pixels": 1}, {"min_pixels": 9000, "max_pixels": 5000}])
def test_bounds_wider_than_the_processor_s_are_refused(tiny_folder: Path, bounds: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"template\.min_pixels .*within 1024 … 262144"):
        ImageReader.from_checkpoint(tiny_folder, **bounds)


def test_bounds_that_hold_no_size_are_refused(tiny_folder: Path) -> None:
    reader = ImageReader.from_checkpoint(tiny_folder, max_pixels=40_001, min_pixels=40_000)
    with pytest.raises(DataError, match="no size in multiples of 32 px"):
        reader.resized(300, 300)


def test_an_image_that_contradicts_its_record_is_an_error(reader: ImageReader, tmp_path: Path) -> None:
    noise(64, 96).save(tmp_path / "image.png")
    with pytest.raises(DataError, match=r"val:3: .*image\.png is 64x96 px, but the record says 96x64"):
        reader.read(record_of(tmp_path / "image.png", 96, 64))


def test_a_missing_a_broken_and_a_thin_image_are_errors(reader: ImageReader, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val:3: .*absent\.png cannot be read"):
        reader.read(record_of(tmp_path / "absent.png", 4, 4))
    whole = io.BytesIO()
    noise(64, 64).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:4000])
    with pytest.raises(DataError, match=r"val:3: .*cut\.png cannot be read"):
        reader.read(record_of(tmp_path / "cut.png", 64, 64))
    with pytest.raises(DataError, match="1x500 px cannot be resized"):
        reader.resized(1, 500)


def test_a_gigantic_image_is_refused_before_it_is_decoded(
    reader: ImageReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.images.LARGEST_FILE_PX", 64 * 64 - 1)
    noise(64, 64).save(tmp_path / "image.png")
    (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:200])
    with pytest.raises(DataError, match="more than 4095 in all"):
        reader.read(record_of(tmp_path / "image.png", 64, 64))
