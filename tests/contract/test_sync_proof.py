"""After every sync the server answers as the learner's own model does, token by token, in float32."""

from collections.abc import Callable

import pytest

from learner.model.loaded import LoadedModel
from shared.wire import Sampling
from tests.contract.own_answers import Learner, assert_same

pytestmark = pytest.mark.slow

TUNERS = {
    "full": {},
    "LoRA": {"train_type": "lora", "lora_rank": 4},
    "DoRA": {"train_type": "lora", "lora_rank": 4, "use_dora": True},
    "DoRA and coordinate rows": {"train_type": "lora", "lora_rank": 4, "use_dora": True, "coordinate_rows": True},
    "full, of embeddings the coordinate rows": {"coordinate_rows": True},
    "LoRA on the vision tower": {"train_type": "lora", "lora_rank": 4, "freeze_llm": True},
    "LoRA on one of three fused": {"train_type": "lora", "lora_rank": 4, "target_modules": ["k_proj", "up_proj"]},
}


@pytest.fixture(scope="session")
def learner_of(load: Callable[..., LoadedModel], requests, sampling: Sampling) -> Callable[[str], Learner]:
    """One learner a tuner: its answers are the same for every engine and transport."""
    made: dict[str, Learner] = {}

    def learner(tuner: str) -> Learner:
        if tuner not in made:
            made[tuner] = Learner(load(**TUNERS[tuner]), requests, sampling)
        return made[tuner]

    return learner


@pytest.mark.parametrize("transport", ["file", "http"])
@pytest.mark.parametrize("tuner", TUNERS)
async def test_after_each_sync_the_server_answers_as_the_learner_does(site, learner_of, tuner, transport) -> None:
    learner, before = learner_of(tuner), await site.answers(None)
    merges, sent_bytes = not tuner.startswith("full"), {}
    with site.publisher(learner.loaded, transport, merges=merges, fallback_to_full=False) as publisher:
        for step in (1, 2):  # of which the second is merged where there are adapters
            learner.train_to(step)
            published = await publisher.publish_if_stale(step)
            sent_bytes[step] = published.sent_bytes
            assert published.left_out == ()
            assert len(list(site.root.glob("*-2-merged"))) == (merges and step == 2)
            answers = await site.answers(published.version)
            assert_same(answers, learner)
            assert answers != before
            before = answers
    assert (sent_bytes[2] < sent_bytes[1]) == merges
    assert not any(site.root.iterdir())


async def test_what_is_resent_is_what_was_published_though_the_learner_has_moved_on(site, learner_of, load) -> None:
    learner = learner_of("LoRA")
    with site.publisher(learner.loaded, merges=True) as publisher:
        for step in (1, 2):
            learner.train_to(step)
            published = await publisher.publish_if_stale(step)
        with site.publisher(load()) as another:
            await another.publish_if_stale(0)
        learner.train_to(3)
        await publisher.resend(site.channel.name)
        learner.train_to(2)
        assert_same(await site.answers(published.version), learner)
