"""The exception tree of both processes.

    BoxloopError                  exit_code 1, retryable False
    ├── ConfigError               a value in YAML or on the command line (exit code 2)
    ├── DataError                 a record, an image or a tokenizer that cannot be used (exit code 2)
    ├── ProtocolError             the other process broke the contract of shared/wire.py
    │   ├── PromptMismatch        both sides expand the same prompt to different lengths
    │   └── VersionConflict       asked for a policy version the server does not hold (retryable after a publish)
    ├── ServerUnavailable         no server can take work now (retryable)
    │   └── ServerNeverReady      a server did not become ready in time (exit code 3)
    ├── EngineFailed              the decoding engine died; the server must be restarted
    ├── WeightSyncFailed          a weight transaction did not commit (retryable by a full resend)
    └── NonFiniteLoss             a loss or gradient is NaN or infinite; names the records

`retryable` says whether the same call can succeed later without anyone changing anything. `exit_code` is what the
process ends with when the error reaches its `__main__`.
"""

from typing import ClassVar


class BoxloopError(Exception):
    """Base of every error that Boxloop raises on purpose; `str(error)` is fit for the console."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1


class ConfigError(BoxloopError):
    """A configuration value is wrong; the message names the key, the value and the cure."""

    exit_code = 2


class DataError(BoxloopError):
    """Input data cannot be used."""

    exit_code = 2


class ProtocolError(BoxloopError):
    """The other process sent something that the wire contract does not allow."""


class PromptMismatch(ProtocolError):
    """Learner and server expand one prompt differently; the message holds both values."""


class VersionConflict(ProtocolError):
    """The server holds another policy version than the one asked for."""

    retryable = True


class ServerUnavailable(BoxloopError):
    """A rollout server cannot be reached or takes no work now."""

    retryable = True


class ServerNeverReady(ServerUnavailable):
    """A rollout server did not become ready within its time."""

    retryable = False
    exit_code = 3


class EngineFailed(BoxloopError):
    """The decoding engine died."""


class WeightSyncFailed(BoxloopError):
    """A weight transaction failed; the server still serves its old version or is not ready."""

    retryable = True


class NonFiniteLoss(BoxloopError):
    """A loss or gradient is not finite. The optimizer has not moved."""
