"""A ScenarioNet log for tests, with the faults of the published ones."""

import pickle

import numpy as np

STEPS = 101
ORIGIN = np.array([600.0, 1600.0])


def state(planar, size, valid=None, z=0.0):
    """One track's `state` of `STEPS` rows."""
    valid = np.ones(STEPS) if valid is None else valid
    length, width, height = size
    return {
        "position": np.column_stack([planar[:, :2], np.full(STEPS, z)]) * valid[:, None],
        "heading": planar[:, 2] * valid,
        "velocity": np.zeros((STEPS, 2)),
        "valid": valid,
        "length": np.full((STEPS, 1), length) * valid[:, None],
        "width": np.full((STEPS, 1), width) * valid[:, None],
        "height": np.full((STEPS, 1), height) * valid[:, None],
    }


def track(kind, name, **kwargs):
    return {"type": kind, "state": state(**kwargs), "metadata": {"type": "x", "object_id": name, "track_length": STEPS}}


def straight(speed_mps, x=0.0, y=0.0, yaw=0.0):
    distance = speed_mps * 0.1 * np.arange(STEPS)
    return np.column_stack([ORIGIN[0] + x + distance, np.full(STEPS, ORIGIN[1] + y), np.full(STEPS, yaw)])


def make_log(jump_after=96):
    """Ego at 8 m/s with swapped sizes that jumps back 2 m after step `jump_after`; a car ahead, a cone, a walker."""
    ego = straight(8.0)
    ego[jump_after + 1 :, 0] -= 2.0
    seen = np.ones(STEPS)
    seen[20:50] = 0.0
    once = np.zeros(STEPS)
    once[7] = 1.0
    square = np.array([[-50.0, -20.0], [150.0, -20.0], [150.0, 20.0], [-50.0, 20.0], [-50.0, -20.0]]) + ORIGIN
    hole = np.array([[40.0, 10.0], [60.0, 10.0], [60.0, 15.0], [40.0, 15.0], [40.0, 10.0]]) + ORIGIN
    island = np.array([[45.0, 12.0], [50.0, 12.0], [50.0, 13.0], [45.0, 13.0], [45.0, 12.0]]) + ORIGIN
    center = np.column_stack([ORIGIN[0] + np.arange(0.0, 51.0), np.full(51, ORIGIN[1]), np.full(51, 0.5)])
    return {
        "id": "scene-0042",
        "version": "nuscenesv1.0-mini",
        "length": STEPS,
        "metadata": {
            "dataset": "nuscenes",
            "scenario_id": "scene-0042",
            "sdc_id": "ego",
            "coordinate": "right-handed",
            "ts": 0.1 * np.arange(STEPS),
        },
        "tracks": {
            "ego": track("VEHICLE", "ego", planar=ego, size=(1.73, 4.08, 1.56)),
            "car": track("VEHICLE", "car", planar=straight(5.0, x=30.0, y=3.5, yaw=7.0), size=(4.5, 1.9, 1.6), z=1.9),
            "lost": track("CYCLIST", "lost", planar=straight(3.0, y=-4.0), size=(1.8, 0.6, 1.7), valid=seen),
            "once": track("TRAFFIC_CONE", "once", planar=straight(0.0, x=9.0), size=(0.4, 0.4, 1.0), valid=once),
            "odd": track("SPACESHIP", "odd", planar=straight(0.0), size=(9.0, 9.0, 9.0)),
        },
        "dynamic_map_states": {},
        "map_features": {
            "boundary_0": {"type": "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline": hole},
            "boundary_1": {"type": "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline": square[::-1]},
            "boundary_2": {"type": "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline": island},
            "lane": {
                "type": "LANE_SURFACE_STREET",
                "polyline": center.tolist(),
                "polygon": [(600.0, 1598.0), (650.0, 1598.0), (650.0, 1602.0), (600.0, 1602.0)],
            },
            "connector": {
                "type": "LANE_SURFACE_STREET",
                "polyline": center + np.array([50, 0, 0]),
                "speed_limit_kmh": 100,
            },
            "divider": {"type": "ROAD_LINE_BROKEN_SINGLE_WHITE", "polyline": center[:, :2]},
        },
    }


def write_log(folder, log=None, name="sd_nuscenes_v1.0-mini_scene-0042.pkl"):
    """Pickle `log` as ScenarioNet does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(make_log() if log is None else log, protocol=4))
    return folder
