"""The kinds of step by the letters of `schedule.pattern`. Stage 1 has one kind, which no pattern names."""

from collections.abc import Callable, Mapping

import torch

from learner.channels import expectation, reward, rollout_matching, teacher_forcing
from learner.channels.channel import StepKind, StepParts
from learner.channels.last_pass import LastPass
from learner.channels.reward_averages import RewardAverages
from learner.channels.target_maker import TargetMaker
from learner.model.loaded import LoadedModel
from learner.plan.schedule import Channel
from shared.config.models import Config

Opener = Callable[[StepParts], StepKind]

CHANNELS: Mapping[str, Opener] = {
    "A": expectation.open_steps,
    "B": rollout_matching.open_steps,
    "R": reward.open_steps,
}
STAGE_1: Opener = teacher_forcing.open_steps


def open_channels(
    config: Config, loaded: LoadedModel, targets: TargetMaker, averages: RewardAverages
) -> Mapping[Channel, StepKind]:
    """The kinds of step of a run; the log calls Stage 1's steps A."""
    coordinate_ids = torch.tensor(targets.vocabulary.coordinate_ids, device=loaded.device)
    parts = StepParts(config, LastPass(config.stage2, coordinate_ids), targets, averages)
    openers = {"A": STAGE_1} if config.is_stage_1 else CHANNELS
    return {Channel(letter): open_steps(parts) for letter, open_steps in openers.items()}
