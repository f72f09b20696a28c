"""A request that is not served, as an exception that knows its HTTP answer."""

from shared.errors import BoxloopError
from shared.wire import ErrorBody, PolicyVersion


class Refusal(BoxloopError):
    """Ends a request with `status` and an `ErrorBody`; `retry_after_s` sets the header of that name."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after_s: int | None = None,
        policy_version: PolicyVersion | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
        self.body = ErrorBody(
            code=code, message=message, retryable=retry_after_s is not None, policy_version=policy_version
        )


class ManifestRefused(BoxloopError):
    """The announced or delivered weights do not fit; `mismatches` lists every way in which they don't."""

    def __init__(self, mismatches: tuple[str, ...]) -> None:
        super().__init__("; ".join(mismatches))
        self.mismatches = mismatches
