"""Cross-entropy of supervised tokens."""

from torch import Tensor


def token_ce(scores: Tensor, log_normaliser: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(scores)[label] of each row, in nats.

    `scores` is float32 [S, vocabulary], `log_normaliser` its logsumexp [S], `labels` int64 [S]; returns [S].
    """
    return log_normaliser - scores.gather(1, labels[:, None])[:, 0]
