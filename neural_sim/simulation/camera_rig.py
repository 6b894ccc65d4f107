"""The cameras of the ego car: which images to ask of the renderer, and how they enter the history."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from neural_sim.cameras import Camera
from neural_sim.errors import InputError
from neural_sim.frames import interpolate_poses
from neural_sim.rendering.renderer import RenderedImage, Renderer, RenderRequest
from neural_sim.simulation.ground import ExpertGround
from neural_sim.simulation.observation import ImageFormat

Frame = Mapping[str, UInt8[np.ndarray, "b h w 3"]]
Actors = Mapping[str, Float[np.ndarray, "4 4"]]
# Any two times do for an interpolation by share.
_STEP = np.array([0, 1_000_000])


class CameraRig:
    """Renders one frame of every camera for every rollout, with the shutter closing at the given time."""

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        renderer: Renderer,
        ground: ExpertGround,
        images: ImageFormat,
        control_step_us: int,
    ) -> None:
        missing = [name for name in images.cameras if name not in cameras]
        if missing:
            raise InputError(
                f"the policy sees camera {', '.join(missing)}, but the scene has {', '.join(sorted(cameras)) or 'none'}"
            )
        self.cameras = tuple(cameras[name].resized(images.width_px, images.height_px) for name in images.cameras)
        self._renderer, self._ground, self._step_us = renderer, ground, control_step_us

    def render(
        self,
        t_us: int,
        before: Float[np.ndarray, "b 3"],
        now: Float[np.ndarray, "b 3"],
        closed: Float[np.ndarray, "b 4 4"],
        actors: Sequence[Actors],
        actors_before: Sequence[Actors],
    ) -> Frame:
        """Images uint8 [B, H, W, 3] by camera name at `t_us`.

        `before`, `now`: rig poses (x, y, yaw not wrapped; world, m, rad) one control step earlier and at `t_us`; the
        pose when the shutter opened lies between them. `closed`: T_world_rig of `now` on the ground. `actors`,
        `actors_before`: box poses by track id, for each rollout, at `t_us` and one control step earlier.
        """
        opened = {0: closed}
        requests: list[RenderRequest] = []
        for camera in self.cameras:
            if camera.shutter_us not in opened:
                share = min(camera.shutter_us / self._step_us, 1.0)
                opened[camera.shutter_us] = self._ground.settle(now + share * (before - now))
            at_open = opened[camera.shutter_us] @ camera.T_rig_camera
            at_close = closed @ camera.T_rig_camera
            opening = [None] * len(now)
            if camera.shutter_us > 0:
                share = min(camera.shutter_us / self._step_us, 1.0)
                opening = [_moved_back(*pair, share) for pair in zip(actors, actors_before, strict=True)]
            requests += [
                RenderRequest(camera, at_open[b], at_close[b], actors[b], t_us, opening[b]) for b in range(len(now))
            ]
        return self._frame(self._renderer.render(requests), len(now))

    def _frame(self, images: Sequence[RenderedImage], batch_size: int) -> Frame:
        frame: dict[str, np.ndarray] = {}
        for c, camera in enumerate(self.cameras):
            pixels = _stacked(images[c * batch_size : (c + 1) * batch_size])
            pixels.flags.writeable = False
            frame[camera.name] = pixels
        return frame


def _moved_back(actors: Actors, before: Actors, share: float) -> Actors:
    """Poses by `share` of the way from now to before; those of road users that were not there before are as now."""
    return {
        name: interpolate_poses(_STEP, np.stack([pose, before.get(name, pose)]), np.array([round(share * _STEP[1])]))[0]
        for name, pose in actors.items()
    }


def _stacked(images: Sequence[RenderedImage]) -> UInt8[np.ndarray, "b h w 3"]:
    """Images of a camera as bytes; one image given for all rollouts is converted once."""
    if all(image is images[0] for image in images):
        pixels = to_uint8(images[0].rgb)
        return np.broadcast_to(pixels, (len(images), *pixels.shape)).copy()
    return np.stack([to_uint8(image.rgb) for image in images])


def to_uint8(rgb: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colours 0..1 rounded to 0..255; values outside are clipped."""
    return np.rint(np.clip(rgb, 0.0, 1.0) * 255.0).astype(np.uint8)
