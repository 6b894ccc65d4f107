"""Light and exposure: what differs between two drives along the same street."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neural_sim.town.shading import Light


@dataclass(frozen=True)
class Weather:
    """Light of a drive and how the cameras answer to it.

    Attributes:
        light: sun, sky and textures.
        exposure: gain of the cameras.
        white: gain of the colour channels, RGB.
        wander: by how much the exposure drifts over the drive, share of the gain.
        period_s, phase_rad: of this drift.
    """

    light: Light
    exposure: float = 0.78
    white: tuple[float, float, float] = (1.0, 1.0, 1.0)
    wander: float = 0.0
    period_s: float = 10.0
    phase_rad: float = 0.0

    def gain_at(self, t_us: int) -> Float[np.ndarray, "3"]:
        """Gain of the colour channels at `t_us`."""
        drift = self.wander * np.sin(2 * np.pi * t_us * 1e-6 / self.period_s + self.phase_rad)
        return self.exposure * (1.0 + drift) * np.asarray(self.white)


def draw_weather(rng: np.random.Generator, texture_seed: int) -> Weather:
    """A clear, hazy or overcast sky; the cameras make up for most of the difference in light."""
    cover = float(rng.choice([0.0, 0.35, 1.0], p=[0.5, 0.25, 0.25])) * float(rng.uniform(0.7, 1.0))
    azimuth, elevation = rng.uniform(0.0, 2 * np.pi), np.deg2rad(rng.uniform(26.0, 58.0))
    level, rise = float(np.cos(elevation)), float(np.sin(elevation))
    sun = (level * float(np.cos(azimuth)), level * float(np.sin(azimuth)), rise)
    sunlight, skylight = 2.1 * (1.0 - 0.88 * cover), 1.0 + 0.25 * cover
    light = Light(
        sun=sun,
        texture_seed=texture_seed % 1_000_003,
        sunlight=sunlight,
        skylight=skylight,
        clouds=1.0 * cover - 0.1,
        haze_m=float(rng.uniform(250.0, 700.0)) * (1.0 - 0.4 * cover),
    )
    # Light on level ground, which a camera would meter.
    ground = sunlight * rise + 0.92 * skylight
    metered = 0.78 * (2.6 / ground) ** 0.7
    warmth = float(rng.uniform(-0.06, 0.06))
    return Weather(
        light,
        exposure=metered * float(rng.uniform(0.88, 1.12)),
        white=(1.0 + warmth, 1.0, 1.0 - warmth),
        wander=float(rng.uniform(0.0, 0.06)),
        period_s=float(rng.uniform(6.0, 18.0)),
        phase_rad=float(rng.uniform(0.0, 2 * np.pi)),
    )
