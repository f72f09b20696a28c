from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.framing import AnyLine, LineDecoder, decode_lines, encode_line
from shared.wire import PolicyVersion, StreamError, StreamFooter, StreamHeader, StreamHeartbeat, StreamSample

VERSION = PolicyVersion(incarnation="ab", step=3)

LINES: list[AnyLine] = [
    StreamHeader(batch_id="b", policy_version=VERSION, accepted=2),
    StreamHeartbeat(running=1, waiting=0, generated_tokens=7),
    StreamSample(
        uid="train:1 ü",
        token_ids=(1, 2),
        finish_reason="stop",
        num_prompt_tokens=5,
        image_grid=((1, 4, 4),),
        policy_version=None,
        token_logprobs=(-0.5, -0.25),
        queue_s=0.0,
        first_token_s=0.1,
        done_s=0.2,
    ),
    StreamError(uid="train:2", code="bad_image", retryable=False, message="two\nlines"),
    StreamFooter(finished=1, failed=1, generated_tokens=2, seconds=0.3),
]
DATA = b"".join(encode_line(line) for line in LINES)


@given(st.lists(st.integers(0, len(DATA)), max_size=8))
def test_lines_survive_any_cut_of_the_bytes(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(DATA)]
    decoder = LineDecoder()
    decoded = [line for start, end in pairwise(edges) for line in decoder.feed(DATA[start:end])]
    assert decoded == LINES


async def test_a_line_cut_by_the_end_of_the_stream_is_left_out() -> None:
    async def chunks():
        yield DATA[:-1]

    assert [line async for line in decode_lines(chunks())] == LINES[:-1]


@pytest.mark.parametrize("bad", [b"{}\n", b"nonsense\n", b'{"type":"footer","finished":1}\n', b"\n"])
def test_a_line_outside_the_contract_is_a_protocol_error(bad: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a line of the rollout stream"):
        list(LineDecoder().feed(bad))


def test_an_endless_line_is_refused_before_it_fills_the_memory() -> None:
    decoder = LineDecoder(max_line_bytes=100)
    list(decoder.feed(b"x" * 100))
    with pytest.raises(ProtocolError, match="100 bytes"):
        list(decoder.feed(b"x"))
