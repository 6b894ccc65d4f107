"""The route ahead as continuous prompt tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.linear import Linear
from vla.policy import ROUTE_POINTS

# Half of the 80 m that a route reaches ahead; it only brings the inputs near 1.
ROUTE_SCALE_M = 40.0


class RouteEncoder(nn.Module):
    """An MLP from the 20 points of the route to a few tokens of the backbone's width.

    Points after the route's end (NaN) enter as zeros with a mark, so that no route at all is an input like any other.
    """

    def __init__(self, hidden_size: int, tokens: int, norm_std: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        width = min(hidden_size, 512)
        self.layers = nn.Sequential(Linear(ROUTE_POINTS * 3, width), nn.SiLU(), Linear(width, tokens * hidden_size))
        # Tokens enter beside embeddings of the backbone, so they start at the same size.
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        nn.init.constant_(self.norm.weight, norm_std)

    def forward(self, route: Float[Tensor, "b 20 2"]) -> Float[Tensor, "n hidden"]:
        """Tokens of all observations in order, n = B * tokens; points (x, y) in the rig frame now, m."""
        known = torch.isfinite(route).all(dim=-1, keepdim=True)
        points = torch.where(known, route / ROUTE_SCALE_M, torch.zeros_like(route))
        flat = torch.cat([points, known.to(points.dtype)], dim=-1).flatten(1)
        return self.norm(self.layers(flat.to(self.norm.weight.dtype)).view(-1, self.hidden_size))
