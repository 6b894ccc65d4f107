"""How well a scene holds beside the recorded path, where no camera was and no recording says what is right.

Views of recorded frames are drawn again with the rig shifted sideways. Two things can be judged without a recording:

- Holes: a ray that points below the horizon must meet the ground or something on it. The hole share is the share of
  these rays whose opacity is below one half.
- Conflicts: the recorded view saw through the space before the surfaces it shows. The conflict share is the share of
  opaque pixels of the shifted view whose surface point lies in that free space, more than a tenth nearer than what the
  unshifted view shows there: floaters. Points outside the unshifted view, or hidden in it, do not count.

Both are zero or small at no shift and grow as the scene falls apart. Pixels that show the recording car or lie outside
what a lens covers are left out. Rolling shutters are drawn as such; horizon and free space are judged as if all lines
were read together, which is off by centimetres where a tenth of the depth counts. Scenes of the synthetic town are also
compared with the true world at every shift, in PSNR and SSIM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from neural_sim.cameras import Camera
from neural_sim.errors import InputError
from neural_sim.frames import invert_pose
from neural_sim.reconstruction.loss import psnr_db, ssim
from neural_sim.reconstruction.views import usable_pixels
from neural_sim.rendering.lenses import is_perspective, view_rays
from neural_sim.rendering.renderer import RenderedImage, Renderer, RenderRequest
from neural_sim.rendering.splat_renderer import SplatRenderer, pose_at_mid_shutter
from neural_sim.scenes.recorded_views import recorded_request
from neural_sim.scenes.scene import Scene

SHIFTS_M = (0.0, 1.0, 2.0, 4.0)
_OPAQUE = 0.5
_NEARER = 0.9
_HORIZON = -0.02
_FRAMES_PER_CAMERA = 6


def measure_off_log(scene: Scene, image_width_px: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Figures of each sideways shift in `SHIFTS_M`, keyed by the shift in m, as plain JSON values.

    Means over both sides and up to six held-out frames of each camera, images at most `image_width_px` wide. Keys:
    `hole_share`, `conflict_share`, and in scenes of the synthetic town `psnr_db` and `ssim` against the true world.
    """
    renderer, truth = SplatRenderer(scene, device), _true_world(scene)
    figures: dict[float, list[dict[str, float]]] = {shift_m: [] for shift_m in SHIFTS_M}
    for request in held_out_requests(scene, image_width_px):
        (recorded,) = renderer.render([request])
        for shift_m in SHIFTS_M:
            for side in (-1, 1) if shift_m else (1,):
                shifted = shifted_request(request, side * shift_m)
                figures[shift_m].append(_judge(request, recorded, shifted, renderer, truth))
    return {f"{shift_m:g}": _means(each) for shift_m, each in figures.items()}


def held_out_requests(scene: Scene, image_width_px: int) -> list[RenderRequest]:
    """Up to six held-out frames of each camera, evenly chosen, at recorded poses."""
    requests = []
    for name, camera in scene.cameras.items():
        indices = held_out_indices(scene, name)
        chosen = np.unique(np.linspace(0, len(indices) - 1, min(_FRAMES_PER_CAMERA, len(indices))).round().astype(int))
        width = min(image_width_px, camera.width_px)
        small = camera.resized(width, max(1, round(camera.height_px * width / camera.width_px)))
        times_us = scene.camera_times_us[name]
        requests += [recorded_request(scene, small, int(times_us[indices[place]])) for place in chosen]
    return requests


def held_out_indices(scene: Scene, camera: str) -> list[int]:
    """Recorded frames of `camera` that were not trained on, by the scene's own record; empty when it has none."""
    frames = scene.metadata.get("quality", {}).get("held_out", {}).get("frames", ())
    return [int(frame["index"]) for frame in frames if frame["camera"] == camera]


def shifted_request(request: RenderRequest, left_m: float) -> RenderRequest:
    """The same image from a rig that stands `left_m` metres to the left, heading as before."""
    T_rig_camera = request.camera.T_rig_camera
    shift = np.eye(4)
    shift[1, 3] = left_m
    in_camera = invert_pose(T_rig_camera) @ shift @ T_rig_camera
    return replace(
        request,
        T_world_camera_open=request.T_world_camera_open @ in_camera,
        T_world_camera_close=request.T_world_camera_close @ in_camera,
    )


