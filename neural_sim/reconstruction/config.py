"""Settings of a reconstruction."""

from dataclasses import dataclass

from neural_sim.errors import InputError


@dataclass(frozen=True)
class ReconstructionConfig:
    """How a clip becomes a scene. Work is counted in iterations, not in seconds, so that results repeat."""

    image_width_px: int = 620
    """Width of the images that are trained on, px; heights keep each camera's aspect. Never enlarges."""
    iterations: int = 3000
    """Optimisation steps; each fits one image."""
    time_budget_s: float = 0.0
    """Stop after this time, preparation included, s, and let all schedules end with it; 0 for no limit. Results then
    depend on the machine; `quality.iterations` in the scene says how far it came."""
    memory_budget_gb: float = 0.0
    """Refuse to start when the predicted peak memory is higher, GB; 0 for no limit."""
    max_gaussians: int = 100_000
    """Hard cap on the number of Gaussians, all sets together."""
    sh_degree: int = 1
    """Degree of the spherical harmonics of the colour, 0 to 3. 0 looks the same from everywhere."""
    sky_size_px: int = 64
    """Edge of each sky cubemap face, px."""
    holdout_every: int = 8
    """Frames with index % holdout_every == holdout_every // 2 are never trained on, only measured; at least 2."""
    half_resolution_share: float = 0.15
    """Share of the iterations, from the start, that fit images of half the size; 0 to 1."""

    refine_poses: bool = True
    """Whether the recorded rig poses are corrected, smoothly in time, until features of the training images agree."""
    track_width_px: int = 1280
    """Largest image width for feature tracking, px."""
    track_corners: int = 3500
    """Features followed at a time in each camera."""
    dense_points_per_frame: int = 1000
    """Extra initial points per training frame at depths interpolated between triangulated ones; 0 turns it off."""
    far_points: int = 8000
    """Initial points on the far shell, where the images have texture and no nearer point."""
    far_distance_m: tuple[float, float] = (80.0, 200.0)
    """Nearest and farthest distance of the far shell from the cameras, m."""

    ground_half_width_m: float = 8.0
    """The road surface reaches this far to each side of the driven path, m."""
    road_spacing_m: float = 0.35
    """Grid spacing of the initial road Gaussians, m."""
    corridor_half_width_m: float = 4.0
    """Half width of the drivable corridor that is derived when the clip has no map, m."""

    ssim_weight: float = 0.4
    """Weight of 1 - SSIM in the loss; the rest is the absolute difference."""
    means_learning_rate_m: float = 0.04
    """Step size of a Gaussian's centre at 10 m from the path, m; grows with distance, decays to a tenth."""
    fit_exposure: bool = True
    """Whether each training image gets its own gain and offset, so that exposure changes do not become geometry."""
    refine_actors: bool = True
    """Whether the poses of moving road users are corrected too, smoothly in time."""
    opacity_penalty: float = 0.002
    """Weight of the mean opacity off the road in the loss, as in 3DGS-MCMC; lets useless Gaussians die."""
    scale_penalty: float = 0.01
    """Weight of the mean standard deviation over distance in the loss."""
    ground_opacity_weight: float = 0.1
    """Weight of the missing opacity on rays that point below the horizon."""
    sky_opacity_weight: float = 0.0
    """Weight of the mean opacity where an image surely shows sky; 0 does not look for sky at all."""

    densify_every: int = 50
    """Iterations between relocations of dead Gaussians and growth."""
    densify_until_share: float = 0.8
    """Share of the iterations after which the number of Gaussians stays; 0 to 1."""
    growth: float = 0.12
    """New Gaussians per densification, as a share of the present number."""

    checkpoint_every: int = 500
    """Iterations between resumable checkpoints, when there is a work folder."""
    backend: str = "auto"
    """Rasterizer backend, see `neural_sim.rendering.rasterize`."""

    def __post_init__(self) -> None:
        for name in ("image_width_px", "track_width_px"):
            self._require(name, getattr(self, name) >= 32, "at least 32 px")
        for name in (
            "iterations",
            "max_gaussians",
            "sky_size_px",
            "track_corners",
            "densify_every",
            "checkpoint_every",
        ):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "dense_points_per_frame",
            "far_points",
            "opacity_penalty",
            "scale_penalty",
            "sky_opacity_weight",
            "growth",
            "time_budget_s",
            "memory_budget_gb",
        ):
            self._require(name, getattr(self, name) >= 0, "zero or more")
        for name in ("half_resolution_share", "densify_until_share", "ssim_weight"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a share from 0 to 1")
        for name in ("ground_half_width_m", "road_spacing_m", "corridor_half_width_m", "means_learning_rate_m"):
            self._require(name, getattr(self, name) > 0, "a positive number")
        self._require("sh_degree", self.sh_degree in (0, 1, 2, 3), "0, 1, 2 or 3")
        self._require("holdout_every", self.holdout_every >= 2, "at least 2")
        near, far = self.far_distance_m
        self._require("far_distance_m", 0 < near < far, "0 < nearest < farthest")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"reconstruction: {name} is {getattr(self, name)!r}; expected {expected}")
