"""Files named by a number, listed in the memory of their numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Int


class NumberedFiles(Sequence[Path]):
    """The paths `folder/<number><ending>`, made when asked for: those of a long drive would take a kilobyte each."""

    def __init__(self, folder: Path, numbers: Int[np.ndarray, "n"], ending: str) -> None:
        self.folder, self.numbers, self.ending = folder, numbers, ending

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "NumberedFiles": ...
    def __getitem__(self, index: int | slice) -> "Path | NumberedFiles":
        if isinstance(index, slice):
            return NumberedFiles(self.folder, self.numbers[index], self.ending)
        return self.folder / f"{self.numbers[index]}{self.ending}"
