"""What the cameras of a drive saw: the one way from a recorded frame to a draw request, in training and afterwards."""

from collections.abc import Sequence

import numpy as np

from neural_sim.cameras import Camera
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.road_users import Track
from neural_sim.scenes.scene import Scene
from neural_sim.trajectory import Trajectory


def recorded_request(scene: Scene, camera: Camera, t_us: int) -> RenderRequest:
    """The image that `camera` took at `t_us` (its middle row) of the recorded drive, other road users in their places.

    `camera` may be resized. Poses hold outside the recorded span.
    """
    return drive_request(scene.expert, scene.tracks, camera, t_us)


def drive_request(ego: Trajectory, tracks: Sequence[Track], camera: Camera, t_us: int) -> RenderRequest:
    """The image that `camera` takes at `t_us` (its middle row) of a drive, with those of `tracks` that are there.

    With a rolling shutter the poses at its ends are those of `exposure_us`. Poses hold outside the recorded span.
    """
    times_us = np.array([t_us, *exposure_us(camera, t_us)])
    rig = ego.poses_at(times_us[1:])
    placed = {track.track_id: track.trajectory.poses_at(times_us) for track in tracks if track.is_present(t_us)}
    actors, opened, closed = ({name: poses[k] for name, poses in placed.items()} for k in range(3))
    ends = (opened, closed) if camera.shutter_us else (None, None)
    return RenderRequest(camera, rig[0] @ camera.T_rig_camera, rig[1] @ camera.T_rig_camera, actors, t_us, *ends)


def exposure_us(camera: Camera, t_us: int) -> tuple[int, int]:
    """When the first and the last line are read of an image whose middle line is read at `t_us`, us."""
    opened_us = t_us - camera.shutter_us // 2
    return opened_us, opened_us + camera.shutter_us
