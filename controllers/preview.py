"""Linear-quadratic regulation with preview of known disturbances."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import expm, solve_discrete_are


@dataclass(frozen=True)
class PreviewGains:
    """The law u = -feedback . x - sum_j preview[j] . w[j].

    Attributes:
        feedback: float64 [n], gain of the state.
        preview: float64 [N, m], gain of the disturbance j steps ahead.
    """

    feedback: Float[np.ndarray, "n"]
    preview: Float[np.ndarray, "steps m"]


def discretise(
    A: Float[np.ndarray, "n n"], B: Float[np.ndarray, "n k"], step_s: float
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n k"]]:
    """Discrete (A, B) of dx/dt = A x + B u with u held over `step_s` (matrix exponential, exact)."""
    n, k = B.shape
    block = np.zeros((n + k, n + k))
    block[:n, :n], block[:n, n:] = A, B
    exponential = expm(block * step_s)
    return exponential[:n, :n], exponential[:n, n:]


def preview_gains(
    A: Float[np.ndarray, "n n"],
    B: Float[np.ndarray, "n 1"],
    D: Float[np.ndarray, "n m"],
    Q: Float[np.ndarray, "n n"],
    R: float,
    steps: int,
) -> PreviewGains:
    """Gains that minimise sum x'Qx + R u^2 for x+ = A x + B u + D w when `steps` coming values of w are known.

    With P the solution of the discrete Riccati equation and Acl = A - B K, the value function of the disturbed system
    is x'Px + 2 q'x with q = Acl'(q+ + P D w). Minimising it over u gives
    u = -K x - (R + B'PB)^-1 B' sum_j (Acl')^j P D w_j.
    """
    P = solve_discrete_are(A, B, Q, np.array([[R]]))
    M = B.T / (R + (B.T @ P @ B).item())
    feedback = (M @ P @ A)[0]
    closed_t = (A - B @ feedback[None]).T
    rows, propagated = [], P @ D
    for _ in range(steps):
        rows.append((M @ propagated)[0])
        propagated = closed_t @ propagated
    return PreviewGains(feedback, np.array(rows))
