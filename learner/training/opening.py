"""What moves the weights of a run: the model, its optimizer, and the thread on which both are used."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from learner.families.load import load_model
from learner.model.family import VisionLanguageModel
from learner.model.loaded import LoadedModel
from learner.plan.time_split import LearnerAccount, LearnerActivity
from learner.training.lane import ComputeLane
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.accounting import TimeAccount
from shared.config.models import Config


@dataclass(frozen=True)
class Training:
    """All that touches the model runs on `lane`, which books its time to `account`."""

    loaded: LoadedModel
    optimizer: StepOptimizer
    learner: Learner
    lane: ComputeLane
    account: LearnerAccount


@contextmanager
def open_training(
    config: Config,
    model: str,
    adapters: Path | None,
    *,
    num_steps: int,
    pad_token_id: int,
    console: Console,
) -> Iterator[Training]:
    """Load the checkpoint `model`, with `adapters` if there are any, for a run of `num_steps` optimizer steps."""
    account = TimeAccount(LearnerActivity)  # loading is time of the run too
    training = config.training
    with console.status(f"loading {model}"):
        loaded = load_model(
            model,
            dtype=config.model.dtype,
            attn_impl=config.model.attn_impl,
            tuner=config.tuner,
            seed=training.seed,
            adapters=adapters,
        )
    if training.gradient_checkpointing:
        checkpoint_activations(loaded.model)
    optimizer = StepOptimizer(loaded, training, num_steps)
    learner = Learner(loaded, optimizer, pad_token_id=pad_token_id, max_grad_norm=training.max_grad_norm)
    with ComputeLane(account) as lane:
        yield Training(loaded, optimizer, learner, lane, account)


def checkpoint_activations(model: VisionLanguageModel) -> None:
    """Keep no activations of the layers, and make them anew in the backward pass."""
    # transformers from 5.23 on has another name, and warns of the old one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
