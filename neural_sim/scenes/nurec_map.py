"""The road map inside a NuRec archive: lane tables, or OpenDRIVE."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from neural_sim.frames import invert_pose
from neural_sim.maps.geo_reference import T_map_world
from neural_sim.maps.moving import map_on_ground, moved_map
from neural_sim.maps.nurec_tables import map_folder, parse_lane_tables
from neural_sim.maps.opendrive import parse_opendrive, parse_xml
from neural_sim.road_map import RoadMap
from neural_sim.scenes.archive import read_members

OPENDRIVE_FILE = "map.xodr"
_TABLES = ("lane", "association", "road_boundary", "intersection_area")


def read_nurec_map(
    path: Path, names: list[str], T_ecef_world: Float[np.ndarray, "4 4"], ground_m: Float[np.ndarray, "v 3"]
) -> RoadMap | None:
    """The map of the archive at `path` with members `names`, in the world of its rig poses, m; None without one.

    Looked for in AlpaSim's order: `map_data/`, `clipgt/`, `fastmap/` (put on the ground vertices `ground_m`), then
    `map.xodr`, moved to the world by its geographic reference. Raises `InputError` naming the member that is malformed.
    """
    folder = map_folder(names)
    if folder is not None:
        members = [f"{folder}/{table}.parquet" for table in _TABLES if f"{folder}/{table}.parquet" in names]
        contents = read_members(path, members, "")
        tables = {Path(name).stem: content for name, content in contents.items()}
        road_map = parse_lane_tables(tables, f"{path}: {folder}")
        return map_on_ground(road_map, ground_m) if folder == "fastmap" else road_map
    if OPENDRIVE_FILE not in names:
        return None
    where, content = f"{path}: {OPENDRIVE_FILE}", read_members(path, [OPENDRIVE_FILE], "")[OPENDRIVE_FILE]
    T_world_map = invert_pose(T_map_world(parse_xml(content, where), T_ecef_world))
    return moved_map(parse_opendrive(content, where), T_world_map)
