"""The rounds of draft and verify that a text of the verifier costs, in expectation and exactly.

Both acceptance rules leave the verifier's distribution as it is, so the text can be written first
and the rounds be counted afterwards. Let x be the text, and let a round be anchored at output n,
the last committed token, and have accepted all before output t. The p/q rule (Leviathan et al.,
arXiv 2211.17192, algorithm 1) draws a draft from q and accepts it with min(1, p/q): P(draft is x_t
and is accepted) = q(x_t) min(1, p(x_t) / q(x_t)) = min(p, q)(x_t). Accepted or drawn from the
residual, the output is x_t with p(x_t). So, given the text, x_t was accepted with

    A[n, t] = min(p, q)(x_t) / p(x_t) = min(1, q(x_t) / p(x_t)),

and nothing after t tells more, for what follows is p's whatever was accepted. With 1 - A the
residual gave x_t and the next round is anchored at t. After L accepted drafts the bonus token
comes from p itself: A[n, n + L + 1] = 0. This gives the occupancy recursion of EDR (Zhao & Cai)

    w[n, t] = w[n, t-1] A[n, t],    w[t, t] = sum over n < t of w[n, t-1] (1 - A[n, t]),

where w[n, t] is the chance that a round is anchored at n and has accepted up to t, and w[0, 0] = 1.
The expected number of rounds is the sum of all w[t, t] that have text left to come.

Under the coupled rule A is 0 or 1, draft equals text, and the same recursion replays a server.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass
class Acceptance:
    """Rounds of draft and verify, and what they brought; expected numbers under the p/q rule.

    Drafts are counted as the engine counts them: a draft is accepted where it is what the verifier
    goes on with, be it past the end of the text; committed is only what belongs to the text.
    """

    num_verifies: float = 0.0
    num_committed: float = 0.0
    num_drafted: float = 0.0
    num_accepted: float = 0.0
    reached: Floats = field(default_factory=lambda: np.zeros(0))
    """[K - 1]: rounds that had a draft at this place, and accepted all before it."""
    passed: Floats = field(default_factory=lambda: np.zeros(0))
    """[K - 1]: those of them that accepted it too."""

    @property
    def mean_committed(self) -> float:
        """Tokens a verify forward, bonus or correction included."""
        return self.num_committed / max(self.num_verifies, 1e-9)

    @property
    def mean_accepted(self) -> float:
        """Draft tokens accepted a verify forward."""
        return self.num_accepted / max(self.num_verifies, 1e-9)

    @property
    def by_position(self) -> list[float]:
        """[K - 1]: chance that a draft is accepted, given that all before it were."""
        rates: list[float] = (self.passed / np.maximum(self.reached, 1e-9)).tolist()
        return rates

    def add(self, other: Acceptance) -> None:
        self.num_verifies += other.num_verifies
        self.num_committed += other.num_committed
        self.num_drafted += other.num_drafted
        self.num_accepted += other.num_accepted
        self.reached = _padded_sum(self.reached, other.reached)
        self.passed = _padded_sum(self.passed, other.passed)


def expected_rounds(accept: Floats, lengths: NDArray[np.int64]) -> Acceptance:
    """Walk one text.

    accept: [N, K - 1], accept[n, j] being A of draft j of a block anchored at output n; N is one
    less than the text has outputs, as output 0 comes with the prompt and after the last nothing
    does. lengths: [N], how many of the K - 1 a round anchored there drafts.
    """
    N, depth = accept.shape
    drafted = np.arange(depth) < lengths[:, None]
    accept = np.where(drafted, accept.astype(np.float64), 0.0)
    # alive[n, j]: a round anchored at n accepts its first j drafts; ends[n, j]: and no more.
    alive = np.concatenate((np.ones((N, 1)), accept.cumprod(1)), axis=1)
    ends = alive * (1.0 - np.concatenate((accept, np.zeros((N, 1))), axis=1))
    starts = np.zeros(N + depth + 1)
    starts[0] = 1.0
    for n in range(N):
        starts[n + 1 : n + depth + 2] += starts[n] * ends[n]
    weighted = starts[:N, None] * alive
    return Acceptance(
        num_verifies=float(starts[:N].sum()),
        num_committed=float(N),
        num_drafted=float(starts[:N] @ lengths),
        num_accepted=float(weighted[:, 1:].sum()),
        reached=(weighted[:, :-1] * drafted).sum(0),
        passed=weighted[:, 1:].sum(0),
    )


def _padded_sum(a: Floats, b: Floats) -> Floats:
    total = np.zeros(max(len(a), len(b)))
    total[: len(a)] += a
    total[: len(b)] += b
    return total
