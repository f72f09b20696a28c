"""The six steps with real vLLM behind the stream."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.slow

ROLLOUT = "custom.extra.rollout_matching"


def test_six_steps_with_vllm_learn_from_answers_of_the_newest_weights(
    start: Callable[..., object], config_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    config = config_of(tmp_path)
    command = start("up", f"config={config}", "server_port=0", f"{ROLLOUT}.rollout_backend=vllm")
    assert command.end(240) == 0, command.told
    steps = [record for record in command.log() if "loss" in record]
    decoded = [record for record in steps if record["stage2/channel_b"]]
    assert (len(steps), len(decoded)) == (6, 2)
    for record in decoded:
        assert record["stage2/raw_rollouts"] == 6
        assert record["stage2/policy_lag"] == 0
        assert record["rollout/gen_tokens_per_s"] > 0
        assert record["rollout/sample_valid_pred_rate"] > 0
    assert command.pids() == []
