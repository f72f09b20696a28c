"""What is sent to which server, and what becomes of one that does not take it. What they answer is tests/contract's."""

import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from learner.decoding.opening import publisher_of
from learner.model.tiny import build_tiny
from learner.servers.weights import ServerAway
from learner.weight_sync.file import FileOffer, FileOutlet
from learner.weight_sync.publisher import Published
from shared.errors import WeightSyncFailed
from tests.learner.weight_sync.conftest import TIMEOUT_S

pytestmark = pytest.mark.slow

SYNC = "custom.extra.rollout_matching.vllm.sync"
BROKEN = {"script": {"fail_loads": 10**6}}
"""A server that can load no weights."""


class DamagedOffer(FileOffer):
    """A merged file is damaged on its way."""

    async def deliver(self, channel: object) -> None:
        if self.manifest.mode == "merged":
            data = bytearray(self.written.file.read_bytes())
            data[-1] ^= 1
            self.written.file.write_bytes(data)


class DamagingOutlet(FileOutlet):
    """Makes such offers."""

    def offer(self, *weights: Any) -> DamagedOffer:
        offer = super().offer(*weights)
        return DamagedOffer(offer.written, offer.manifest)


async def test_weights_are_sent_once_a_step(site_of) -> None:
    site = await site_of({})
    publisher = site.publisher()
    first = await publisher.publish_if_stale(1)
    assert first.seconds > 0
    assert first.sent_bytes > 10**6
    assert await publisher.publish_if_stale(1) == Published(first.version)
    later = await publisher.publish_if_stale(2)
    assert later.seconds > 0
    assert await site.held() == [later.version]


async def test_the_configured_transport_brings_them(site_of, config_of, tmp_path: Path) -> None:
    """To a server that does not see the learner's folder a file cannot be pointed at."""
    (tmp_path / "elsewhere").mkdir()
    site = await site_of({"weights_root": tmp_path / "elsewhere"})
    by_http = publisher_of(config_of(f"{SYNC}.transport=http"), site.channels, site.loaded, site.lane)
    published = await by_http.publish_if_stale(1)
    assert await site.held() == [published.version]
    by_file = publisher_of(config_of(f"{SYNC}.transport=file"), site.channels, site.loaded, site.lane)
    with pytest.raises(WeightSyncFailed, match="does not exist"):
        await by_file.publish_if_stale(2)


