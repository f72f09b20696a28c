"""An engine that has work and gets nowhere."""

from dataclasses import dataclass

import anyio

from rollout_server.engines.base import EngineLoad
from rollout_server.stall_watch import StallWatch
from shared.wire import RolloutBatch, RolloutSample, Sampling


@dataclass
class Story:
    """An engine's load and a clock that the test sets; both stand for the real ones."""

    now: float = 0.0
    running: int = 0
    tokens: int = 0
    admitted_at: float = 0.0

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, self.tokens)

    def watch(self) -> StallWatch:
        return StallWatch(self, self, lambda: self.running, 10.0, clock=lambda: self.now)  # type: ignore[arg-type]


def is_live_at(story: Story, watch: StallWatch, now: float, **load: float) -> bool:
    story.__dict__.update(load, now=now)
    return watch.health().live


def test_work_without_a_token_is_a_stall_until_there_is_one() -> None:
    story = Story()
    watch = story.watch()
    assert is_live_at(story, watch, 5, running=2)
    assert not is_live_at(story, watch, 11)
    assert "2 requests and no token for 11 s" in watch.health().reason
    assert is_live_at(story, watch, 12, tokens=1)
    assert is_live_at(story, watch, 22)
    assert not is_live_at(story, watch, 23)


def test_a_slow_engine_and_an_idle_one_are_live() -> None:
    story = Story()
    watch = story.watch()
    assert all(is_live_at(story, watch, 9 * n, running=1, tokens=n) for n in range(1, 5))
    assert all(is_live_at(story, watch, 100 * n, running=0) for n in range(1, 5))


def test_work_that_has_just_come_is_no_stall_however_long_nobody_looked() -> None:
    story = Story()
    watch = story.watch()
    assert is_live_at(story, watch, 1)
    assert is_live_at(story, watch, 500, running=1, admitted_at=495)
    assert not is_live_at(story, watch, 506)


async def test_health_says_that_a_server_is_stalled(serving, scripted) -> None:
    sample = RolloutSample(uid="a", prompt_token_ids=(20,))
    batch = RolloutBatch(batch_id="b", sampling=Sampling(max_new_tokens=1, stop_token_ids=()), samples=(sample,))
    with serving(scripted({"faults": {"a": "hang"}}, stall_timeout_s=0.3)) as running:
        async with running.client() as client:
            assert (await client.get("/health/")).status_code == 200
            async with client.stream("POST", "/rollouts", content=batch.model_dump_json()) as response:
                assert response.status_code == 200
                await anyio.sleep(0.5)
                reply = await client.get("/health/")
    assert reply.status_code == 503
    assert "no token" in reply.text
    assert "stall_timeout_s" in reply.text
