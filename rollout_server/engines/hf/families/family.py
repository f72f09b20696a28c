"""What a family of models must offer to be decoded by the `hf` engine."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from rollout_server.engines.prompt_rules import Grid


class DecodedFamily(Protocol):
    """One family. It keeps nothing of a model: `model` is transformers' own, of this family."""

    num_axes: int
    """rotary axes: 3 for time, height and width"""

    def positions(self, model: Any, token_ids: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, int]:
        """Rotary positions [axes, T] of an expanded prompt [T] with images of these grids, on the CPU.

        The second is what a token of the answer adds to its place in the sequence to get its position.
        """
        ...

    def fill_images(
        self, model: Any, embeds: Tensor, placeholders: Tensor, pixels: Tensor, grids: Tensor
    ) -> dict[str, Any]:
        """Put the features of all images into `embeds` [rows, T, hidden] where `placeholders` [rows, T] are.

        Returns what else the decoder is given of them.
        """
        ...
