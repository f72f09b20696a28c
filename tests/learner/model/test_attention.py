"""What torch's flash kernels are asked for: checked on a CPU by a plain loop in their place.

They need a GPU; with one, test_forward.py and test_reference.py run them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.model import attention
from learner.model.batch import Layout
from learner.packing.collate import collate
from shared.config.stage2 import Stage2Section
from shared.errors import ConfigError


def plain_varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> Tensor:  # fmt: skip
    """`torch.nn.attention.varlen.varlen_attn` segment by segment, for the arguments it documents."""
    assert query.dtype == key.dtype == value.dtype
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.equal(cu_seq_k)
    lengths = cu_seq_q.diff().tolist()
    assert cu_seq_q[0] == 0
    assert sum(lengths) == len(query)
    assert max(lengths) == max_q == max_k
    mixed = [
        torch.nn.functional.scaled_dot_product_attention(
            *(states.transpose(0, 1)[None] for states in segment),
            scale=scale,
            is_causal={(-1, 0): True, (-1, -1): False}[window_size],
            enable_gqa=enable_gqa,
        )[0].transpose(0, 1)
        for segment in zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
    ]
    return torch.cat(mixed)


@pytest.mark.parametrize("layout", ["rows", "flat"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradients_are_those_of_attention_by_matrix_products(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any, monkeypatch: pytest.MonkeyPatch,
    dtype: str, layout: Layout,
) -> None:  # fmt: skip
    monkeypatch.setattr(attention, "varlen_attn", plain_varlen)
    found = []
    for implementation in ("matmul", "varlen"):
        bench = workbench_of(dtype=dtype)
        bench.loaded.model.set_attn_implementation(implementation)
        samples = [bench.sample(0, 2), bench.sample(1, 3, grid=(1, 4, 8)), bench.sample(2, 1)]
        batch = collate(pack_of(*samples), bench.loaded, pad_token_id=bench.tokenizer.pad_token_id, layout=layout)
        terms = Expectation(LastPass(Stage2Section(), bench.coordinate_ids), 2)(
            bench.loaded, batch, step_totals_of(*samples)
        )
        terms.total.backward()
        found.append({name: p.grad for name, p in bench.loaded.model.named_parameters()})
    expected, ours = found
    for name, gradient in expected.items():
        assert gradient is not None
        assert float((ours[name] - gradient).norm()) <= (1e-5 if dtype == "float32" else 0.1) * float(gradient.norm())


def test_attention_dropout_is_refused() -> None:
    states = torch.zeros(1, 1, 2, 8)
    borders = torch.tensor([0, 2], dtype=torch.int32)
    with pytest.raises(ConfigError, match=r"varlen has no attention dropout \(0\.1\); use sdpa"):
        attention.varlen_attention(None, states, states, states, None, 1.0, 0.1, cu_seq_lens_q=borders, max_length_q=2)
