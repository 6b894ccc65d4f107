"""The true world as a renderer: Embree ray casting of the town's meshes."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from neural_sim.cameras import require_pinhole
from neural_sim.errors import InputError
from neural_sim.rendering.renderer import RenderedImage, RenderRequest
from neural_sim.town.camera_rays import Rays, cast_rays
from neural_sim.town.lidar import LidarScanner
from neural_sim.town.mesh import Mesh, merge
from neural_sim.town.ray_casting import RayScene
from neural_sim.town.shading import Hits, Surfaces, mark_edges, resolve_hits, shade_hits, surfaces_of
from neural_sim.town.weather import Weather

DISPLAY_GAMMA = 2.2
# Nearer than this to the camera plane, an outline says nothing about where something appears.
NEAR_M = 0.5
# Pixels beyond an actor's outline: samples of edge pixels, and the bow of its path while a shutter is open.
MARGIN_PX = 2
# Farther than any point of a car or its shadow lies from the centre of its box.
ACTOR_REACH_M = 6.0
# Further rays of an edge pixel, as offsets from its centre: turned so that upright and level edges meet each apart.
EDGE_SAMPLES_PX = ((0.34, 0.12), (-0.28, 0.23), (-0.06, -0.35))


class TownRenderer:
    """Draws the town as it truly is, from any camera pose and with the cars at any place."""

    name = "town"

    def __init__(self, static: Mesh, actors: Mapping[str, Mesh], weather: Weather, sensor_noise: float) -> None:
        """Prepare the world.

        Args:
            static: what never moves, world frame.
            actors: mesh of each road user by track id, in the frame of its box.
            weather: light, textures and exposure.
            sensor_noise: standard deviation of the pixel noise, share of full scale.
        """
        self._actors, self._weather, self._sensor_noise = dict(actors), weather, sensor_noise
        self._light = weather.light
        self._boxes = {name: _box_corners(mesh) for name, mesh in self._actors.items()}
        self._static_surfaces, self._static_rays = surfaces_of(static), RayScene(static, lasting=True)
        self._lidar = LidarScanner(static, self._static_surfaces, self._static_rays)

    def scan(
        self, T_world_rig: Float[np.ndarray, "4 4"], T_world_actors: Mapping[str, Float[np.ndarray, "4 4"]], t_us: int
    ) -> Float[np.ndarray, "n 4"]:
        """One lidar sweep, float32 [N, 4] (x, y, z, intensity) in the rig frame, m; see `LidarScanner`."""
        movers = [self._actors[name].transformed(pose) for name, pose in T_world_actors.items()]
        rng = np.random.default_rng([self._light.texture_seed, zlib.crc32(b"lidar"), t_us])
        return self._lidar.scan(T_world_rig, movers, rng)

    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        """Draw every request. Raises `InputError` for a road user that is not of this town."""
        return [self._render_one(request) for request in requests]

    def _render_one(self, request: RenderRequest) -> RenderedImage:
        require_pinhole(request.camera, "the town renderer")
        height, width = request.camera.height_px, request.camera.width_px
        movers = self._place_actors(request)
        world = (surfaces_of(movers), RayScene(movers))
        rows, columns = np.divmod(np.arange(height * width), width)
        rays = cast_rays(request, columns + 0.5, rows + 0.5)
        near_mover = self._mover_pixels(request)
        hits, lit = self._trace(rays, *world, near_mover)
        colour, opacity, depth = self._shade(rays, hits, lit, world[0]), (hits.owner > 0).astype(float), hits.depth_m
        edge = np.flatnonzero(mark_edges(hits, lit, self._static_surfaces, world[0], height, width))
        if len(edge):
            offsets = np.asarray(EDGE_SAMPLES_PX)
            x, y = (
                (axis[edge, None] + 0.5 + offset).ravel()
                for axis, offset in zip((columns, rows), offsets.T, strict=True)
            )
            rays = cast_rays(request, x, y)
            hits, lit = self._trace(rays, *world, np.repeat(near_mover[edge], len(offsets)))
            shape = (len(edge), len(offsets))
            colour[edge] = _with_centre(colour[edge], self._shade(rays, hits, lit, world[0]).reshape(*shape, 3))
            opacity[edge] = _with_centre(opacity[edge], (hits.owner > 0).reshape(shape))
            depth[edge] = _edge_depth(depth[edge], hits.depth_m.reshape(shape))
        rgb = self._develop(colour.reshape(height, width, 3), request)
        depth, opacity = (image.reshape(height, width).astype(np.float32) for image in (depth, opacity))
        return RenderedImage(rgb, depth, opacity)

    def _place_actors(self, request: RenderRequest) -> Mesh:
        unknown = sorted(set(request.T_world_actors) - set(self._actors))
        if unknown:
            raise InputError(f"town renderer: road users {unknown} are not of this town; it has {sorted(self._actors)}")
        placed = request.T_world_actors.items()
        return merge([self._actors[name].transformed(pose) for name, pose in placed if _may_be_seen(pose, request)])

    def _mover_pixels(self, request: RenderRequest) -> Bool[np.ndarray, "n"]:
        """Pixels, row by row, that may show a road user."""
        mask = np.zeros((request.camera.height_px, request.camera.width_px), bool)
        for name, pose in request.T_world_actors.items():
            _mark_actor(mask, self._boxes[name] @ pose[:3, :3].T + pose[:3, 3], request)
        return mask.ravel()

    def _trace(
        self, rays: Rays, mover_surfaces: Surfaces, mover_rays: RayScene, near_mover: Bool[np.ndarray, "n"]
    ) -> tuple[Hits, np.ndarray]:
        """First hits, and for each whether the sun shines on it (bool [N]); other rays than `near_mover` miss them."""
        origins, directions = rays.origins.astype(np.float32), rays.directions.astype(np.float32)
        static_hit = self._static_rays.first_hit(origins, directions)
        mover_hit = np.full(len(origins), -1, np.int32)
        ask = np.flatnonzero(near_mover)
        mover_hit[ask] = mover_rays.first_hit(origins[ask], directions[ask])
        hits = resolve_hits(
            rays.origins, rays.directions, static_hit, mover_hit, self._static_surfaces, mover_surfaces, self._light
        )
        lit, to_sun = hits.faces_sun.copy(), np.array(self._light.sun, np.float32)
        for rays_at in (self._static_rays, mover_rays):
            ask = np.flatnonzero(lit)
            lit[ask] = ~rays_at.is_occluded(hits.shadow_origins_m[ask], to_sun)
        return hits, lit

    def _shade(self, rays: Rays, hits: Hits, lit: np.ndarray, mover_surfaces: Surfaces) -> np.ndarray:
        return shade_hits(*rays, hits, lit, self._static_surfaces, mover_surfaces, self._light)

    def _develop(self, linear: Float[np.ndarray, "h w 3"], request: RenderRequest) -> Float[np.ndarray, "h w 3"]:
        """Exposure, display curve and sensor noise, which depends on seed, camera and time alone."""
        exposed = linear * self._weather.gain_at(request.t_us)
        rgb = np.power(np.clip(exposed, 0.0, 1.0, dtype=np.float32), np.float32(1 / DISPLAY_GAMMA))
        if self._sensor_noise > 0:
            key = [self._light.texture_seed, zlib.crc32(request.camera.name.encode()), abs(int(request.t_us))]
            noise = np.random.default_rng(key).standard_normal(rgb.shape, np.float32)
            rgb = rgb + np.float32(self._sensor_noise) * noise
        return np.clip(rgb, 0.0, 1.0).astype(np.float32)


def _with_centre(centre: Float[np.ndarray, "n *c"], samples: np.ndarray) -> Float[np.ndarray, "n *c"]:
    """Mean of a value at the pixel centre and at the further samples [n, k, *c] of the pixel."""
    return (centre + samples.sum(axis=1)) / (1 + samples.shape[1])


def _edge_depth(centre_m: Float[np.ndarray, "n"], samples_m: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
    """Depth of the pixel centre; where that is sky, the mean depth of the samples that hit something."""
    count = (samples_m > 0).sum(axis=1)
    return np.where(centre_m > 0, centre_m, samples_m.sum(axis=1) / np.maximum(count, 1))


def _mark_actor(mask: Bool[np.ndarray, "h w"], corners_m: Float[np.ndarray, "8 3"], request: RenderRequest) -> None:
    """Mark the pixels that may show what lies between these world points at any time of the exposure."""
    camera = request.camera
    ends = (request.T_world_camera_open, request.T_world_camera_close)
    local = np.concatenate([(corners_m - pose[:3, 3]) @ pose[:3, :3] for pose in ends])
    if local[:, 2].max() <= 0.0:
        return
    if local[:, 2].min() < NEAR_M:
        mask[:] = True
        return
    x = camera.fx_px * local[:, 0] / local[:, 2] + camera.cx_px
    y = camera.fy_px * local[:, 1] / local[:, 2] + camera.cy_px
    rows, columns = (
        slice(max(int(low) - MARGIN_PX, 0), max(int(high) + MARGIN_PX + 1, 0))
        for low, high in ((y.min(), y.max()), (x.min(), x.max()))
    )
    mask[rows, columns] = True


def _box_corners(mesh: Mesh) -> Float[np.ndarray, "8 3"]:
    """Corners of the box around a mesh, in its own frame, m."""
    points = mesh.triangles_m.reshape(-1, 3)
    ends = np.stack([points.min(axis=0), points.max(axis=0)])
    return np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])


def _may_be_seen(T_world_actor: Float[np.ndarray, "4 4"], request: RenderRequest) -> bool:
    """False when an actor and its shadow lie wholly behind the camera or beside its view."""
    camera = request.camera
    for T_world_camera in (request.T_world_camera_open, request.T_world_camera_close):
        x, _, z = T_world_camera[:3, :3].T @ (T_world_actor[:3, 3] - T_world_camera[:3, 3])
        left, right = -camera.cx_px / camera.fx_px, (camera.width_px - camera.cx_px) / camera.fx_px
        beside = max((left * z - x) / np.hypot(1.0, left), (x - right * z) / np.hypot(1.0, right))
        if z > -ACTOR_REACH_M and beside < ACTOR_REACH_M:
            return True
    return False
