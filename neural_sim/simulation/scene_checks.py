"""What is odd about a scene, told in the record of every rollout driven in it."""

import numpy as np
import shapely

from neural_sim.scenes.scene import Scene
from neural_sim.simulation.record import SimulationEvent
from neural_sim.simulation.traffic import ReplayedTraffic

# Longer holes than this between two poses of a track are told; they are bridged by interpolation all the same.
LONGEST_GAP_S = 1.0


def scene_events(scene: Scene, log: ReplayedTraffic, t_us: int) -> tuple[SimulationEvent, ...]:
    """At most one event of each kind: `track_gap` (tracks with holes) and `map_repaired` (self-intersecting areas)."""
    details = {"track_gap": _gap_detail(log), "map_repaired": _map_detail(scene)}
    return tuple(SimulationEvent(t_us, kind, detail) for kind, detail in details.items() if detail)


def _gap_detail(log: ReplayedTraffic) -> str:
    longest_s = {
        track.track_id: float(np.diff(track.trajectory.t_us).max(initial=0)) * 1e-6
        for track in log.tracks
        if track.category != "obstacle"
    }
    gaps = {name: seconds for name, seconds in longest_s.items() if seconds > LONGEST_GAP_S}
    if not gaps:
        return ""
    worst = max(gaps, key=lambda name: gaps[name])
    return f"{len(gaps)} tracks have gaps, the longest {gaps[worst]:.1f} s in track {worst}; interpolated"


def _map_detail(scene: Scene) -> str:
    areas = scene.road_map.drivable_areas
    broken = [i for i, area in enumerate(areas) if not area.is_valid]
    if not broken:
        return ""
    reason = shapely.is_valid_reason(areas[broken[0]])
    return f"{len(broken)} of {len(areas)} drivable areas are not valid (the first: {reason}); repaired"
