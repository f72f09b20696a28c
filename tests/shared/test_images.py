"""An image means the same pixels, or the same refusal, to the check, to the learner and to a server."""

import io
import json
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from learner.data.check import Checks, check_file
from learner.data.images import ImageReader, read_image
from learner.detection.record import read_records
from learner.detection.record_rules import Rules
from rollout_server.engines.base import SampleRejected
from rollout_server.engines.prompt_rules import IMAGE_FORMATS, PromptRules, read_rules
from rollout_server.settings import limits_for
from shared.errors import DataError
from shared.images import BadImage, image_size, open_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells of what it reads past

# What Pillow here can write, by the modes that each takes.
WRITES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA", "L"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "PPM": ("1", "L", "RGB", "I;16", "I"),
    "TGA": ("L", "P", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "ICO": ("RGBA", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "DDS": ("L", "LA", "RGB", "RGBA"),
    "IM": ("L", "RGB", "I;16", "F"),
    "AVIF": ("RGB", "RGBA"),
    "JPEG2000": ("L", "RGB", "RGBA", "I;16"),
    "MSP": ("1",),
    "SPIDER": ("F",),
}
TAKE_NO_EXIF = {"BMP", "GIF", "PPM", "TGA", "PCX", "ICO", "SGI", "DDS", "IM", "MSP", "SPIDER", "JPEG2000"}
REFUSED = {"F", "LAB"}


def picture(mode: str, width: int, height: int) -> Image.Image:
    """A ramp from black to white, left to right, in any mode."""
    ramp = np.linspace(0, 255, width * height).reshape(height, width)
    if mode == "F":
        return Image.fromarray(ramp.astype(np.float32))
    if mode in ("I;16", "I"):
        image = Image.fromarray((ramp * 257).astype(np.uint16))
        return image if mode == "I;16" else image.convert("I")
    grey = Image.fromarray(ramp.astype(np.uint8))
    return Image.new("LAB", (width, height)) if mode == "LAB" else grey.convert("RGB").convert(mode)


def encoded(mode: str, kind: str, width: int, height: int, orientation: int = 1) -> bytes:
    image, file = picture(mode, width, height), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind in TAKE_NO_EXIF else {"exif": exif}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # formats that Pillow is going to drop
        image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def readable() -> dict[str, tuple[str, ...]]:
    """The formats and modes that this build of Pillow really writes."""
    found: dict[str, tuple[str, ...]] = {}
    for kind, modes in WRITES.items():
        for mode in modes:
            try:
                encoded(mode, kind, 16, 16)
            except (OSError, KeyError, ValueError):
                continue
            found[kind] = (*found.get(kind, ()), mode)
    assert {"PNG", "JPEG", "TIFF", "PPM"} <= found.keys()
    return found


@pytest.fixture(scope="module")
def reader(checkpoint: Path) -> ImageReader:
    return ImageReader.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def rules(checkpoint: Path) -> PromptRules:
    return read_rules(str(checkpoint), limits_for(512, 4))


def test_every_mode_of_pillow_has_a_way_or_a_refusal(readable: dict[str, tuple[str, ...]]) -> None:
    for kind, modes in readable.items():
        for mode in modes:
            data = encoded(mode, kind, 32, 16)
            with Image.open(io.BytesIO(data)) as stored:
                stored_mode, size = stored.mode, stored.size
            if stored_mode in REFUSED or (stored_mode == "I" and kind not in ("PPM", "PNG")):
                with pytest.raises(BadImage, match=f"its mode is {stored_mode}"):
                    open_image(data)
                continue
            pixels = np.asarray(open_image(data).image, dtype=np.float64)
            assert pixels.shape == (size[1], size[0], 3), (kind, mode)
            if stored_mode != "1":
                assert abs(pixels.mean() - 127.5) < 6, f"{kind} {mode} ({stored_mode}) is {pixels.mean():.0f} bright"
                assert pixels[0, 0].mean() < 12, (kind, mode)
                assert pixels[-1, -1].mean() > 243, (kind, mode)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_undone_once(kind: str, orientation: int, tmp_path: Path, readable) -> None:
    if "RGB" not in readable.get(kind, ()):
        pytest.skip(f"this Pillow writes no {kind}")
    data = encoded("RGB", kind, 32, 16, orientation)
    with Image.open(io.BytesIO(data)) as stored:
        expected = ImageOps.exif_transpose(stored).convert("RGB")
    assert np.array_equal(np.asarray(open_image(data).image), np.asarray(expected))
    (tmp_path / "image").write_bytes(data)
    assert image_size(tmp_path / "image") == expected.size


@pytest.mark.slow
@pytest.mark.reported("Qwen3-VL#661 vllm#18569 cutout.png")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white_on_both_sides(mode: str, tmp_path: Path, rules: PromptRules) -> None:
    image, file = Image.new("RGBA", (64, 32), (10, 20, 30, 0)).convert(mode), io.BytesIO()
    image.save(file, "PNG" if mode != "PA" else "TIFF")
    assert open_image(file.getvalue()).image.getextrema() == ((255, 255),) * 3
    if mode != "PA":
        assert rules.open_image(file.getvalue()).getextrema() == ((255, 255),) * 3


@pytest.mark.reported("Qwen3-VL#661 vllm#18569 palette-alpha.png")
def test_a_colour_that_is_declared_transparent_is_white() -> None:
    for mode, clear in (("RGB", (10, 20, 30)), ("L", 30), ("P", 0)):
        file = io.BytesIO()
        Image.new(mode, (8, 8), clear).save(file, "PNG", transparency=clear)
        opened = open_image(file.getvalue())
        assert opened.image.getextrema() == ((255, 255),) * 3, mode
        assert not opened.is_as_stored


@pytest.mark.reported("unsloth#10094 Pillow#1108 sixteen.png, sixteen.tif")
def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    for kind in ("PNG", "TIFF"):
        pixels = np.asarray(open_image(encoded("I;16", kind, 64, 48)).image)
        assert len(np.unique(pixels)) > 200, kind


@pytest.mark.reported(
    "ms-swift#3275 LlamaFactory#8733 cut.jpg", "Qwen-VL-Series-Finetune#133 transformers#37264 strip.jsonl"
)
@pytest.mark.slow
@given(
    data=st.data(),
    width=st.sampled_from([1, 7, 16, 32, 210, 640]),
    height=st.sampled_from([1, 3, 16, 32, 33]),
    orientation=st.integers(0, 9),
    cut=st.one_of(st.none(), st.integers(1, 40)),
    name=st.sampled_from(["a.img", "ü 日本.png", "a b#c.jpg", "x" * 200, "deep/er/a.tif"]),
    lie=st.sampled_from([0, 0, 0, 1]),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_check_passes_training_and_servers_take_and_what_it_names_they_refuse(
    readable, reader, rules, tmp_path, data, width, height, orientation, cut, name, lie
) -> None:
    kind = data.draw(st.sampled_from(sorted(readable)))
    mode = data.draw(st.sampled_from(readable[kind]))
    try:
        content = encoded(mode, kind, width, height, orientation)
    except (OSError, ValueError, SystemError):
        return  # this format has no such small image
    content = content[: -cut or None] if cut else content
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    turned = 5 <= orientation <= 8 and kind not in TAKE_NO_EXIF
    size = (height, width) if turned else (width, height)
    jsonl = tmp_path / "train.jsonl"
    line = json.dumps({"images": [name], "width": size[0] + lie, "height": size[1], "objects": []})
    jsonl.write_text(line, encoding="utf-8")

    _, counts = check_file(jsonl, Checks(Rules(), "decode", reader))
    assert counts.records + len(counts.skipped) == 1
    (record,) = read_records(jsonl, check_images=False, on_bad_record="skip") if counts.records else (None,)
    if record is None:
        assert f"{jsonl}:1:" in str(counts.skipped[0])
        told = counts.skipped[0].reason
        too_long = max(size) > 200 * min(size)
        assert lie or cut or too_long or keeps_another_size(content, size) or "its mode is" in told, told
        for record in read_records(jsonl, check_images=False, on_bad_record="skip"):
            with pytest.raises(DataError):
                reader.read(record)
        return
    image = reader.read(record)
    assert rules.open_image(image.png).size == (image.grid[2] * rules.patch_size, image.grid[1] * rules.patch_size)
    assert image_size(file) == (record.width, record.height)


def keeps_another_size(content: bytes, size: tuple[int, int]) -> bool:
    """Whether the format could not hold an image of this size, as icons cannot."""
    with Image.open(io.BytesIO(content)) as stored:
        return stored.size not in (size, size[::-1])


def flipped(content: bytes, seed: int) -> Iterator[bytes]:
    """The file with single bytes and runs of bytes replaced."""
    chance = random.Random(seed)
    for _ in range(60):
        broken = bytearray(content)
        for _ in range(chance.choice((1, 2, 8))):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        yield bytes(broken)


@pytest.mark.reported("ViLT#55 broken AVIF, DDS")
@pytest.mark.slow
def test_broken_files_of_every_format_are_bad_images_and_nothing_else(readable: dict[str, tuple[str, ...]]) -> None:
    refused = []
    for seed, (kind, modes) in enumerate(readable.items()):
        for mode in modes:
            for broken in flipped(encoded(mode, kind, 16, 16), seed):
                try:
                    open_image(broken, formats=None)
                except BadImage as error:
                    refused.append(str(error))
    assert len(refused) > 300
    assert all(refused)


@pytest.mark.slow
def test_a_server_refuses_broken_files_one_by_one(rules: PromptRules, readable: dict[str, tuple[str, ...]]) -> None:
    for seed, kind in enumerate(IMAGE_FORMATS):
        for broken in flipped(encoded("RGB", kind, 32, 32), seed):
            with suppress(SampleRejected):
                assert rules.open_image(broken).size == (32, 32)


def bomb(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, whose pixels compress to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.slow
@pytest.mark.reported("vllm#55546 20000x20000 px in 50 kB")
def test_a_bomb_is_refused_before_a_pixel_is_decoded(rules: PromptRules) -> None:
    data = bomb(20_000, 20_000)
    assert len(data) < 60_000
    with pytest.raises(BadImage, match="20000x20000 px are more than"):
        open_image(data)
    with pytest.raises(SampleRejected) as refused:
        rules.open_image(data)
    assert refused.value.code == "bad_image"


def test_the_header_of_a_png_is_read_without_its_pixels(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 32)).save(file, "PNG")
    path = tmp_path / "cut.png"
    path.write_bytes(file.getvalue()[:60])
    assert image_size(path) == (64, 32)


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (64, 32)).save(file, "PNG")
    body, end = file.getvalue()[:-12], file.getvalue()[-12:]
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    assert open_image(body + chunk + end).image.size == (32, 64)


def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (64, 32)).save(file, "JPEG", exif=exif)
    broken = file.getvalue().replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    assert open_image(broken).image.size == (64, 32)


def test_a_file_that_changes_its_size_while_decoded_is_refused(tmp_path: Path) -> None:
    jsonl = tmp_path / "a.jsonl"
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    jsonl.write_text('{"images": ["a.png"], "width": 64, "height": 32, "objects": []}\n')
    (record,) = read_records(jsonl)
    Image.new("RGB", (32, 64)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is 32x64 px, but the record says 64x32"):
        read_image(record)
