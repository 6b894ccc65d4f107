from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from reconstruction_clip import make_clip

from neural_sim.clips.storage import write_clip
from neural_sim.errors import InputError
from neural_sim.reconstruction.config import ReconstructionConfig
from neural_sim.reconstruction.reconstruct import reconstruct
from neural_sim.scenes.storage import write_scene
from pipelines.cli import main
from pipelines.scene_video import render_scene

TINY = ReconstructionConfig(
    image_width_px=64, iterations=5, max_gaussians=2000, sky_size_px=8, track_corners=200, far_points=50
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A folder as `roadloop run` leaves it: clips/corridor and scenes/corridor.usdz."""
    folder = tmp_path_factory.mktemp("run")
    clip = make_clip(folder / "images", moving_box=True)
    write_clip(clip, folder / "clips" / "corridor")
    (folder / "scenes").mkdir()
    write_scene(reconstruct(clip, TINY, seed=0), folder / "scenes" / "corridor.usdz")
    return folder


def sizes(video: Path) -> list[tuple[int, int]]:
    with av.open(str(video)) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_video_and_sheet_show_recording_rendering_and_shifts(run_folder, tmp_path):
    written = render_scene(run_folder / "scenes" / "corridor.usdz", tmp_path / "out.mp4")
    assert [path.name for path in written] == ["out.png", "out.mp4"]
    # 24 frames of 10 Hz; two columns of two panels of 128x64 px and a caption of 18 px.
    assert sizes(tmp_path / "out.mp4") == [(256, 2 * 82)] * 24
    sheet = np.asarray(Image.open(tmp_path / "out.png"))
    rows = 8  # recorded, rendered, and six shifts
    assert sheet.shape[0] == rows * (24 + 150 + 18 + 4)


def test_without_the_clip_recorded_frames_are_left_out(run_folder, tmp_path):
    lonely = tmp_path / "elsewhere" / "corridor.usdz"
    lonely.parent.mkdir()
    lonely.write_bytes((run_folder / "scenes" / "corridor.usdz").read_bytes())
    render_scene(lonely, tmp_path / "out.mp4")
    assert sizes(tmp_path / "out.mp4")[0] == (256, 2 * 82)
    assert np.asarray(Image.open(tmp_path / "out.png")).shape[0] == 7 * 196
    render_scene(lonely, tmp_path / "again.mp4", clip=run_folder / "clips" / "corridor")
    assert np.asarray(Image.open(tmp_path / "again.png")).shape[0] == 8 * 196


def test_command_says_what_it_wrote(run_folder, tmp_path, capsys):
    scene = str(run_folder / "scenes" / "corridor.usdz")
    main(["inspect", scene, "--pictures", str(tmp_path), "--render", str(tmp_path / "drive.mp4")])
    assert f"rendered: {tmp_path / 'drive.mp4'}" in capsys.readouterr().out


def test_wrong_requests_are_named(run_folder, tmp_path, capsys):
    scene = run_folder / "scenes" / "corridor.usdz"
    with pytest.raises(InputError, match=r"expected a file that ends with \.mp4"):
        render_scene(scene, tmp_path / "out.gif")
    with pytest.raises(InputError, match="has no camera 'rear'; it has front"):
        render_scene(scene, tmp_path / "out.mp4", camera="rear")
    clip = make_clip(tmp_path / "images")
    frames = clip.cameras["front"]
    short = replace(clip, cameras={"front": replace(frames, t_us=frames.t_us[:9], paths=frames.paths[:9])})
    write_clip(short, tmp_path / "short")
    with pytest.raises(InputError, match=r"has 9 frames of it, but the scene corridor\.usdz was made from 24"):
        render_scene(scene, tmp_path / "out.mp4", clip=tmp_path / "short")
    clip_folder = str(run_folder / "clips" / "corridor")
    assert main(["inspect", clip_folder, "--pictures", str(tmp_path), "--render", str(tmp_path / "x.mp4")]) == 2
    assert "--render draws scenes" in capsys.readouterr().err
