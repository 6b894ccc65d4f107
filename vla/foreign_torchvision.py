"""Makes a torchvision that was built for CUDA importable beside a CPU build of torch."""

import re
from importlib.util import find_spec
from pathlib import Path

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# The declarations last as long as these objects.
_LIBRARIES: list[object] = []


def declare_missing_operators() -> None:
    """Declare the operators that torchvision refers to while it is imported, where it cannot bring them itself.

    transformers imports torchvision when it is installed, as nerfstudio has it. The wheels of the package index are for
    CUDA; beside a CPU build of torch their compiled part does not load, and importing them raises. Declared operators
    let the import pass; calling one still fails, and nothing here does. Does nothing without such a torchvision.
    """
    spec = find_spec("torchvision")
    if _LIBRARIES or spec is None or spec.origin is None or not _is_for_cuda(Path(spec.origin).with_name("version.py")):
        return
    import torch

    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _LIBRARIES.append(library)


def _is_for_cuda(version_file: Path) -> bool:
    """Whether the `version.py` of a torchvision names a build for CUDA, such as 0.28.0+cu130."""
    return version_file.is_file() and re.search(r"__version__ = '[^']*\+cu", version_file.read_text()) is not None
