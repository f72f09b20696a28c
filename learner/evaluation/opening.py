"""When a run is evaluated, and on what."""

from pathlib import Path

from rich.console import Console

from learner.data.opening import Data
from learner.decoding.opening import Decoding
from learner.detection.matching import MatchingConfig
from learner.evaluation.answers import Asking, Validation
from learner.evaluation.evaluate import Evaluation, EvaluationPlan
from learner.plan.planner import Planner
from learner.reporting.sinks import Sinks
from shared.config.models import Config
from shared.config.section import pick

NUM_EVAL_PICTURES = 8


def open_evaluation(
    config: Config, data: Data, planner: Planner, decoding: Decoding, sinks: Sinks, console: Console, pictures: Path
) -> Evaluation:
    """The evaluation of the validation records, with the first of them drawn into `pictures`."""
    training = config.training
    every = {
        "no": None,
        "steps": training.eval_steps or training.logging_steps,
        "epoch": max(1, planner.num_steps(1)),
    }[training.eval_strategy]
    plan = EvaluationPlan(
        every=every,
        at_start=training.eval_on_start,
        num_pictures=NUM_EVAL_PICTURES,
        pictures=pictures,
    )
    asking = Asking(data.encoder, data.vocabulary, decoding.pool, decoding.sampling)
    validation = Validation(data.validation, asking, decoding.decoder, console)
    return Evaluation(plan, validation, pick(MatchingConfig, config.rollout), sinks)
