"""The Python that users, benchmarks and tests import: taking a name or a parameter away breaks somebody's code."""

import inspect
import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest

from learner.detection.matching import MatchingConfig

DETECTION = "learner.detection"

CALLS: dict[str, tuple[str, ...]] = {
    f"{DETECTION}.record.read_records": ("path", "coordinate_space='px'", "on_bad_record='error'"),
    f"{DETECTION}.vocabulary.CoordinateVocabulary.from_tokenizer": ("tokenizer",),
    f"{DETECTION}.vocabulary.CoordinateVocabulary.bin_of": ("self", "token_id"),
    f"{DETECTION}.vocabulary.CoordinateVocabulary.id_of": ("self", "bin"),
    f"{DETECTION}.vocabulary.CoordinateVocabulary.is_coordinate": ("self", "token_id"),
    f"{DETECTION}.vocabulary.CoordinateVocabulary.encode": ("self", "text"),
    f"{DETECTION}.serialize.answer_text": ("objects", "start_index=1"),
    f"{DETECTION}.parsing.parse_rollout": ("token_ids", "vocabulary", "finish_reason=None", "kinds=('bbox_2d',)"),
    f"{DETECTION}.parsing.RolloutParser": ("vocabulary", "kinds=('bbox_2d',)"),
    f"{DETECTION}.parsing.RolloutParser.feed": ("self", "token_ids"),
    f"{DETECTION}.parsing.RolloutParser.finish": ("self", "finish_reason=None"),
    f"{DETECTION}.matching.match_objects": ("predictions", "ground_truth", f"config={MatchingConfig()!r}"),
    f"{DETECTION}.matching.MatchingConfig": (
        "candidate_top_k=5",
        "maskiou_resolution=256",
        "maskiou_gate=0.3",
        "fp_cost=1.0",
        "fn_cost=1.0",
    ),
    f"{DETECTION}.targets.ground_truth_target": ("record_id", "prompt_token_ids", "objects", "vocabulary"),
    f"{DETECTION}.targets.rollout_target": (
        "record_id",
        "prompt_token_ids",
        "objects",
        "parsed",
        "match",
        "vocabulary",
        "capacity=None",
    ),
    "learner.packing.packer.pack_lengths": ("lengths", "capacity"),
    "learner.packing.packer.Packer": ("capacity", "min_fill"),
    "learner.packing.packer.Packer.add": ("self", "item"),
    "learner.packing.packer.Packer.take": ("self",),
    "learner.packing.packer.Packer.close": ("self",),
    "learner.plan.schedule.channel_of": ("step", "pattern"),
}
"""The parameters each call begins with; it may take more, if it can do without them."""

FIELDS = {
    f"{DETECTION}.record.Record": "record_id images width height objects metadata",
    f"{DETECTION}.record.GroundTruthObject": "desc kind bins",
    f"{DETECTION}.parsing.ParsedRollout": "predictions prefix_token_ids next_index dropped notices truncated malformed "
    "empty",
    f"{DETECTION}.prediction.Prediction": "index desc kind bins positions",
    f"{DETECTION}.matching.Match": "pairs missing extra gating_rejections",
    f"{DETECTION}.targets.Target": "record_id token_ids num_prompt_tokens ce_positions ce_weights boxes ce_denominator",
}
"""What a result can be asked for."""


def named(path: str) -> object:
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{path} cannot be imported")


@pytest.mark.parametrize("path", CALLS)
def test_a_call_takes_what_it_always_took(path: str) -> None:
    parameters = list(inspect.signature(named(path)).parameters.values())  # type: ignore[arg-type]
    frozen = CALLS[path]
    bare = [each.replace(annotation=each.empty) for each in parameters]
    assert tuple(str(each) for each in bare[: len(frozen)]) == frozen
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    assert all(each.default is not each.empty or each.kind in optional for each in bare[len(frozen) :])


@pytest.mark.parametrize("path", ["ground_truth_target", "rollout_target"])
def test_weights_can_be_given_by_name(path: str) -> None:
    signature = inspect.signature(named(f"{DETECTION}.targets.{path}"))  # type: ignore[arg-type]
    assert any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())


@pytest.mark.parametrize("path", FIELDS)
def test_a_result_has_what_it_always_had(path: str) -> None:
    kind = named(path)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    assert set(FIELDS[path].split()) <= names


def test_a_vocabulary_knows_where_answers_stop() -> None:
    assert "stop_ids" in {field.name for field in fields(named(f"{DETECTION}.vocabulary.CoordinateVocabulary"))}


def test_all_of_it_is_there_without_torch() -> None:
    modules = sorted({".".join(path.split(".")[:3]) for path in [*CALLS, *FIELDS]})
    code = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
