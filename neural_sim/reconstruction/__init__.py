"""From a clip to a scene: initial points, optimisation, held-out quality."""
