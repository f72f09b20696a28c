"""Where an image does not say how many objects there are, an answer ends as often as the annotations do."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.channels.last_pass import LastPass, SinglePass
from learner.detection.decision import decision_place, ending
from learner.detection.openings import OPEN_ANSWER
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import CLOSE_OBJECT
from learner.detection.targets import ground_truth_target
from learner.model.forward import embed, encode_images, hidden_states
from learner.plan.step_plan import StepTotals
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.config.stage2 import Stage2Section
from shared.config.training import TrainingSection

ONLY_CE = Stage2Section(bbox_l1_weight=0, bbox_giou_weight=0, coord_gate_weight=0)
SHARE_OF_SHORT = 0.2
OBJECTS = [
    GroundTruthObject("red circle", "bbox_2d", (100, 100, 300, 300)),
    GroundTruthObject("blue square", "bbox_2d", (500, 300, 800, 600)),
    GroundTruthObject("red circle", "bbox_2d", (100, 700, 300, 900)),
]


@pytest.mark.slow
@pytest.mark.parametrize("short", [0, pytest.param(1, marks=pytest.mark.very_slow)])
@pytest.mark.parametrize(("num_samples", "num_steps"), [(2, 300), (32, 40)])
def test_the_learned_odds_of_stopping_are_those_of_the_annotations(
    workbench: Any, pack_of: Any, num_samples: int, num_steps: int, short: int
) -> None:
    """Divided by its own weight an answer of no object would have ten times the vote of one of three: P .7 for .2."""
    long = len(OBJECTS)
    samples = {count: sample_of(workbench, OBJECTS[:count]) for count in (short, long)}
    weights = {count: sample.target.ce_denominator for count, sample in samples.items()}
    weight = SHARE_OF_SHORT * weights[short] + (1 - SHARE_OF_SHORT) * weights[long]
    training = TrainingSection(output_dir=Path(), learning_rate=3e-3, lr_scheduler_type="linear", warmup_ratio=0.05)
    learner = Learner(workbench.loaded, StepOptimizer(workbench.loaded, training, num_steps), pad_token_id=0)
    objective = SinglePass(LastPass(ONLY_CE, workbench.coordinate_ids))
    chance = random.Random(0)
    counts = [short] * round(SHARE_OF_SHORT * 1000) + [long] * round((1 - SHARE_OF_SHORT) * 1000)
    chance.shuffle(counts)
    for step in range(num_steps):
        drawn = [samples[counts[(step * num_samples + place) % 1000]] for place in range(num_samples)]
        learner.accumulate(learner.lay_out(pack_of(*drawn)), objective, StepTotals(num_samples, 1, weight))
        learner.update()
    assert stop_probability(workbench, learner, samples[short], pack_of) == pytest.approx(SHARE_OF_SHORT, abs=0.05)


def sample_of(bench: Any, objects: Sequence[GroundTruthObject]) -> Any:
    """These objects on the one picture of this test."""
    plain = bench.sample(0, 0, grid=(1, 4, 4))
    prompt = plain.target.token_ids[: plain.target.num_prompt_tokens]
    return replace(plain, target=ground_truth_target(f"made:{len(objects)}", prompt, objects, bench.vocabulary))


def stop_probability(bench: Any, learner: Learner, sample: Any, pack_of: Any) -> float:
    """Of the token that ends the sample's answer where it is decided."""
    lead = CLOSE_OBJECT if sample.target.boxes else OPEN_ANSWER
    place = (
        sample.target.num_tokens
        - len(ending(bench.vocabulary, lead).token_ids)
        + decision_place(bench.vocabulary, lead)
    )
    batch = learner.lay_out(pack_of(sample)).batch
    with torch.no_grad():
        images = encode_images(bench.loaded, batch)
        hidden = hidden_states(bench.loaded, batch, embed(bench.loaded, batch, images), images)
        scores = bench.loaded.model.lm_head(hidden[0, place - 1]).float()
    return float(scores.softmax(-1)[sample.target.token_ids[place]])
