"""Nothing in a step's forward and backward looks at a value: the host never waits for the device.

On the meta device tensors have no values, so whatever asks for one raises.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.model.batch import Layout
from learner.packing.collate import collate
from shared.config.stage2 import Stage2Section

META = torch.device("meta")
ALL_TERMS = Stage2Section(coord_soft_ce_weight=1, coord_w1_weight=1)


@pytest.mark.parametrize("layout", ["rows", "flat"])
@pytest.mark.parametrize("attn_impl", ["matmul", "sdpa", "eager", "varlen"])
def test_a_step_reads_no_value(
    workbench_of: Callable[..., Any], pack_of: Any, step_totals_of: Any, attn_impl: str, layout: Layout
) -> None:
    bench = workbench_of()
    bench.loaded.model.set_attn_implementation(attn_impl)  # a name would be refused that needs a GPU
    samples = [bench.sample(0, 3), bench.sample(1, 0), bench.sample(2, 2, grid=(1, 4, 8))]
    batch = collate(pack_of(*samples), bench.loaded, pad_token_id=bench.tokenizer.pad_token_id, layout=layout)
    batch = batch.to(META)
    loaded = replace(bench.loaded, model=bench.loaded.model.to(META))
    objective = Expectation(LastPass(ALL_TERMS, bench.coordinate_ids.to(META)), 3)
    terms = objective(loaded, batch, step_totals_of(*samples))
    terms.total.backward()
    assert terms.numbers().device == META
    assert all(p.grad is not None and p.grad.device == META for p in loaded.model.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        terms.total.item()
