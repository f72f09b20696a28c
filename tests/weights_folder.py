"""Where a run's weights pass through."""

from pathlib import Path

from shared.config.models import Config
from shared.weights_root import weights_root


def weights_of(config: Config) -> Path:
    return weights_root(config.rollout.vllm.sync, config.training.output_dir)
