import torch

from rollout_server.engines.hf.cache import PrefillView, RowCache, StepView


def cache() -> RowCache:
    return RowCache(num_layers=2, num_heads=1, head_dim=1, dtype=torch.float32, device=torch.device("cpu"))


def states(*rows: list[float]) -> torch.Tensor:
    """Keys [rows, heads 1, length, head_dim 1]."""
    return torch.tensor(rows)[:, None, :, None]


def test_growing_keeps_what_is_held_and_adds_zeros() -> None:
    held = cache()
    held.reserve(1, 2)
    PrefillView(held, 0).update(states([1.0, 2.0]), states([3.0, 4.0]), 1)
    held.reserve(3, 100)
    assert held.states.shape[2] >= 3
    assert held.states.shape[4] >= 100
    assert held.states[1, :, 0, 0, :2, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert held.states.sum() == 10


def test_a_step_writes_each_row_at_its_own_column() -> None:
    held = cache()
    held.reserve(2, 4)
    PrefillView(held, 0).update(states([1.0, 2.0], [3.0, 0.0]), states([0.0, 0.0], [0.0, 0.0]), 0)
    keys, _ = StepView(held, torch.tensor([2, 1]), width=3).update(states([9.0], [8.0]), states([0.0], [0.0]), 0)
    assert keys[:, 0, :, 0].tolist() == [[1.0, 2.0, 9.0], [3.0, 8.0, 0.0]]


def test_a_moved_row_is_the_same_row() -> None:
    held = cache()
    held.reserve(2, 4)
    PrefillView(held, 0).update(states([1.0, 2.0], [3.0, 4.0]), states([5.0, 6.0], [7.0, 8.0]), 0)
    held.copy(1, 0, 2)
    assert held.states[0, :, 0, 0, :2, 0].tolist() == [[3.0, 4.0], [7.0, 8.0]]
