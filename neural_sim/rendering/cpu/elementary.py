"""Float32 exponential and logarithm that the compiler can vectorise, where a library call would stop it."""

import math

import numpy as np
from numba import njit

from neural_sim.rendering.cpu.layout import INLINE, LOG2_E, ONE

# Taylor series of 2^f on [-0.5, 0.5]; the first dropped term is below 2e-7 of the value.
E1, E2, E3 = np.float32(0.693147181), np.float32(0.240226507), np.float32(0.0555041087)
E4, E5, E6 = np.float32(0.00961812911), np.float32(0.00133335581), np.float32(0.000154035304)
# Series of the inverse hyperbolic tangent, 2 / ln 2 times 1, 1/3, 1/5, 1/7.
A1, A3, A5, A7 = np.float32(2.88539008), np.float32(0.961796694), np.float32(0.577078016), np.float32(0.412198583)
MANTISSA_BITS, EXPONENT_BIAS = np.int32(23), np.int32(127)
SQRT_HALF_BITS = np.int32(0x3F3504F3)


@njit(**INLINE)
def exp(x: np.floating) -> np.floating:
    """e^x, relative error below 3e-7; the exponent of 2 is clamped to -126..127, and NaN gives a finite number."""
    # Float64 keeps the digits of x log2(e) behind the point.
    t = min(max(float(x) * LOG2_E, -126.0), 127.0)
    whole = math.floor(t + 0.5)
    f = np.float32(t - whole)
    value = ONE + f * (E1 + f * (E2 + f * (E3 + f * (E4 + f * (E5 + f * E6)))))
    return value * np.int32((np.int32(whole) + EXPONENT_BIAS) << MANTISSA_BITS).view(np.float32)


@njit(**INLINE)
def log2(y: np.floating) -> np.floating:
    """log2(y) of a positive normal float32, absolute error below 1e-6 for y up to 1e3."""
    bits = np.float32(y).view(np.int32)
    exponent = (bits - SQRT_HALF_BITS) >> MANTISSA_BITS
    # The mantissa lies in [sqrt(1/2), sqrt(2)), so |q| < 0.172.
    mantissa = np.int32(bits - (exponent << MANTISSA_BITS)).view(np.float32)
    q = (mantissa - ONE) / (mantissa + ONE)
    q2 = q * q
    return np.float32(exponent) + q * (A1 + q2 * (A3 + q2 * (A5 + q2 * A7)))
