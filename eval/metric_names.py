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
    MetricText("duration_frac_20s", "Duration", "", "more", "Counted time of a rollout over 20 s."),
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
    MetricText(
        "ended_far_from_log",
        "Ended far from the log",
        "",
        "less",
        "Share of rollouts in which counting stopped at the distance limit, before any incident.",
    ),
    MetricText("scene_score", "Scene score", "", "more", "0 after an at-fault incident, else progress over 80 %."),
    MetricText("epdms", "EPDMS-style score", "", "more", "Multipliers times weighted parts, as far as the data allow."),
    MetricText(
        "time_to_collision_s", "Time to collision", "s", "more", "Shortest at constant velocity; at most 3 s.", 2
    ),
    MetricText(
        "time_to_collision_critical",
        "Critical moments",
        "",
        "less",
        "Share of rollouts with a time to collision under 1 s.",
    ),
    MetricText("comfort", "Comfort", "", "more", "Share of rollouts within nuPlan's bounds throughout."),
    MetricText("wrong_lane", "Wrong lane", "", "less", "Share of rollouts that drove against every lane they were in."),
    MetricText("lane_offset_m", "Lane offset", "m", "less", "Largest distance from the centre of the own lane.", 2),
    MetricText(
        "min_distance_to_lane_boundary_m", "Gap to lane boundary", "m", "more", "Smallest; 0 when not inside.", 2
    ),
    MetricText("speed_over_limit_mps", "Speed over limit", "m/s", "less", "Largest, where the map has limits.", 2),
    MetricText(
        "stopped_too_long", "Stopped too long", "", "less", "Share of rollouts that stood 5 s as the expert drove."
    ),
    MetricText("open_loop_collision", "Plan collisions", "", "less", "Share of plans that hit a road user within 3 s."),
    MetricText("min_ade@2.5s(gt)", "Plan error, 2.5 s", "m", "less", "Mean distance of plans from the expert.", 2),
    MetricText("min_ade@2.5s(self)", "Plan kept, 2.5 s", "m", "less", "Mean distance of plans from the way driven.", 2),
    MetricText(
        "extended_comfort", "Extended comfort", "", "more", "Share of plans that feel like the plan 0.5 s before them."
    ),
    MetricText("img_is_black", "Black images", "", "less", "Share of rollouts with a black camera image."),
    MetricText(
        "safety_monitor_triggered",
        "Safety monitor",
        "",
        "",
        "Share of rollouts in which the driver objected.",
    ),
    MetricText("failure_rate", "Failed rollouts", "", "less", "Share of rollouts that ended without a record."),
)
