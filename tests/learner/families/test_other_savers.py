"""Checkpoints as other tools save them: both sides read what the other one does."""

import json
import shutil
from pathlib import Path

import pytest

from learner.data.images import ImageReader
from learner.data.prompt import chat_text
from learner.families.load import load_tokenizer
from rollout_server.engines.prompt_rules import read_rules
from rollout_server.settings import limits_for
from shared.checkpoint_facts import chat_template_of, image_processor_of
from shared.errors import ConfigError


@pytest.fixture
def resaved(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with processor_config.json alone, as transformers 5 saves it, and chat_template.json alone."""
    folder = shutil.copytree(checkpoint, tmp_path / "resaved")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    (folder / "preprocessor_config.json").unlink()
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.mark.reported("processor_config.json alone")
def test_both_sides_find_the_image_processor(resaved: Path, checkpoint: Path) -> None:
    limits = limits_for(512, 4)
    assert read_rules(str(resaved), limits) == read_rules(str(checkpoint), limits)
    ours, theirs = ImageReader.from_checkpoint(resaved), ImageReader.from_checkpoint(checkpoint)
    assert ours.grid_of(640, 480) == theirs.grid_of(640, 480)


@pytest.mark.reported("chat_template.json alone")
def test_the_chat_template_of_a_processor_is_the_tokenizer_s(resaved: Path, checkpoint: Path) -> None:
    ours, theirs = (chat_text(load_tokenizer(str(folder)), "You.", "Detect.") for folder in (resaved, checkpoint))
    assert ours == theirs


@pytest.mark.parametrize("content", ["", "[]", "{", '{"image_processor": 7}', "{}"])
def test_a_processor_that_cannot_be_read_is_an_error_with_the_key(tmp_path: Path, content: str) -> None:
    (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(ConfigError, match="has no readable preprocessor_config"):
        image_processor_of(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"chat_template": {"default": "x"}}'])
def test_a_chat_template_that_is_none_is_no_error_of_its_own(tmp_path: Path, content: str) -> None:
    (tmp_path / "chat_template.json").write_text(content)
    assert chat_template_of(tmp_path) is None
