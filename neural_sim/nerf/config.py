"""Settings of a reconstruction as a NeRF."""

from dataclasses import dataclass

from neural_sim.errors import InputError


@dataclass(frozen=True)
class NerfConfig:
    """How a clip becomes a NeRF: nerfacto with networks and samples for two processors instead of a GPU."""

    image_width_px: int = 310
    """Width of the images that are trained on, px; heights keep each camera's aspect. Never enlarges."""
    iterations: int = 6000
    """Optimisation steps."""
    rays_per_step: int = 2048
    """Pixels that a step fits, drawn from all training images."""
    holdout_every: int = 8
    """Frames with index % holdout_every == holdout_every // 2 are never trained on, only measured; at least 2."""
    learning_rate: float = 0.01
    """Step size of Adam at the start."""
    final_learning_rate: float = 0.0005
    """Step size of Adam at the end; it falls exponentially."""
    distortion_weight: float = 0.002
    """Weight of the distortion loss of Mip-NeRF 360, which gathers the density along a ray."""

    hash_levels: int = 12
    """Levels of the hash grid."""
    log2_hash_size: int = 18
    """Base-2 logarithm of the rows in each level's table."""
    finest_cells: int = 4096
    """Cells of the finest level along an edge of the contracted world, half of them in the driven area."""
    hidden_width: int = 32
    """Width of the networks of density and colour."""
    appearance_size: int = 0
    """Length of the code that each training image gets for its exposure, 0 for none. Unseen views use their mean."""
    proposal_samples: tuple[int, int] = (64, 32)
    """Samples of a ray in the first and the second proposal network."""
    nerf_samples: int = 24
    """Samples of a ray in the field itself."""

    near_m: float = 0.5
    """Nothing is drawn nearer than this, m."""
    far_m: float = 10_000.0
    """Rays end here, m; the sky lies near it."""
    chunk_rays: int = 8192
    """Rays that are drawn at once; larger ones need more memory."""

    def __post_init__(self) -> None:
        for name in ("iterations", "rays_per_step", "hash_levels", "nerf_samples", "chunk_rays", "hidden_width"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("image_width_px", self.image_width_px >= 32, "at least 32 px")
        self._require("holdout_every", self.holdout_every >= 2, "at least 2")
        self._require("log2_hash_size", 4 <= self.log2_hash_size <= 24, "a number from 4 to 24")
        self._require("finest_cells", 32 <= self.finest_cells <= 2**20, "a number from 32 to 2^20")
        self._require("appearance_size", self.appearance_size >= 0, "zero or more")
        self._require("proposal_samples", min(self.proposal_samples) >= 1, "at least 1 each")
        self._require("distortion_weight", self.distortion_weight >= 0, "zero or more")
        self._require(
            "final_learning_rate",
            0 < self.final_learning_rate <= self.learning_rate,
            f"more than zero and at most the first, {self.learning_rate}",
        )
        self._require("near_m", 0 < self.near_m < self.far_m, f"more than zero and less than far_m, {self.far_m}")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"nerf: {name} is {getattr(self, name)!r}; expected {expected}")
