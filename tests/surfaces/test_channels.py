"""A kind of step has the same letter wherever it stands."""

from learner.channels.table import CHANNELS
from learner.plan.schedule import Channel
from shared.config.channels import DECODES
from shared.metrics import METRICS


def test_the_configuration_the_plan_the_table_and_the_log_know_the_same_letters() -> None:
    assert set(DECODES) == {channel.value for channel in Channel} == set(CHANNELS)
    shares = {name for name in METRICS if name.startswith("stage2/channel_")}
    assert shares == {f"stage2/channel_{letter.lower()}" for letter in DECODES}


def test_the_plan_knows_which_of_them_decode() -> None:
    assert {channel.value: channel.decodes for channel in Channel} == DECODES
