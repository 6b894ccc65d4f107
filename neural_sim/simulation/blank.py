"""A world without pictures: runs the simulator where nobody looks at them, or where a clip has none."""

from collections.abc import Sequence

import numpy as np
import torch

from neural_sim.cameras import Camera
from neural_sim.clips.clip import Clip
from neural_sim.frames import R_RIG_FORWARD_CAMERA
from neural_sim.gaussians import Gaussians
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.road_map import corridor_map
from neural_sim.scenes.scene import GroundMesh, Scene
from neural_sim.simulation.observation import ImageFormat

BLANK_CAMERA = "blank"
BLANK_IMAGES = ImageFormat((BLANK_CAMERA,), num_frames=1, frame_interval_us=100_000, width_px=8, height_px=6)
GROUND_MARGIN_M = 500.0


class BlankRenderer:
    """Answers every request with a uniform gray image."""

    name = "blank"

    def __init__(self, gray: float = 0.5) -> None:
        self._gray = gray
        self._images: dict[tuple[int, int], RenderedImage] = {}

    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        """One read-only gray image per request, shared by all requests of a size; nothing is opaque."""
        return [self._image(request.camera.height_px, request.camera.width_px) for request in requests]

    def _image(self, height_px: int, width_px: int) -> RenderedImage:
        size = (height_px, width_px)
        if size not in self._images:
            empty = np.broadcast_to(np.float32(0.0), size)
            rgb = np.broadcast_to(np.float32(self._gray), (*size, 3))
            self._images[size] = RenderedImage(rgb, empty, empty)
        return self._images[size]


def blank_scene(clip: Clip, corridor_half_width_m: float = 4.0) -> Scene:
    """The scene of a clip without Gaussians, with one nominal camera `BLANK_CAMERA`: drives and scores a log that has
    no images, or that nobody has reconstructed. Without a map it gets a corridor around the ego's path."""
    T_rig_camera = np.eye(4)
    T_rig_camera[:3, :3], T_rig_camera[:3, 3] = R_RIG_FORWARD_CAMERA, (1.5, 0.0, 1.5)
    width_px, height_px = BLANK_IMAGES.width_px, BLANK_IMAGES.height_px
    camera = Camera(
        BLANK_CAMERA, width_px, height_px, width_px / 2, width_px / 2, width_px / 2, height_px / 2, T_rig_camera
    )
    low = clip.ego.planar[:, :2].min(axis=0) - GROUND_MARGIN_M
    high = clip.ego.planar[:, :2].max(axis=0) + GROUND_MARGIN_M
    corners = [[low[0], low[1], 0.0], [high[0], low[1], 0.0], [high[0], high[1], 0.0], [low[0], high[1], 0.0]]
    return Scene(
        scene_id=clip.clip_id,
        background=Gaussians.empty(),
        road=Gaussians.empty(),
        actors={},
        sky=torch.full((6, 2, 2, 3), 0.5),
        expert=clip.ego,
        tracks=clip.tracks,
        road_map=clip.road_map or corridor_map(clip.ego, corridor_half_width_m),
        ground=GroundMesh(np.array(corners, np.float32), np.array([[0, 1, 2], [0, 2, 3]], np.int32)),
        cameras={BLANK_CAMERA: camera},
        camera_times_us={BLANK_CAMERA: clip.ego.t_us},
        ego_vehicle=clip.ego_vehicle,
        navigation=clip.navigation,
        metadata={"source": dict(clip.source)},
    )
