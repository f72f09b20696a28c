"""The outlets by the word of `vllm.sync.transport`."""

from collections.abc import Mapping

from learner.weight_sync.file import FileOutlet
from learner.weight_sync.http import HttpOutlet
from learner.weight_sync.outlet import Outlet
from shared.weight_wire import Transport

OUTLETS: Mapping[Transport, Outlet] = {"file": FileOutlet(), "http": HttpOutlet()}
