"""The tiny model is a complete checkpoint, and its tokenizers treat glue as they promise."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary
from learner.model.coordinate_rows import coordinate_rows
from learner.model.tiny import build_tiny
from learner.model.tiny_tokenizer import Glue

GLUES: tuple[Glue, ...] = ("plain", "fused")


@pytest.fixture(scope="module", params=GLUES)
def glue(request: pytest.FixtureRequest) -> Glue:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(glue: Glue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(glue)
    build_tiny(directory, tokenizer=glue)
    return directory


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> CoordinateVocabulary:
    return CoordinateVocabulary.from_tokenizer(AutoTokenizer.from_pretrained(checkpoint))


def pieces(vocabulary: CoordinateVocabulary, text: str) -> list[str]:
    return [vocabulary.decode_pieces([token_id]).decode() for token_id in vocabulary.encode(text)]


def circles(count: int) -> list[GroundTruthObject]:
    return [GroundTruthObject("red circle", "bbox_2d", (10, 20, 300, 400))] * count


def test_a_loaded_model_answers_an_image_with_finite_logits(checkpoint: Path) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint)
    processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    features = processor(images=[torch.zeros(3, 64, 96, dtype=torch.uint8).numpy()], return_tensors="pt")
    assert features["image_grid_thw"].tolist() == [[1, 4, 6]]
    placeholders = [model.config.image_token_id] * (4 * 6 // 4)
    ids = torch.tensor([[model.config.vision_start_token_id, *placeholders, model.config.vision_end_token_id]])
    is_image = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=is_image, **features).logits
    assert logits.shape == (1, 8, model.config.text_config.vocab_size)
    assert logits.isfinite().all()
    assert 0.2 < logits.std() < 5


def test_every_id_has_a_row_and_every_row_an_id(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint)
    assert sorted(tokenizer.get_vocab().values()) == list(range(model.get_input_embeddings().num_embeddings))
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 1_300_000


def test_an_object_costs_few_tokens(vocabulary: CoordinateVocabulary, glue: Glue) -> None:
    of_two, of_three = (len(vocabulary.encode(answer_text(circles(count)))) for count in (2, 3))
    assert of_three - of_two == {"plain": 15, "fused": 14}[glue]


def test_glue_crosses_the_border_of_objects_only_when_fused(vocabulary: CoordinateVocabulary, glue: Glue) -> None:
    answer = pieces(vocabulary, answer_text(circles(2)))
    assert ('"]}, "' in answer) == (glue == "fused")
    assert answer[-1 if glue == "fused" else -3 :] == {"fused": ['"]}}'], "plain": ['"]', "}", "}"]}[glue]
    in_two_parts = vocabulary.encode('"]') + vocabulary.encode("}}")
    assert (vocabulary.encode('"]}}') == in_two_parts) == (glue == "plain")


@pytest.mark.parametrize("text", ["", "{}", "café 猫 \n\t x", '"]}}, {"object_10', "<|im_end|><|coord_999|>"])
def test_ids_spell_any_text(vocabulary: CoordinateVocabulary, text: str) -> None:
    assert vocabulary.decode_pieces(vocabulary.encode(text)).decode() == text


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build_tiny(tmp_path / name, seed=seed)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    weights = "model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() != (tmp_path / "c" / weights).read_bytes()


def test_sizes_are_overridden_by_name(tmp_path: Path) -> None:
    build_tiny(tmp_path, num_hidden_layers=1, hidden_size=64)
    config = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).config
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (1, 64)
    with pytest.raises(TypeError, match="depth_of_thought"):
        build_tiny(tmp_path, depth_of_thought=3)


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_tiny(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_neighbouring_coordinates_begin_as_neighbours() -> None:
    rows = coordinate_rows(128)
    assert torch.allclose(rows.norm(dim=1), torch.ones(1000))
    similarity = rows @ rows[500]
    assert similarity.argmax() == 500
    assert similarity[501] > similarity[510] > similarity[700]
