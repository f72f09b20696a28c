"""When a sequence ends, decided token by token. Pure."""

from collections.abc import Callable, Sequence

from shared.wire import FinishReason, RepeatTerminate, Sampling

OBJECT_KEY = '"object_'


class StopRule:
    """Watches one growing answer. `text_of` gives the text of a token id."""

    def __init__(self, sampling: Sampling, text_of: Callable[[int], str]) -> None:
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._max_new_tokens = sampling.max_new_tokens
        self._repeats = sampling.repeat_terminate
        self._keys = _KeyCounter(text_of) if self._repeats and self._repeats.max_object_keys else None

    def after(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Say why the answer ends with the last of `token_ids`, or None. To be called once a token."""
        if token_ids[-1] in self._stop_ids:
            return "stop"
        if self._repeats and (reason := self._looping(token_ids, self._repeats)):
            return reason
        return "length" if len(token_ids) >= self._max_new_tokens else None

    def _looping(self, token_ids: Sequence[int], limits: RepeatTerminate) -> FinishReason | None:
        too_many_keys = self._keys is not None and self._keys.add(token_ids[-1]) > limits.max_object_keys
        if len(token_ids) < limits.min_new_tokens:
            return None
        if too_many_keys:
            return "object_limit"
        same = ends_in_repeats(token_ids, 1, limits.max_consecutive_token_repeats)
        return "repetition" if same or ends_in_repeats(token_ids, limits.ngram_size, limits.ngram_repeats) else None


def ends_in_repeats(token_ids: Sequence[int], size: int, repeats: int) -> bool:
    """True when the last `size` tokens stand there `repeats` times in a row; size or repeats 0 is never."""
    span = size * repeats
    if span == 0 or len(token_ids) < span:
        return False
    tail = token_ids[-span:]
    return tail[size:] == tail[:-size]


class _KeyCounter:
    """Counts the object keys begun in a text that arrives in pieces; an escaped quote begins none."""

    def __init__(self, text_of: Callable[[int], str]) -> None:
        self._text_of = text_of
        self._tail = ""
        self._count = 0

    def add(self, token_id: int) -> int:
        text = self._tail + self._text_of(token_id)
        at = text.find(OBJECT_KEY, max(0, len(self._tail) - len(OBJECT_KEY) + 1))
        while at >= 0:
            self._count += not text.endswith("\\", 0, at)
            at = text.find(OBJECT_KEY, at + 1)
        # Long enough for a key that is under way and the character before it.
        self._tail = text[-len(OBJECT_KEY) :]
        return self._count
