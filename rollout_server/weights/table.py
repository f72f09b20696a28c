"""The inlets by their transport's name."""

from collections.abc import Mapping

from rollout_server.weights.file import FileInlet
from rollout_server.weights.http import HttpInlet
from rollout_server.weights.inlet import Inlet
from shared.weight_wire import Transport

INLETS: Mapping[Transport, Inlet] = {"file": FileInlet(), "http": HttpInlet()}
