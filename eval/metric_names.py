"""What each metric means, for tables and readers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricText:
    """How a metric is shown.

    Attributes:
        name: AlpaSim's column name, or ours where it has none.
        label: short title.
        unit: empty for shares and flags.
        better: "more", "less" or "" where neither is better.
        meaning: one line.
        decimals: digits after the point.
    """

    name: str
    label: str
    unit: str
    better: str
    meaning: str
    decimals: int = 3


METRIC_TEXTS: tuple[MetricText, ...] = (
    MetricText("driving_score", "Driving score", "km/incident", "more", "Kilometres driven per counted incident."),
    MetricText(
        "incidents_per_km", "Incidents per km", "1/km", "less", "Inverse of the driving score; 0 without incident.", 2
    ),
    MetricText(
        "offroad_or_collision_at_fault",
        "Incident rate",
        "",
        "less",
        "Share of rollouts with off-road or an at-fault collision.",
    ),
    MetricText(
        "collision_at_fault",
        "At-fault collisions",
        "",
        "less",
        "Share of rollouts with a front hit, or a side hit while driving.",
    ),
    MetricText("offroad", "Off-road", "", "less", "Share of rollouts in which the car left the drivable area."),
    MetricText(
        "collision_any", "Any collision", "", "less", "Share of rollouts with contact of any kind, rear hits included."
    ),
    MetricText(
        "collision_front", "Front hits", "", "less", "Share of rollouts in which the front bumper touched a road user."
    ),
    MetricText("collision_lateral", "Side hits", "", "less", "Share of rollouts with contact at the side."),
    MetricText("collision_rear", "Rear hits", "", "", "Share of rollouts hit from behind; not at fault."),
    MetricText("dist_traveled_m", "Distance driven", "m", "more", "Metres driven in the counted part of a rollout.", 1),
    MetricText("gt_dist_traveled_m", "Expert distance", "m", "", "Metres the expert drove in the same time.", 1),
    MetricText("progress", "Progress", "", "more", "Share of the whole recorded path reached at the end of counting."),
    MetricText(
        "progress_rel", "Relative progress", "", "more", "Lowest ratio of own to expert progress; 1 is keeping up."
    ),
    MetricText(
        "dist_to_gt_trajectory",
        "Distance to expert path",
        "m",
        "less",
        "Largest distance of the box centre from the recorded path.",
        2,
    ),
    MetricText(
        "dist_to_gt_location",
        "Distance to expert",
        "m",
        "less",
        "Largest distance from where the expert was at the same time.",
        2,
    ),
    MetricText(
        "min_distance_to_obstacle_m",
        "Closest approach",
        "m",
        "more",
        "Smallest gap to another road user; rollouts that met one.",
        2,
    ),
    MetricText(
        "plan_deviation", "Plan deviation", "m", "less", "Mean disagreement of consecutive plans; low is steady.", 3
    ),
    MetricText("speed_mps", "Speed", "m/s", "", "Mean speed in the counted part.", 2),
    MetricText("expert_speed_mps", "Expert speed", "m/s", "", "Mean speed of the expert in the same time.", 2),
    MetricText(
        "abs_longitudinal_acceleration_mps2",
        "Longitudinal acceleration",
        "m/s²",
        "less",
        "Largest absolute value, braking included.",
        2,
    ),
    MetricText("abs_lateral_acceleration_mps2", "Lateral acceleration", "m/s²", "less", "Largest absolute value.", 2),
    MetricText("abs_jerk_mps3", "Jerk", "m/s³", "less", "Largest change of acceleration per second.", 1),
    MetricText("abs_yaw_rate_radps", "Yaw rate", "rad/s", "less", "Largest absolute value.", 3),
    MetricText("failure_rate", "Failed rollouts", "", "less", "Share of rollouts that ended without a record."),
)
