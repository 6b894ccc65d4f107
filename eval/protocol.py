"""The rules by which a rollout is judged."""

from dataclasses import dataclass

from neural_sim.errors import InputError


@dataclass(frozen=True)
class EvaluationProtocol:
    """Rules of scoring and aggregation; the defaults are those of the RoaD paper (section 5, supplement B.1)."""

    stop_at_first_incident: bool = True
    """Count nothing after the first step with an off-road or a collision of any kind; that step itself counts."""
    max_distance_to_log_m: float | None = 4.0
    """Count nothing after the first step this far from the expert path, m; that step counts. None: no limit."""
    at_fault_only: bool = True
    """Whether the driving score counts off-road and at-fault collisions only, or off-road and every collision."""
    box_shrink: float = 0.02
    """Share of length and width by which every box is shrunk before contact is tested, 0 to below 1."""
    corner_radius_share: float = 0.25
    """Corner radius as a share of the shorter side of the shrunk box, 0 to below 0.5."""
    standing_speed_mps: float = 0.1
    """Below this speed the ego stands, and being hit from the side is not its fault, m/s."""
    bootstrap_resamples: int = 1000
    """Number of resamples of the scenes behind each interval."""
    confidence: float = 0.95
    """Coverage of the intervals, between 0 and 1."""
    bootstrap_seed: int = 0
    """Seed of the resampling."""

    def __post_init__(self) -> None:
        limit_m = self.max_distance_to_log_m
        _require(
            limit_m is None or limit_m > 0, "max_distance_to_log_m", limit_m, "a length > 0 m, or null for no limit"
        )
        _require(0 <= self.box_shrink < 1, "box_shrink", self.box_shrink, "a share from 0 to below 1")
        share = self.corner_radius_share
        _require(0 <= share < 0.5, "corner_radius_share", share, "a share from 0 to below 0.5")
        _require(self.standing_speed_mps >= 0, "standing_speed_mps", self.standing_speed_mps, "a speed >= 0 m/s")
        _require(self.bootstrap_resamples >= 1, "bootstrap_resamples", self.bootstrap_resamples, "at least 1")
        _require(0 < self.confidence < 1, "confidence", self.confidence, "a share between 0 and 1")


def _require(holds: bool, field: str, found: object, expected: str) -> None:
    if not holds:
        raise InputError(f"evaluation protocol: {field} is {found}, expected {expected}; correct the configuration")
