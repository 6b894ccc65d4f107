"""The rules by which a rollout is judged."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from neural_sim.errors import InputError

Preset = Literal["paper", "alpasim"]

# What AlpaSim's code does where the paper's rules, as we read them, differ.
_FIXED_BY_PRESET: dict[str, dict[str, Any]] = {
    "paper": {},
    "alpasim": {"standing_speed_mps": 0.0, "count_contacts_in_log": True, "reject_black_images": True},
}


@dataclass(frozen=True)
class EvaluationProtocol:
    """Rules of scoring and aggregation; the defaults are those of the RoaD paper (section 5, supplement B.1)."""

    preset: Preset = "paper"
    """`paper`: the fields below as given. `alpasim`: as AlpaSim's public code counts, which fixes three of them: a
    standing ego hit from the side is at fault (`standing_speed_mps` 0), contacts that the log has too count, and
    rollouts with a black image are dropped (here: they count as failed, so that the report names them)."""
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
    count_contacts_in_log: bool = False
    """Whether a contact counts although the expert's box touched the same road user at the same time."""
    reject_black_images: bool = False
    """Whether a rollout with a black image of the first camera after warm-up counts as failed."""
    bootstrap_resamples: int = 1000
    """Number of resamples of the scenes behind each interval."""
    permutations: int = 10_000
    """Number of random relabellings behind a p-value; with few scenes all of them are tried instead."""
    confidence: float = 0.95
    """Coverage of the intervals, between 0 and 1; a difference is claimed when p is below 1 minus this."""
    power: float = 0.8
    """Chance with which the number of scenes needed shows a difference of the given size, between 0 and 1."""
    bootstrap_seed: int = 0
    """Seed of the resampling and relabelling."""

    def __post_init__(self) -> None:
        self._apply_preset()
        limit_m = self.max_distance_to_log_m
        _require(
            limit_m is None or limit_m > 0, "max_distance_to_log_m", limit_m, "a length > 0 m, or null for no limit"
        )
        _require(0 <= self.box_shrink < 1, "box_shrink", self.box_shrink, "a share from 0 to below 1")
        share = self.corner_radius_share
        _require(0 <= share < 0.5, "corner_radius_share", share, "a share from 0 to below 0.5")
        _require(self.standing_speed_mps >= 0, "standing_speed_mps", self.standing_speed_mps, "a speed >= 0 m/s")
        for field in ("bootstrap_resamples", "permutations"):
            _require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        for field in ("confidence", "power"):
            _require(0 < getattr(self, field) < 1, field, getattr(self, field), "a share between 0 and 1")

    def _apply_preset(self) -> None:
        """Set what the preset fixes; raise `InputError` where another value was asked for."""
        _require(self.preset in get_args(Preset), "preset", self.preset, f"one of {', '.join(get_args(Preset))}")
        for field, value in _FIXED_BY_PRESET[self.preset].items():
            given = getattr(self, field)
            expected = f"{value} as preset {self.preset} has it"
            _require(given in (value, type(self).__dataclass_fields__[field].default), field, given, expected)
            object.__setattr__(self, field, value)


def _require(holds: bool, field: str, found: object, expected: str) -> None:
    if not holds:
        raise InputError(f"evaluation protocol: {field} is {found}, expected {expected}; correct the configuration")
