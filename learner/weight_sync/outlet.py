"""One way for weights to leave the learner. The server's side of it has the same name: rollout_server/weights/inlet.py.

To add one: its word in `Transport` of shared/wire.py, a file here and one there, and a row in both tables.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from learner.servers.weights import WeightChannel
from shared.weight_wire import SyncMode, Transport, WeightManifest
from shared.wire import PolicyVersion


class Offer(Protocol):
    """One version of the weights, ready to be announced and brought to any number of servers."""

    @property
    def manifest(self) -> WeightManifest: ...

    async def deliver(self, channel: WeightChannel) -> None:
        """Bring the data to a server that has been told of it; raises WeightSyncFailed."""

    def drop(self) -> None:
        """Give back what it holds; it is offered to nobody any more."""


class Outlet(Protocol):
    """Makes offers. `needs_shared_folder` says whether servers must see the learner's weights root."""

    @property
    def name(self) -> Transport: ...

    @property
    def needs_shared_folder(self) -> bool: ...

    def offer(self, root: Path, tensors: Mapping[str, torch.Tensor], version: PolicyVersion, mode: SyncMode) -> Offer:
        """Make weights ready, where the model may be read; `root` is the learner's own folder for that.

        Raises WeightSyncFailed when they cannot be kept; nothing of them is left then.
        """
        ...
