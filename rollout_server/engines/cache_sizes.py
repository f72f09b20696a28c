"""What the keys and values of one token take."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CacheSizes:
    """Of a decoder's cache. `num_heads` are those of keys and values."""

    num_layers: int
    num_heads: int
    head_dim: int

    @classmethod
    def of(cls, text: Any) -> "CacheSizes":
        """Those of transformers' `text_config`; a head's size is the hidden size's share where it is not said."""
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(text.num_hidden_layers, text.num_key_value_heads, head_dim)

    @property
    def values_per_token(self) -> int:
        return 2 * self.num_layers * self.num_heads * self.head_dim
