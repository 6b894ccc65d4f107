"""What is in a scene file, for `roadloop inspect`."""

from pathlib import Path

import numpy as np
import torch

from neural_sim.clips.check import HISTORY_S, HORIZON_S
from neural_sim.clips.describe import (
    describe_drive,
    describe_driving,
    describe_gaps,
    describe_map,
    describe_tracks,
)
from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.storage import read_scene


def describe_scene(path: Path) -> tuple[list[str], list[str]]:
    """Facts about the scene at `path` and the problems found.

    A scene that cannot be read has its name as the only fact and one problem.
    """
    try:
        scene = read_scene(path)
    except InputError as error:
        return [f"scene {path.name}, not readable"], [str(error)]
    return _facts(scene, path), _problems(scene)


def _facts(scene: Scene, path: Path) -> list[str]:
    actors = f"{sum(len(actor) for actor in scene.actors.values())} in {len(scene.actors)}"
    return [
        f"scene {scene.scene_id}, {path.stat().st_size / 1e6:.1f} MB",
        f"Gaussians: {len(scene.background)} background, {len(scene.road)} road, {actors} actors",
        f"spherical harmonics degree {scene.background.sh_degree}; sky {scene.sky.shape[1]} px a face",
        describe_drive(scene.expert),
        *[_camera_fact(scene, name) for name in scene.cameras],
        describe_tracks(scene.tracks),
        describe_map(scene.road_map),
        f"ground: {len(scene.ground.vertices_m)} vertices, {len(scene.ground.faces)} triangles",
        *(f"{key}: {value}" for key, value in scene.metadata.items() if isinstance(value, str | int | float)),
        *(f"approximated: {note}" for note in scene.metadata.get("approximations", ())),
        *_stage_facts(scene),
    ]


def _camera_fact(scene: Scene, name: str) -> str:
    camera, t_us = scene.cameras[name], scene.camera_times_us[name]
    rate = f", {1e6 / np.median(np.diff(t_us)):.2f} Hz{describe_gaps(t_us)}" if len(t_us) > 1 else ""
    lens = "" if camera.distortion is None else f" ({camera.model} lens)"
    return f"camera {name}: {camera.width_px}x{camera.height_px}{lens}, {len(t_us)} recorded frames{rate}"


def _stage_facts(scene: Scene) -> list[str]:
    """What stands between the scene and each stage that takes one."""
    rollout = "ready" if scene.cameras else "needs cameras, and the scene has none"
    driving = describe_driving(scene.tracks, scene.road_map)
    return [f"for rollout: {rollout}", f"for evaluate: {driving or rollout}"]


def _problems(scene: Scene) -> list[str]:
    nodes = {"background": scene.background, "road": scene.road}
    nodes |= {f"actor {actor_id!r}": actor for actor_id, actor in scene.actors.items()}
    problems = [problem for name, node in nodes.items() for problem in _node_problems(name, node)]
    if len(scene.background) + len(scene.road) == 0:
        problems.append("the scene has no static Gaussians; reconstruct it again")
    if len(scene.ground.faces) == 0:
        problems.append("the ground has no triangles, so cars have nothing to stand on; reconstruct it again")
    duration_s = (scene.expert.end_us - scene.expert.start_us) * 1e-6
    if duration_s < HISTORY_S + HORIZON_S:
        problems.append(
            f"the expert drives {duration_s:.2f} s, but {HISTORY_S + HORIZON_S:.2f} s are required for one example; "
            "reconstruct a longer clip"
        )
    return problems


def _node_problems(name: str, gaussians: Gaussians) -> list[str]:
    if len(gaussians) == 0:
        return []
    problems = []
    if bool((gaussians.quaternions_xyzw.norm(dim=1) == 0).any()):
        problems.append(f"{name}: some quaternions have zero norm; reconstruct the scene again")
    if bool((torch.sigmoid(gaussians.opacity_logits) < 1 / 255).all()):
        problems.append(f"{name}: every Gaussian is transparent; reconstruct the scene again")
    return problems
