"""Ego history as continuous prompt tokens."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.linear import Linear
from vla.policy_input import HISTORY_STEPS

# Typical sizes of x (m), y (m), yaw (rad) and speed (m/s) over 1.6 s; they only bring the inputs near 1.
HISTORY_SCALE = (10.0, 1.0, 0.2, 10.0)

# Mask over the history that leaves its last speed.
_SPEED_NOW = (*((0.0,) * 4,) * (HISTORY_STEPS - 1), (0.0, 0.0, 0.0, 1.0))


class HistoryEncoder(nn.Module):
    """An MLP from the 16 history poses and speeds, or the last speed alone, to a few tokens of the backbone's width."""

    def __init__(
        self, hidden_size: int, tokens: int, norm_std: float, content: Literal["poses", "speed"] = "poses"
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.content = content
        width = min(hidden_size, 512)
        self.layers = nn.Sequential(Linear(HISTORY_STEPS * 4, width), nn.SiLU(), Linear(width, tokens * hidden_size))
        # Tokens enter beside embeddings of the backbone, so they start at the same size.
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        nn.init.constant_(self.norm.weight, norm_std)

    def forward(self, history: Float[Tensor, "b 16 4"]) -> Float[Tensor, "n hidden"]:
        """Tokens of all observations in order, n = B * tokens; history is (x, y, yaw, speed) in the rig frame now."""
        scaled = history / torch.tensor(HISTORY_SCALE, device=history.device)
        if self.content == "speed":
            scaled = scaled * torch.tensor(_SPEED_NOW, device=history.device)
        flat = scaled.flatten(1).to(self.norm.weight.dtype)
        return self.norm(self.layers(flat).view(-1, self.hidden_size))
