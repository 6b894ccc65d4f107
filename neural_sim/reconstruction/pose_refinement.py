"""Small corrections of the recorded rig poses that make the images agree: bundle adjustment over feature tracks.

Recorded poses are off by centimetres and milliradians, which is a pixel. The correction is a twist of the rig at the
times of the training images and linear in time between them, so a held-out image takes the pose of its neighbours'
corrections and never its own pixels.
"""

import logging
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from neural_sim.frames import invert_pose
from neural_sim.reconstruction.tracks import FeatureTracks
from neural_sim.reconstruction.triangulation import huber_weights, project_tracks, sum_by_track, triangulate
from neural_sim.trajectory import Trajectory

logger = logging.getLogger("roadloop")

# How far recorded poses are trusted: standard deviations of a correction, and of its change between two images.
_SIGMA_RAD, _SIGMA_M = 2e-3, 0.05
_STEP_SIGMA_RAD, _STEP_SIGMA_M = 2e-3, 0.03
# Largest reprojection of a track that takes part, px: first while poses may be wrong, then when they are nearly right.
_GATES_PX = (8.0, 1.5)
_STEPS = 4
_MAX_TRACKS = 12_000


@dataclass(frozen=True)
class PoseCorrection:
    """What to do to the recorded rig poses.

    Attributes:
        t_us: int64 [K], increasing, times of the twists.
        twists: float64 [K, 6], rotation vector (rad) and translation (m): the recorded rig frame is moved by their
            inverse. Linear in time between the knots, held beyond them.
    """

    t_us: Int[np.ndarray, "k"]
    twists: Float[np.ndarray, "k 6"]

    def at(self, query_us: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m 4 4"]:
        """T_recorded_corrected of the rig at `query_us`, m."""
        columns = [np.interp(query_us, self.t_us, column) for column in self.twists.T]
        return invert_pose(_transforms(np.stack(columns, axis=-1)))

    def applied(self, ego: Trajectory) -> Trajectory:
        """The corrected rig poses at the recorded times."""
        return Trajectory(ego.t_us, ego.T_world_rig @ self.at(ego.t_us))

    @staticmethod
    def none(t_us: Int[np.ndarray, "k"]) -> "PoseCorrection":
        """Leaves poses as they are."""
        return PoseCorrection(t_us, np.zeros((len(t_us), 6)))


@dataclass(frozen=True)
class RigImages:
    """The posed images that tracks were observed in, of all cameras. Of a rolling shutter each block of lines is one.

    Attributes:
        t_us: int64 [V], when each was exposed in its middle: all blocks of one exposure share one correction.
        K: float64 [V, 3, 3], px, at the size that features were tracked at.
        T_rig_camera: float64 [V, 4, 4], m.
        T_world_rig: float64 [V, 4, 4], recorded, m; of a block of lines when it was read.
    """

    t_us: Int[np.ndarray, "v"]
    K: Float[np.ndarray, "v 3 3"]
    T_rig_camera: Float[np.ndarray, "v 4 4"]
    T_world_rig: Float[np.ndarray, "v 4 4"]

    def T_camera_world(self, correction: PoseCorrection) -> Float[np.ndarray, "v 4 4"]:
        """World to camera with corrected rig poses, m."""
        return invert_pose(self.T_world_rig @ correction.at(self.t_us) @ self.T_rig_camera)


def refine_poses(images: RigImages, tracks: FeatureTracks) -> PoseCorrection:
    """Adjust rig poses and points together so that the points' reprojections fall onto the tracks.

    Gauss-Newton with Huber weights; the points are eliminated (Schur complement), and a prior holds the corrections
    near zero and alike in neighbouring images, which also fixes the frame of the world. Tracks that disagree with the
    poses by much take part first, because it may be the poses that are wrong; then only those that agree closely.
    Deterministic. Without tracks, or when the tracks do not get closer, the poses stay as they are.
    """
    nothing = correction = PoseCorrection.none(np.unique(images.t_us))
    error_px: list[float] = []
    for gate_px in _GATES_PX:
        kept, points = _points(images, tracks, correction, gate_px)
        if len(kept) == 0:
            return nothing
        error_px.append(_median_error_px(images, kept, points, correction))
        for _ in range(_STEPS):
            correction, points = _step(images, kept, points, correction)
        error_px.append(_median_error_px(images, kept, points, correction))
    moved = np.abs(correction.twists).max(axis=0)
    logger.info(
        "rig poses refined by up to %.1f mrad and %.1f cm: median reprojection %.2f -> %.2f px",
        1e3 * moved[:3].max(), 1e2 * moved[3:].max(), error_px[0], error_px[-1],
    )  # fmt: skip
    return correction if error_px[-1] < error_px[0] else nothing


def _points(
    images: RigImages, tracks: FeatureTracks, correction: PoseCorrection, gate_px: float
) -> tuple[FeatureTracks, Float[np.ndarray, "t 3"]]:
    """The longest of the tracks that triangulate, which tie most images together, with their points."""
    found = triangulate(tracks, images.K, images.T_camera_world(correction), gate_px)
    length = np.bincount(tracks.track, minlength=len(tracks))[found.track]
    chosen = np.sort(np.argsort(-length, kind="stable")[:_MAX_TRACKS])
    wanted = np.zeros(len(tracks), bool)
    wanted[found.track[chosen]] = True
    return tracks.keep(wanted[tracks.track]), found.points_m[chosen]


def _median_error_px(images: RigImages, tracks: FeatureTracks, points: np.ndarray, correction: PoseCorrection) -> float:
    residual, _, _ = project_tracks(tracks, images.K, images.T_camera_world(correction), points)
    return float(np.median(np.linalg.norm(residual, axis=1)))


def _step(
    images: RigImages, tracks: FeatureTracks, points: np.ndarray, correction: PoseCorrection
) -> tuple[PoseCorrection, np.ndarray]:
    """One Gauss-Newton step on all twists and points."""
    residual, by_point, _ = project_tracks(tracks, images.K, images.T_camera_world(correction), points)
    by_twist = _by_twist(images, tracks, points, by_point, correction)
    root = np.sqrt(huber_weights(residual))[:, None]
    residual, by_point, by_twist = residual * root, by_point * root[..., None], by_twist * root[..., None]
    H_point = sum_by_track(tracks, np.einsum("mki,mkj->mij", by_point, by_point)) + 1e-6 * np.eye(3)
    whiten = np.linalg.inv(np.linalg.cholesky(H_point))
    g_point = np.einsum("pij,pj->pi", whiten, sum_by_track(tracks, np.einsum("mki,mk->mi", by_point, residual)))
    cross = np.einsum("mij,mkj,mkl->mil", whiten[tracks.track], by_point, by_twist)
    spread = _spread(images.t_us, correction.t_us)
    A = _blocks(cross, tracks.track, tracks.image, (3 * len(points), 6 * len(images.t_us))) @ spread
    H_image, g_image = _image_sums(tracks, by_twist, residual, len(images.t_us))
    prior = _prior(len(correction.t_us))
    twists = correction.twists.ravel()
    H = (spread.T @ H_image @ spread - A.T @ A + prior).toarray()
    g = spread.T @ g_image - A.T @ g_point.ravel() + prior @ twists
    change = -np.linalg.solve(H, g)
    moved = -np.einsum("pji,pj->pi", whiten, g_point + (A @ change).reshape(-1, 3))
    return PoseCorrection(correction.t_us, (twists + change).reshape(-1, 6)), points + moved


def _by_twist(
    images: RigImages, tracks: FeatureTracks, points: np.ndarray, by_point: np.ndarray, correction: PoseCorrection
) -> Float[np.ndarray, "m 2 6"]:
    """Derivative of each observation's pixel with respect to the twist of its image."""
    T_rig_world = invert_pose(images.T_world_rig @ correction.at(images.t_us))[tracks.image]
    in_rig = np.einsum("mij,mj->mi", T_rig_world[:, :3, :3], points[tracks.track]) + T_rig_world[:, :3, 3]
    by_rig_point = np.einsum("mki,mji->mkj", by_point, T_rig_world[:, :3, :3])
    # A small turn by w moves a point p by w x p.
    return np.concatenate([np.cross(in_rig[:, None], by_rig_point), by_rig_point], axis=2)


def _spread(t_us: np.ndarray, knots_us: np.ndarray) -> scipy.sparse.csr_matrix:
    """[6 V, 6 K]: twists of the images from those of the knots, which lie at the images' times."""
    shape = (len(t_us), len(knots_us))
    at = np.searchsorted(knots_us, t_us)
    one = scipy.sparse.csr_matrix((np.ones(len(t_us)), (np.arange(len(t_us)), at)), shape)
    return scipy.sparse.csr_matrix(scipy.sparse.kron(one, scipy.sparse.identity(6)))


def _image_sums(
    tracks: FeatureTracks, by_twist: np.ndarray, residual: np.ndarray, count: int
) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    """Block-diagonal normal matrix [6 V, 6 V] and gradient [6 V] of the images' twists."""
    H, g = np.zeros((count, 6, 6)), np.zeros((count, 6))
    np.add.at(H, tracks.image, np.einsum("mki,mkj->mij", by_twist, by_twist))
    np.add.at(g, tracks.image, np.einsum("mki,mk->mi", by_twist, residual))
    numbers = np.arange(count)
    return _blocks(H, numbers, numbers, (6 * count, 6 * count)), g.ravel()


def _blocks(values: np.ndarray, row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    """Sparse matrix of the dense blocks `values` [m, a, b] at block rows and columns."""
    _, a, b = values.shape
    rows, columns = np.broadcast_arrays(
        a * row[:, None, None] + np.arange(a)[:, None], b * column[:, None, None] + np.arange(b)
    )
    return scipy.sparse.csr_matrix((values.ravel(), (rows.ravel(), columns.ravel())), shape)


def _prior(count: int) -> scipy.sparse.csr_matrix:
    """Normal matrix [6 K, 6 K] of the trust in the recorded poses and in their steps."""
    size = np.repeat([_SIGMA_RAD, _SIGMA_M], 3)
    change = np.repeat([_STEP_SIGMA_RAD, _STEP_SIGMA_M], 3)
    difference = scipy.sparse.csr_matrix(np.diff(np.eye(count), axis=0))
    near_zero = scipy.sparse.kron(scipy.sparse.identity(count), np.diag(size**-2.0))
    alike = scipy.sparse.kron(difference.T @ difference, np.diag(change**-2.0))
    return scipy.sparse.csr_matrix(near_zero + alike)


def _transforms(twists: Float[np.ndarray, "k 6"]) -> Float[np.ndarray, "k 4 4"]:
    T = np.tile(np.eye(4), (len(twists), 1, 1))
    T[:, :3, :3] = Rotation.from_rotvec(twists[:, :3]).as_matrix()
    T[:, :3, 3] = twists[:, 3:]
    return T
