"""Keys and values of the rows that are being decoded, preallocated and left-aligned.

A row's token t stands at column t, whatever the other rows' lengths are, so a row that joins or leaves moves nobody.
The two views speak the part of transformers' cache protocol that decoders use.
"""

from typing import Any

import torch
from torch import Tensor

LENGTH_STEP = 64


class RowCache:
    """One tensor [layers, key or value, rows, heads, length, head_dim], grown when more is asked for."""

    def __init__(
        self, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.states = torch.zeros(num_layers, 2, 0, num_heads, 0, head_dim, dtype=dtype, device=device)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens, keeping what is there."""
        layers, pair, old_rows, heads, old_length, head_dim = self.states.shape
        if rows <= old_rows and length <= old_length:
            return
        new_rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        new_length = max(old_length, -(-length // LENGTH_STEP) * LENGTH_STEP)
        # Zeros, not empty memory: a masked column still takes part in the product, and 0 × NaN is NaN.
        grown = self.states.new_zeros(layers, pair, new_rows, heads, new_length, head_dim)
        grown[:, :, :old_rows, :, :old_length] = self.states
        self.states = grown

    def copy(self, source: int, target: int, length: int) -> None:
        """Put the first `length` tokens of row `source` into row `target`."""
        self.states[:, :, target, :, :length] = self.states[:, :, source, :, :length]


class PrefillView:
    """Takes the prompts of new rows [first, first + batch), right-padded; attention is among themselves."""

    def __init__(self, cache: RowCache, first: int) -> None:
        self._cache = cache
        self._first = first

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows, length = slice(self._first, self._first + keys.shape[0]), keys.shape[2]
        self._cache.states[layer_idx, 0, rows, :, :length] = keys
        self._cache.states[layer_idx, 1, rows, :, :length] = values
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0


class StepView:
    """Takes one token of each of the first rows, at its own column, and shows the first `width` columns."""

    def __init__(self, cache: RowCache, columns: Tensor, width: int) -> None:
        self._cache = cache
        self._rows = torch.arange(len(columns), device=columns.device)
        self._columns = columns
        self._width = width

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        all_keys, all_values = self._cache.states[layer_idx]
        all_keys[self._rows, :, self._columns] = keys[:, :, 0]
        all_values[self._rows, :, self._columns] = values[:, :, 0]
        shown = slice(0, len(self._rows))
        return all_keys[shown, :, : self._width], all_values[shown, :, : self._width]
