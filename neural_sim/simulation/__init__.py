"""Vehicle dynamics, ego-motion noise, traffic and the batched closed loop."""
