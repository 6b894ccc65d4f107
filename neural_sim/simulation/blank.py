"""A renderer without pictures."""

from collections.abc import Sequence

import numpy as np

from neural_sim.rendering.renderer import RenderedImage, RenderRequest


class BlankRenderer:
    """Answers every request with a uniform gray image: runs the simulator where nobody looks at the pictures."""

    name = "blank"

    def __init__(self, gray: float = 0.5) -> None:
        self._gray = gray
        self._images: dict[tuple[int, int], RenderedImage] = {}

    def render(self, requests: Sequence[RenderRequest]) -> list[RenderedImage]:
        """One read-only gray image per request, shared by all requests of a size; nothing is opaque."""
        return [self._image(request.camera.height_px, request.camera.width_px) for request in requests]

    def _image(self, height_px: int, width_px: int) -> RenderedImage:
        size = (height_px, width_px)
        if size not in self._images:
            empty = np.broadcast_to(np.float32(0.0), size)
            rgb = np.broadcast_to(np.float32(self._gray), (*size, 3))
            self._images[size] = RenderedImage(rgb, empty, empty)
        return self._images[size]
