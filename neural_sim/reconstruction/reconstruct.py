"""From a clip to a scene."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_sim.clips.clip import Clip
from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.actor_motion import SweptSpace
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.drawing import Target, draw, make_target
from neural_sim.reconstruction.ground import ground_from_path
from neural_sim.reconstruction.memory import check_memory
from neural_sim.reconstruction.model import BACKGROUND, FIRST_ACTOR, ROAD, SceneModel
from neural_sim.reconstruction.off_log import measure_off_log
from neural_sim.reconstruction.optimisation import Running, Surroundings, optimise
from neural_sim.reconstruction.placement import placed_actors
from neural_sim.reconstruction.preparation import Prepared, initial_model, prepare
from neural_sim.reconstruction.quality import measure_quality
from neural_sim.reconstruction.views import View, check_clip
from neural_sim.road_map import corridor_map
from neural_sim.road_users import Track
from neural_sim.scenes.scene import Scene

logger = logging.getLogger("roadloop")

# What a caller is told after every iteration: how many are done, and a way to measure the held-out quality now.
Watch = Callable[[int, Callable[[], dict[str, Any]]], None]

# Gaussians fainter than this add nothing to any image.
_FAINT_OPACITY = 0.01


def reconstruct(
    clip: Clip,
    config: ReconstructionConfig,
    *,
    seed: int,
    device: str = "cpu",
    work_dir: Path | None = None,
    watch: Watch | None = None,
) -> Scene:
    """Reconstruct a clip as Gaussians: background, road, one set per moving road user, and a sky.

    Deterministic for a seed. With `work_dir` the optimisation leaves a checkpoint there every
    `config.checkpoint_every` iterations and continues from one that fits, bit-identically. Held-out quality is in
    `scene.metadata["quality"]`. `watch(iterations done, measure)` is called after every iteration; `measure()` gives
    the held-out quality then. Raises `InputError` on a clip without cameras, with fewer than 8 usable frames,
    unreadable images, poses that do not move, a lens or rolling shutter on the gsplat backend, or a memory budget
    that the prediction exceeds.
    """
    started_s = time.monotonic()
    check_clip(clip)
    _check_backend(clip, config, device)
    check_memory(clip, config)
    prepared = prepare(clip, config, seed)
    model = initial_model(prepared, config, device)
    logger.info("reconstruct %s: %d initial Gaussians, %.1f s", clip.clip_id, len(model), time.monotonic() - started_s)
    world = Surroundings(
        prepared.training,
        [prepared.request(view) for view in prepared.training],
        prepared.tracks,
        prepared.knots,
        SweptSpace(prepared.tracks),
        prepared.surface,
    )
    fingerprint = _fingerprint(clip, config, seed, prepared.training)
    running = Running(work_dir, fingerprint, time.monotonic() - started_s, _watched(watch, model, prepared, config))
    done = optimise(model, world, config, seed, running)
    with torch.no_grad():
        model.select(torch.sigmoid(model.tensors["opacity_logits"]) > _FAINT_OPACITY)
    quality = _quality(model, prepared, config, done)
    logger.info(
        "reconstruct %s: held-out %.2f dB, SSIM %.3f; %d Gaussians, %.1f s",
        clip.clip_id,
        quality["held_out"]["psnr_db"],
        quality["held_out"]["ssim"],
        len(model),
        time.monotonic() - started_s,
    )
    scene = _scene(clip, config, seed, prepared, model, quality)
    quality["off_log"] = measure_off_log(scene, config.image_width_px, device)
    return scene


def _check_backend(clip: Clip, config: ReconstructionConfig, device: str) -> None:
    """Raise `InputError` naming a camera that gsplat draws without the gradients that densification needs."""
    on_cuda = torch.device(device).type == "cuda"
    if config.backend != "gsplat" and not (config.backend == "auto" and on_cuda):
        return
    for name, frames in clip.cameras.items():
        if frames.camera.distortion is not None or frames.camera.shutter_us:
            raise InputError(
                f"clip {clip.clip_id}: camera {name} has a {frames.camera.model} lens and a readout of "
                f"{frames.camera.shutter_us} us; reconstruction on gsplat takes pinhole cameras with global shutters "
                "only, use the CPU (--device cpu)"
            )


def _watched(
    watch: Watch | None, model: SceneModel, prepared: Prepared, config: ReconstructionConfig
) -> Callable[[int], None] | None:
    if watch is None:
        return None
    return lambda done: watch(done, lambda: _views_quality(model, prepared, prepared.held_out, config))


def _views_quality(
    model: SceneModel, prepared: Prepared, views: Sequence[View], config: ReconstructionConfig
) -> dict[str, Any]:
    def drawn(view: View) -> tuple[Tensor, Target]:
        target = make_target(view, prepared.request(view)).to(str(model.device))
        actors = placed_actors(model, prepared.tracks, target.request, prepared.knots)
        return draw(model.gaussians(), model.sky, target, config.backend, actors)[0], target

    return measure_quality(views, drawn)


def _quality(model: SceneModel, prepared: Prepared, config: ReconstructionConfig, done: int) -> dict[str, Any]:
    camera = prepared.training[0].camera
    return {
        "held_out": _views_quality(model, prepared, prepared.held_out, config),
        "train": _views_quality(model, prepared, prepared.training, config),
        "image_size_px": [camera.width_px, camera.height_px],
        "iterations": done,
        "gaussians": len(model),
    }


def _scene(
    clip: Clip,
    config: ReconstructionConfig,
    seed: int,
    prepared: Prepared,
    model: SceneModel,
    quality: dict[str, Any],
) -> Scene:
    actors = {track.track_id: _part(model, FIRST_ACTOR + index) for index, track in enumerate(prepared.tracks)}
    return Scene(
        scene_id=clip.clip_id,
        background=_part(model, BACKGROUND),
        road=_part(model, ROAD),
        actors={track_id: part for track_id, part in actors.items() if len(part)},
        sky=model.sky.detach().clamp(0, 1).cpu(),
        expert=prepared.ego,
        tracks=_refined_tracks(clip, model, prepared),
        road_map=clip.road_map or corridor_map(prepared.ego, config.corridor_half_width_m),
        # Through the rig origins, so that a car that stands on it sees the road from the recorded height.
        ground=ground_from_path(prepared.ego, config.ground_half_width_m).mesh(),
        cameras={name: frames.camera for name, frames in clip.cameras.items()},
        camera_times_us={name: frames.t_us for name, frames in clip.cameras.items()},
        ego_vehicle=clip.ego_vehicle,
        navigation=clip.navigation,
        metadata={"source": dict(clip.source), "seed": seed, "reconstruction": _plain(config), "quality": quality},
    )


def _refined_tracks(clip: Clip, model: SceneModel, prepared: Prepared) -> tuple[Track, ...]:
    """All tracks of the clip; those of moving road users where their Gaussians fit the images."""
    offsets = model.actor_offsets.detach().cpu().double().numpy()
    refined = {
        track.track_id: prepared.knots.refined(track, index, offsets) for index, track in enumerate(prepared.tracks)
    }
    return tuple(refined.get(track.track_id, track) for track in clip.tracks)


def _part(model: SceneModel, owner: int) -> Gaussians:
    rows = model.owner == owner
    return Gaussians(**{name: tensor.detach()[rows].cpu() for name, tensor in model.tensors.items()})


def _plain(config: ReconstructionConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def _fingerprint(clip: Clip, config: ReconstructionConfig, seed: int, views: Sequence[View]) -> str:
    """Digest of everything that shapes the optimisation: settings, seed, images, poses and tracks."""
    digest = hashlib.sha256(json.dumps([clip.clip_id, seed, _plain(config)]).encode())
    for view in views:
        digest.update(view.image.tobytes())
        digest.update(view.T_world_camera.tobytes())
        digest.update(json.dumps(view.camera.to_json()).encode())
    for track in clip.tracks:
        digest.update(track.track_id.encode())
        digest.update(track.trajectory.T_world_rig.tobytes())
    return digest.hexdigest()