async def test_the_configured_fallback_sends_everything_or_not(
    site_of, config_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.decoding.opening.OUTLETS", {"file": DamagingOutlet()})
    site = await site_of({})
    for falls_back in (True, False):
        config = config_of(f"{SYNC}.mode=merged", f"{SYNC}.fallback_to_full={falls_back}")
        publisher = publisher_of(config, site.channels, site.loaded, site.lane)
        await publisher.publish_if_stale(1)
        if falls_back:
            published = await publisher.publish_if_stale(2)
            assert await site.held() == [published.version]
        else:
            with pytest.raises(WeightSyncFailed, match="digest"):
                await publisher.publish_if_stale(2)


async def test_another_learner_is_told_from_this_one(site_of) -> None:
    site = await site_of({})
    await site.publisher().publish_if_stale(3)
    published = await site.publisher().publish_if_stale(3)
    assert published.seconds > 0
    assert await site.held() == [published.version]


async def test_the_newest_file_alone_is_kept_and_goes_at_the_end(site_of) -> None:
    site = await site_of({})
    publisher = site.publisher()
    for step in (1, 2):
        await publisher.publish_if_stale(step)
        assert site.files() == [f"{step}-full"]
    publisher.close()
    assert list(site.root.iterdir()) == []


async def test_weights_that_fit_nobody_are_refused_with_every_reason(site_of, tmp_path: Path) -> None:
    build_tiny(tmp_path / "smaller", hidden_size=64, num_hidden_layers=3)
    site = await site_of({"model": str(tmp_path / "smaller")})
    with pytest.raises(WeightSyncFailed) as raised:
        await site.publisher().publish_if_stale(1)
    assert "has shape" in str(raised.value)
    assert "layers.3" in str(raised.value)
    assert await site.held() == [None]


async def test_a_server_that_cannot_commit_is_left_out_and_the_others_go_on(site_of, caplog) -> None:
    site = await site_of({}, BROKEN)
    with caplog.at_level(logging.WARNING):
        published = await site.publisher().publish_if_stale(1)
    assert published.left_out == (site.channels[1].name,)
    assert await site.held() == [published.version, None]
    assert "says the script; left out of it" in caplog.text
    assert (await site.clients[1].get("/ready/")).status_code == 503


async def test_when_no_server_commits_the_publish_fails_with_all_reasons(site_of) -> None:
    site = await site_of(BROKEN, BROKEN)
    with pytest.raises(WeightSyncFailed, match="says the script") as raised:
        await site.publisher().publish_if_stale(1)
    assert all(channel.name in f"{raised.value}{raised.value.__notes__}" for channel in site.channels)


async def test_a_failed_load_is_repaired_by_the_next_publish(site_of) -> None:
    site = await site_of({"script": {"fail_loads": 1}})
    publisher = site.publisher()
    with pytest.raises(WeightSyncFailed, match="says the script"):
        await publisher.publish_if_stale(1)
    assert (await site.channels[0].status()).phase == "tainted"
    published = await publisher.publish_if_stale(1)
    assert await site.held() == [published.version]
    assert (await site.clients[0].get("/ready/")).status_code == 200


@pytest.mark.parametrize("merges", [False, True])
async def test_a_server_that_is_away_is_brought_up_when_it_is_back(site_of, merges: bool, caplog) -> None:
    site = await site_of({})
    publisher = site.publisher(merges=merges)
    await publisher.publish_if_stale(1)
    url, site.clients[0].base_url = site.clients[0].base_url, "http://127.0.0.1:9"
    published = await publisher.publish_if_stale(2)
    assert published.left_out == (site.channels[0].name,)
    assert "left out of it" in caplog.text
    site.clients[0].base_url = url
    assert await publisher.resend(site.channels[0].name) == published.version
    assert await site.held() == [published.version]
    assert site.files() == (["1-full", "2-merged"] if merges else ["2-full"])


async def test_after_a_full_update_only_what_was_touched_is_sent(site_of) -> None:
    site = await site_of({}, {})
    publisher = site.publisher(merges=True)
    full, merged = [await publisher.publish_if_stale(step) for step in (1, 2)]
    assert site.files() == ["1-full", "2-merged"]
    assert 0 < merged.sent_bytes < full.sent_bytes / 4
    assert await site.held() == [merged.version] * 2
    await publisher.publish_if_stale(3)
    assert site.files() == ["1-full", "3-merged"]


async def test_a_server_that_lost_our_weights_is_sent_everything_and_the_others_what_was_touched(site_of) -> None:
    site = await site_of({}, {})
    publisher = site.publisher(merges=True)
    await publisher.publish_if_stale(1)
    await site.take_over(1)
    published = await publisher.publish_if_stale(2)
    assert await site.held() == [published.version] * 2
    assert published.left_out == ()


async def test_a_merged_update_that_fails_is_followed_by_a_full_one(site_of, caplog) -> None:
    site = await site_of({})
    publisher = site.publisher(DamagingOutlet(), merges=True)
    await publisher.publish_if_stale(1)
    with caplog.at_level(logging.WARNING):
        published = await publisher.publish_if_stale(2)
    assert published.left_out == ()
    assert await site.held() == [published.version]
    assert "has digest" in caplog.text
    assert "sending everything" in caplog.text
    assert site.files() == ["2-full"]


async def test_without_the_fallback_a_merged_update_that_fails_is_an_error(site_of) -> None:
    site = await site_of({})
    publisher = site.publisher(DamagingOutlet(), merges=True, fallback_to_full=False)
    first = await publisher.publish_if_stale(1)
    with pytest.raises(WeightSyncFailed, match="has digest"):
        await publisher.publish_if_stale(2)
    assert await site.held() == [first.version]


@pytest.mark.parametrize("merges", [False, True])
async def test_a_server_that_comes_back_is_brought_to_the_current_version(site_of, merges: bool) -> None:
    site = await site_of({}, {})
    publisher = site.publisher(merges=merges)
    for step in (1, 2):
        published = await publisher.publish_if_stale(step)
    await site.take_over(1)
    assert await site.held() != [published.version] * 2
    assert await publisher.resend(site.channels[1].name) == published.version
    assert await site.held() == [published.version] * 2


async def test_nothing_can_be_resent_before_the_first_publish(site_of) -> None:
    site = await site_of({})
    with pytest.raises(WeightSyncFailed, match="nothing has been published"):
        await site.publisher().resend(site.channels[0].name)


async def test_a_frozen_server_holds_up_a_publish_for_one_probe_and_is_brought_up_later(
    site_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.weight_sync.publisher.PROBE_TIMEOUT_S", 0.4)
    monkeypatch.setattr("learner.weight_sync.publisher.SILENT_TIMEOUT_S", 0.1)
    site = await site_of({}, {})
    publisher, url = site.publisher(), site.clients[1].base_url
    with socket.socket() as silent:  # takes connections and says nothing, as a stopped process does
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        site.clients[1].base_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for step, probe_s in ((1, 0.4), (2, 0.1)):
            published = await publisher.publish_if_stale(step)
            assert published.left_out == (site.channels[1].name,)
            assert probe_s <= published.seconds < TIMEOUT_S / 4
        with pytest.raises(ServerAway):
            await publisher.resend(site.channels[1].name)
    site.clients[1].base_url = url
    assert await publisher.resend(site.channels[1].name) == published.version
    assert await site.held() == [published.version] * 2
    assert (await publisher.publish_if_stale(2)).left_out == ()


async def test_a_publisher_claims_its_folder_until_it_is_closed(site_of) -> None:
    site = await site_of({})
    (site.root / "dead-1-full").mkdir()
    (site.root / "dead.lock").touch()
    publisher = site.publisher()
    await publisher.publish_if_stale(1)
    await publisher.publish_if_stale(2)
    assert not (site.root / "dead-1-full").exists()
    assert len(list(site.root.glob("*.lock"))) == 1
    publisher.close()
    assert list(site.root.iterdir()) == []
