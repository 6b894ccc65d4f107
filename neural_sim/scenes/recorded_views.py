"""What the recorded cameras of a scene saw."""

import numpy as np

from neural_sim.cameras import Camera
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.scenes.scene import Scene


def recorded_request(scene: Scene, camera: Camera, t_us: int) -> RenderRequest:
    """The image that `camera` took at `t_us` (its middle row) of the recorded drive, other road users in their places.

    `camera` may be resized. Poses hold outside the recorded span.
    """
    half_us = camera.shutter_us // 2
    times_us = np.array([t_us, t_us - half_us, t_us - half_us + camera.shutter_us])
    rig = scene.expert.poses_at(times_us[1:])
    tracks = {track.track_id: track.trajectory.poses_at(times_us) for track in scene.tracks if track.is_present(t_us)}
    actors, opened, closed = ({name: poses[k] for name, poses in tracks.items()} for k in range(3))
    ends = (opened, closed) if camera.shutter_us else (None, None)
    return RenderRequest(camera, rig[0] @ camera.T_rig_camera, rig[1] @ camera.T_rig_camera, actors, t_us, *ends)
