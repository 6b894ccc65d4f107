"""Where moving road users really were: small corrections of their tracked boxes, smooth in time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from neural_sim.reconstruction.views import View
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

# What tracked boxes are trusted to, and how gently a correction may change over time.
_SIGMA_M, _SIGMA_RAD = 0.2, 0.05
_SIGMA_MPS2, _SIGMA_RADPS2 = 1.0, 0.5


class ActorKnots:
    """The times at which the pose of each moving road user can be corrected: when a training view shows the moment.

    A correction is six numbers in the frame of the box, rotation vector (rad) and translation (m). Those of all road
    users lie in one array [K, 6]; between knots they are linear in time, beyond them they hold.
    """

    def __init__(self, tracks: Sequence[Track], views: Sequence[View]) -> None:
        times_us = np.unique([view.t_us for view in views])
        self.t_us = [times_us[[track.is_present(int(t)) for t in times_us]] for track in tracks]
        self.first = np.concatenate([[0], np.cumsum([len(t) for t in self.t_us])]).astype(int)

    def __len__(self) -> int:
        return int(self.first[-1])

    def at(self, offsets: Float[Tensor, "k 6"], t_us: int) -> Float[Tensor, "a 6"]:
        """Correction of each road user at `t_us`. Differentiable in `offsets`."""
        nothing = offsets.new_zeros(6)
        rows = []
        for index, knots_us in enumerate(self.t_us):
            if len(knots_us) == 0:
                rows.append(nothing)
                continue
            place = float(np.interp(t_us, knots_us, np.arange(len(knots_us))))
            before = min(int(place), len(knots_us) - 1)
            after = min(before + 1, len(knots_us) - 1)
            first = int(self.first[index])
            rows.append(torch.lerp(offsets[first + before], offsets[first + after], place - before))
        return torch.stack(rows) if rows else offsets.new_zeros(0, 6)

    def penalty(self, offsets: Float[Tensor, "k 6"]) -> Tensor:
        """Mean square of corrections and of their accelerations, each over what is expected of it."""
        size = offsets.new_tensor([_SIGMA_RAD] * 3 + [_SIGMA_M] * 3)
        bend = offsets.new_tensor([_SIGMA_RADPS2] * 3 + [_SIGMA_MPS2] * 3)
        total = ((offsets / size) ** 2).mean()
        for index, knots_us in enumerate(self.t_us):
            if len(knots_us) < 3:
                continue
            own = offsets[self.first[index] : self.first[index + 1]]
            step_s = offsets.new_tensor(np.diff(knots_us) * 1e-6)[:, None]
            velocity = torch.diff(own, dim=0) / step_s
            acceleration = torch.diff(velocity, dim=0) / (0.5 * (step_s[1:] + step_s[:-1]))
            total = total + ((acceleration / bend) ** 2).sum() / offsets.numel()
        return total

    def refined(self, track: Track, index: int, offsets: Float[np.ndarray, "k 6"]) -> Track:
        """The track, number `index` of those given, with its corrections applied at its own times."""
        knots_us = self.t_us[index]
        if len(knots_us) == 0:
            return track
        own = offsets[self.first[index] : self.first[index + 1]]
        at = np.stack([np.interp(track.trajectory.t_us, knots_us, column) for column in own.T], axis=-1)
        T = np.tile(np.eye(4), (len(at), 1, 1))
        T[:, :3, :3], T[:, :3, 3] = Rotation.from_rotvec(at[:, :3]).as_matrix(), at[:, 3:]
        return replace(track, trajectory=Trajectory(track.trajectory.t_us, track.trajectory.T_world_rig @ T))


class SweptSpace:
    """Space that moving vehicles passed through: nothing static can be there.

    Kept as the set of voxels inside the boxes, made smaller by what boxes are wrong by, at all tracked times.
    """

    VOXEL_M = 0.25
    _MARGIN_M = 0.25
    _CATEGORIES = ("vehicle", "cyclist")

    def __init__(self, tracks: Sequence[Track]) -> None:
        parts = [self._voxels(track) for track in tracks if track.category in self._CATEGORIES]
        self._keys = np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))

    def contains(self, points_m: Float[np.ndarray, "n 3"]) -> np.ndarray:
        """bool [N], which world points lie in it."""
        return np.isin(self._key(points_m), self._keys) if len(self._keys) else np.zeros(len(points_m), bool)

    def _voxels(self, track: Track) -> Int[np.ndarray, "k"]:
        half = np.maximum(0.5 * np.asarray(track.size_m) - self._MARGIN_M, 0.0)
        axes = [np.linspace(-h, h, 2 + int(4 * h / self.VOXEL_M)) for h in half]
        lattice = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)
        poses = track.trajectory.T_world_rig
        keys = [np.unique(self._key(lattice @ pose[:3, :3].T + pose[:3, 3])) for pose in poses]
        return np.unique(np.concatenate(keys))

    def _key(self, points_m: np.ndarray) -> Int[np.ndarray, "n"]:
        cell = np.floor(np.nan_to_num(points_m) / self.VOXEL_M).astype(np.int64) + (1 << 20)
        return (cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2]
