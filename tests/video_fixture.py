"""Small test videos, written with PyAV."""

import av
import numpy as np


def write_video(path, frames, size, codec="libx264", rate=20, container=None):
    """Frame i shows its tens in the brightness of the left half and its ones in that of the right half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "10", "x265-params": "log-level=none:pools=1:frame-threads=1"}
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 + 20 * (i % 10), np.uint8)
            pixels[:, : size[0] // 2] = 20 + 20 * (i // 10)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def frame_number(pixels):
    """The number that `write_video` put into a frame."""
    quarter = pixels.shape[1] // 4
    tens, ones = (round((float(half.mean()) - 20) / 20) for half in (pixels[:, :quarter], pixels[:, -quarter:]))
    return 10 * tens + ones
