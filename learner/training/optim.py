"""The optimizers of a run: parameter groups, AdamW and Muon, and the learning-rate schedule."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from learner.families.load import multiplies_bfloat16
from learner.model.family import VisionLanguageModel
from learner.model.loaded import LoadedModel
from learner.training.muon import Float32Muon
from shared.config.training import TrainingSection
from shared.errors import ConfigError
from shared.families.facts import Part

Kind = Literal["adamw", "muon"]
Group = Part | Literal["embed"]
"""What has a learning rate of its own: a part, or of the language model what `embed_lr` is about."""

MUON_LR_RATIO = 10.0
"""Muon's learning rate over AdamW's in the same part. An orthogonal update has a spectral norm of 1, so its rate is a
step length and not a step per value; 0.02 beside 0.002 trained the tiny model best."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an optimizer, a peak learning rate and a weight decay."""

    optimizer: Kind
    part: Group
    learning_rate: float
    weight_decay: float
    names: tuple[str, ...]


def parameter_groups(loaded: LoadedModel, training: TrainingSection) -> list[ParameterGroup]:
    """Sort a model's trained parameters into groups.

    The rate is `learning_rate`, or `vit_lr` and `aligner_lr` for vision tower and mergers, and `embed_lr` for
    embeddings and head, which are a group of their own where it is set. With `optim: muon` the weights of all linear
    layers but the head go to Muon, at `MUON_LR_RATIO` times the rate of their part. Weight decay falls on matrices,
    never on norms and biases.
    """
    hidden = _hidden_matrices(loaded.model) if training.optim == "muon" else frozenset[str]()
    model = loaded.model
    both = (model.get_input_embeddings(), model.get_output_embeddings()) if training.embed_lr else ()
    embed = {id(parameter) for layer in both for parameter in layer.parameters()}
    rates: dict[Group, float] = {
        "llm": training.learning_rate,
        "vit": training.vit_lr or training.learning_rate,
        "aligner": training.aligner_lr or training.learning_rate,
        "embed": training.embed_lr or training.learning_rate,
    }
    names: dict[tuple[Kind, Group, bool], list[str]] = {
        (kind, part, decays): [] for kind in get_args(Kind) for part in rates for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            optimizer: Kind = "muon" if name in hidden else "adamw"
            part = "embed" if id(parameter) in embed else loaded.family.facts.part_of(name)
            names[optimizer, part, parameter.ndim >= 2].append(name)
    return [
        ParameterGroup(
            optimizer=optimizer,
            part=part,
            learning_rate=rates[part] * (MUON_LR_RATIO if optimizer == "muon" else 1),
            weight_decay=training.weight_decay if decays else 0.0,
            names=tuple(members),
        )
        for (optimizer, part, decays), members in names.items()
        if members
    ]


class StepOptimizer:
    """All optimizers of a run as one, with their schedule.

    `optimizers` are AdamW and, with `optim: muon`, Muon; a step of one is a step of all.
    """

    def __init__(self, loaded: LoadedModel, training: TrainingSection, num_steps: int) -> None:
        named = dict(loaded.model.named_parameters())
        groups = parameter_groups(loaded, training)
        if not groups:
            raise ConfigError(
                "tuner.freeze_llm, freeze_vit and freeze_aligner leave nothing to train; free one of them"
            )
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        adamw = [_torch_group(group, named) for group in groups if group.optimizer == "adamw"]
        muon = [_torch_group(group, named) for group in groups if group.optimizer == "muon"]
        if adamw:
            self.optimizers["adamw"] = torch.optim.AdamW(adamw, betas=(0.9, 0.999), fused=True)
        if muon:
            kind = torch.optim.Muon if multiplies_bfloat16(loaded.device) else Float32Muon
            self.optimizers["muon"] = kind(muon)
        self.schedules = {name: _schedule(each, training, num_steps) for name, each in self.optimizers.items()}

    @property
    def parameters(self) -> list[Tensor]:
        """Everything that is trained."""
        return [p for each in self.optimizers.values() for group in each.param_groups for p in group["params"]]

    @property
    def learning_rate(self) -> float:
        """What the next step uses for AdamW's first group: the language model's, unless it is frozen."""
        return float(next(iter(self.optimizers.values())).param_groups[0]["lr"])

    def step(self) -> None:
        """Move the weights once and the schedule on by one."""
        for name, optimizer in self.optimizers.items():
            optimizer.step()
            self.schedules[name].step()

    def go_on_from(self, step: int) -> None:
        """Set the schedule to where it stands after `step` steps; it depends on nothing else."""
        for schedule in self.schedules.values():
            schedule.last_epoch = step
            for group, rate, factor in zip(
                schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
            ):
                group["lr"] = rate * factor(step)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)


def _hidden_matrices(model: VisionLanguageModel) -> frozenset[str]:
    """Names of the weights of all linear layers but the head."""
    head = model.get_output_embeddings()
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return frozenset(f"{name}.weight" for name, module in layers if module is not head)


def _torch_group(group: ParameterGroup, named: Mapping[str, Tensor]) -> dict[str, Any]:
    parameters: Iterable[Tensor] = [named[name] for name in group.names]
    return {"params": parameters, "lr": group.learning_rate, "weight_decay": group.weight_decay}


def _schedule(
    optimizer: torch.optim.Optimizer, training: TrainingSection, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    from transformers import get_scheduler

    details = {"num_decay_steps": ceil(training.lr_decay_ratio * num_steps), "decay_type": "linear"}
    schedule: torch.optim.lr_scheduler.LambdaLR = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=ceil(training.warmup_ratio * num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=details if training.lr_scheduler_type == "warmup_stable_decay" else None,
    )
    return schedule
