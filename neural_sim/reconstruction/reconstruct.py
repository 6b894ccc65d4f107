"""From a clip to a scene."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from neural_sim.clips.clip import Clip
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction.actors import actor_poses
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.ground import ground_from_path
from neural_sim.reconstruction.model import BACKGROUND, FIRST_ACTOR, ROAD, SceneModel
from neural_sim.reconstruction.optimisation import Surroundings, optimise
from neural_sim.reconstruction.preparation import Prepared, initial_model, prepare
from neural_sim.reconstruction.quality import measure_quality
from neural_sim.reconstruction.views import View, check_clip
from neural_sim.road_map import corridor_map
from neural_sim.scenes.scene import Scene

logger = logging.getLogger("roadloop")

# Gaussians fainter than this add nothing to any image.
_FAINT_OPACITY = 0.01


def reconstruct(
    clip: Clip, config: ReconstructionConfig, *, seed: int, device: str = "cpu", work_dir: Path | None = None
) -> Scene:
    """Reconstruct a clip as Gaussians: background, road, one set per moving road user, and a sky.

    Deterministic for a seed. With `work_dir` the optimisation leaves a checkpoint there every
    `config.checkpoint_every` iterations and continues from one that fits, bit-identically. Held-out quality is in
    `scene.metadata["quality"]`. Raises `InputError` on a clip without cameras, with fewer than 8 usable frames,
    unreadable images, or poses that do not move.
    """
    started_s = time.monotonic()
    check_clip(clip)
    prepared = prepare(clip, config, seed)
    model = initial_model(prepared, config, device)
    logger.info("reconstruct %s: %d initial Gaussians, %.1f s", clip.clip_id, len(model), time.monotonic() - started_s)
    world = Surroundings(prepared.training, prepared.tracks, prepared.surface)
    fingerprint = _fingerprint(clip, config, seed, prepared.training)
    optimise(model, world, config, seed, work_dir, fingerprint)
    with torch.no_grad():
        model.select(torch.sigmoid(model.tensors["opacity_logits"]) > _FAINT_OPACITY)
    quality = _quality(model, prepared, config)
    logger.info(
        "reconstruct %s: held-out %.2f dB, SSIM %.3f; %d Gaussians, %.1f s",
        clip.clip_id,
        quality["held_out"]["psnr_db"],
        quality["held_out"]["ssim"],
        len(model),
        time.monotonic() - started_s,
    )
    return _scene(clip, config, seed, prepared, model, quality)


def _quality(model: SceneModel, prepared: Prepared, config: ReconstructionConfig) -> dict[str, Any]:
    def gaussians_at(t_us: int) -> Gaussians:
        return model.posed(actor_poses(prepared.tracks, t_us))

    sky = model.sky.detach()
    camera = prepared.training[0].camera
    return {
        "held_out": measure_quality(prepared.held_out, gaussians_at, sky, config.backend),
        "train": measure_quality(prepared.training, gaussians_at, sky, config.backend),
        "image_size_px": [camera.width_px, camera.height_px],
        "iterations": config.iterations,
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
        expert=clip.ego,
        tracks=clip.tracks,
        road_map=clip.road_map or corridor_map(clip.ego, config.corridor_half_width_m),
        # Through the rig origins, so that a car that stands on it sees the road from the recorded height.
        ground=ground_from_path(clip.ego, config.ground_half_width_m).mesh(),
        cameras={name: frames.camera for name, frames in clip.cameras.items()},
        camera_times_us={name: frames.t_us for name, frames in clip.cameras.items()},
        ego_vehicle=clip.ego_vehicle,
        navigation=clip.navigation,
        metadata={"source": dict(clip.source), "seed": seed, "reconstruction": _plain(config), "quality": quality},
    )


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
        digest.update(view.camera.K.tobytes())
    for track in clip.tracks:
        digest.update(track.track_id.encode())
        digest.update(track.trajectory.T_world_rig.tobytes())
    return digest.hexdigest()