def _judge(
    recorded_request: RenderRequest,
    recorded: RenderedImage,
    request: RenderRequest,
    renderer: Renderer,
    truth: Renderer | None,
) -> dict[str, float]:
    (image,) = renderer.render([request])
    rays, usable = _camera_rays(request.camera), _usable(request.camera)
    directions = np.where(usable[..., None], rays, 0.0) @ pose_at_mid_shutter(request)[:3, :3].T
    figures = {
        "hole_share": hole_share(image, directions),
        "conflict_share": conflict_share(recorded_request, recorded, request, image),
    }
    if truth is not None:
        (true,) = truth.render([request])
        drawn, wanted = torch.from_numpy(image.rgb), torch.from_numpy(true.rgb)
        shown = None if usable.all() else torch.from_numpy(usable)
        figures |= {"psnr_db": psnr_db(drawn, wanted, shown), "ssim": float(ssim(drawn, wanted, shown))}
    return figures


def hole_share(image: RenderedImage, directions: Float[np.ndarray, "h w 3"]) -> float:
    """Share of the rays below the horizon that meet nothing; `directions` in the world frame, 0 for no ray."""
    below = directions[..., 2] < _HORIZON * np.linalg.norm(directions, axis=-1)
    return float((image.opacity[below] < _OPAQUE).mean()) if below.any() else 0.0


def conflict_share(
    recorded_request: RenderRequest, recorded: RenderedImage, request: RenderRequest, image: RenderedImage
) -> float:
    """Share of the opaque pixels of `image` whose surface lies in space that `recorded` sees through."""
    points = _camera_rays(request.camera) * image.depth_m[..., None]
    T = invert_pose(recorded_request.T_world_camera_open) @ request.T_world_camera_open
    points = points[(image.opacity > _OPAQUE) & _usable(request.camera)] @ T[:3, :3].T + T[:3, 3]
    if len(points) == 0:
        return 0.0
    camera = recorded_request.camera
    pixels, ahead = camera.project(points)
    seen = ahead & _inside(pixels, camera)
    column, row = np.floor(pixels[seen]).astype(int).T
    shown_m = np.where(recorded.opacity[row, column] > _OPAQUE, recorded.depth_m[row, column], np.inf)
    depth_m = points[seen, 2] if is_perspective(camera.distortion) else np.linalg.norm(points[seen], axis=1)
    return float((_usable(camera)[row, column] & (depth_m < _NEARER * shown_m)).sum() / len(points))


def _camera_rays(camera: Camera) -> Float[np.ndarray, "h w 3"]:
    """Rays of the pixel centres in the camera frame, scaled to depth 1 as the renderer measures it."""
    if camera.distortion is not None:
        rays = view_rays(camera.K, camera.width_px, camera.height_px, camera.distortion).astype(np.float64)
    else:
        x, y = np.meshgrid(np.arange(camera.width_px) + 0.5, np.arange(camera.height_px) + 0.5)
        rays, _ = camera.unproject(np.stack([x, y], axis=-1))
    return rays / np.maximum(rays[..., 2:], 1e-6) if is_perspective(camera.distortion) else rays


def _usable(camera: Camera) -> Bool[np.ndarray, "h w"]:
    usable = usable_pixels(camera, camera.width_px, camera.height_px)
    return np.ones((camera.height_px, camera.width_px), bool) if usable is None else usable


def _inside(pixels: Float[np.ndarray, "n 2"], camera: Camera) -> Bool[np.ndarray, "n"]:
    return np.all((pixels >= 0) & (pixels < [camera.width_px, camera.height_px]), axis=-1)


def _true_world(scene: Scene) -> Renderer | None:
    """The synthetic town that the scene was recorded in, if it was and this program still builds it."""
    if scene.metadata.get("source", {}).get("dataset") != "town":
        return None
    from neural_sim.town.town import true_world  # loads the ray caster

    try:
        return true_world(scene)
    except InputError:
        return None


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in figures])) for name in (figures[0] if figures else ())}
