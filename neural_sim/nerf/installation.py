"""Whether nerfstudio is there."""

from importlib.util import find_spec

from neural_sim.errors import InputError

# What its nerfacto imports; `make install` installs no more of it.
MODULES = ("nerfstudio", "nerfacc", "viser", "msgspec", "imageio", "rich", "websockets")


def require_nerfstudio() -> None:
    """Raise `InputError` naming what is missing of nerfstudio and the libraries that its nerfacto imports."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"a NeRF needs nerfstudio, and {', '.join(missing)} cannot be found; install the extra `nerf` of roadloop "
            "(docs/evaluation.md says how)"
        )
