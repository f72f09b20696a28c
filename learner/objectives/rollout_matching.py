"""Channel B: teacher forcing of what the model wrote, completed by what it missed."""

from dataclasses import dataclass

from learner.objectives.supervised import Supervised


@dataclass(frozen=True)
class RolloutMatching(Supervised):
    """One pass: the prefix is the model's own already, so its context needs no softening."""
