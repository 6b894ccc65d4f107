"""What a policy is made of."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vla.errors import PolicyError
from vla.policy import PLAN_STEPS

TINY_BACKBONE = "tiny"
REGRESSOR = "regressor"
IMAGE_MULTIPLE_PX = 32
MAY_BE_ZERO = ("reasoning_loss_weight", "reasoning_tokens", "route_tokens")


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that fixes the shape of a policy; stored in its checkpoint."""

    backbone: str = TINY_BACKBONE
    """`tiny` is built offline; `regressor` is a plain convolutional baseline without language; anything else is a
    local folder or hub name of a Qwen3-VL class model, for example `Qwen/Qwen3-VL-2B-Instruct`."""
    cameras: tuple[str, ...] = ("camera_front_wide_120fov",)
    """Logical camera names, in the order in which the prompt shows them."""
    num_frames: int = 2
    """Frames per camera, oldest first, the last one now."""
    frame_interval_us: int = 100_000
    """Time between the frames of a camera, us."""
    image_width_px: int = 192
    """Width of every image, px; a multiple of 32 (patch 16 times merge 2)."""
    image_height_px: int = 96
    """Height of every image, px; a multiple of 32 (patch 16 times merge 2)."""
    history_tokens: int = 4
    """Continuous tokens that carry the ego history into the prompt."""
    history: Literal["poses", "speed"] = "poses"
    """What of the ego history they carry: its 1.6 s of poses and speeds, or only the speed now. A policy cloned from
    few drives learns to continue its own past motion instead of looking; the speed alone leaves it nothing to copy."""
    route_tokens: int = 0
    """Continuous tokens that carry the 20 points of the route ahead into the prompt beside the instruction; 0 for none,
    otherwise observations and training examples must have a route."""
    default_navigation: str = "follow the road"
    """Instruction put into the prompt where an observation has none."""
    expert_hidden: int = 128
    """Width of the action expert; its layers, KV heads and head size are those of the backbone's text model."""
    expert_ffn: int = 256
    """Width of the action expert's feed-forward layers."""
    expert_heads: int = 4
    """Query heads of the action expert; a multiple of the backbone's KV heads."""
    waypoints_per_token: int = 8
    """Waypoints per action token; a divisor of 64. 8 suits the tiny policy, 1 is the layout of Alpamayo."""
    action_features: Literal["raw", "fourier"] = "raw"
    """How noisy actions enter the expert: as they are, or as 20 Fourier features each (the layout of Alpamayo)."""
    reasoning_loss_weight: float = 0.0
    """Weight of the reasoning text's cross-entropy beside the flow loss; 0 leaves reasoning text out of training."""
    reasoning_tokens: int = 0
    """Most tokens of reasoning text generated before the plans when sampling; 0 plans without text."""
    training_draws: int = 4
    """Noise and time draws per training example; they share one prompt encoding."""
    euler_steps: int = 5
    """Integration steps of the flow when sampling; 10 for full-size policies."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention backend of the backbone; the action expert always takes an explicit mask."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights; action statistics and integration stay float32 or better."""
    sample_memory_mb: int = 512
    """Memory that the samples in flight may take, MB; more samples are drawn in chunks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise PolicyError(f"cameras: found {list(self.cameras)}, expected one or more different names")
        self._check_positive()
        for name in ("image_width_px", "image_height_px"):
            if getattr(self, name) % IMAGE_MULTIPLE_PX:
                raise PolicyError(f"{name}: found {getattr(self, name)}, expected a multiple of {IMAGE_MULTIPLE_PX}")
        if PLAN_STEPS % self.waypoints_per_token:
            raise PolicyError(
                f"waypoints_per_token: found {self.waypoints_per_token}, expected a divisor of {PLAN_STEPS}"
            )
        self._check_choice("action_features", ("raw", "fourier"))
        self._check_choice("history", ("poses", "speed"))
        self._check_choice("attention", ("sdpa", "eager", "flash_attention_2"))
        self._check_choice("dtype", ("float32", "bfloat16"))

    def _check_positive(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in MAY_BE_ZERO:
                if not 0 <= value < float("inf"):
                    raise PolicyError(f"{field.name}: found {value!r}, expected 0 or more")
            elif field.type is int and (not isinstance(value, int) or value < 1):
                raise PolicyError(f"{field.name}: found {value!r}, expected a whole number of 1 or more")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise PolicyError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(choices)}")

    @property
    def images_per_observation(self) -> int:
        """Images in one observation: cameras times frames."""
        return len(self.cameras) * self.num_frames

    @property
    def reasons(self) -> bool:
        """Whether text is trained or generated, so that the language model is read to its end."""
        return self.reasoning_loss_weight > 0 or self.reasoning_tokens > 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; inverse of `from_json`."""
        return {**asdict(self), "cameras": list(self.cameras)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "PolicyConfig":
        """Read what `to_json` wrote. Raises `PolicyError` on an unknown field."""
        known = [field.name for field in fields(PolicyConfig)]
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise PolicyError(
                f"policy config: unknown fields {', '.join(unknown)}; expected {', '.join(sorted(known))}"
            )
        return PolicyConfig(**value)
