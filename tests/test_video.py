"""Videos decode back; pictures show what they should."""

import av
import numpy as np
import pytest
from eval_records import make_record, straight
from synthetic_scene import make_scene, make_track

from eval import drawing
from eval.drawing import BirdsEyeContent, Caption, compose_frame, draw_birds_eye
from eval.video import render_rollout_video, write_video
from neural_sim.drawing.top_view import COLOR_ROAD
from neural_sim.errors import InputError


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, float(stream.average_rate), stream.codec_context.name


def test_video_decodes_back(tmp_path):
    frames = [np.full((40, 60, 3), (20 * i, 255 - 20 * i, 60), np.uint8) for i in range(12)]
    assert write_video(tmp_path / "v.mp4", iter(frames), 10.0) == 12
    decoded, rate, codec = decode(tmp_path / "v.mp4")
    assert (len(decoded), rate, codec) == (12, 10.0, "h264")
    for found, expected in zip(decoded, frames, strict=True):
        assert np.abs(found.astype(int) - expected).mean() < 6


def test_odd_sizes_are_padded(tmp_path):
    write_video(tmp_path / "v.mp4", [np.full((33, 45, 3), 128, np.uint8)] * 3, 29.97)
    decoded, rate, _ = decode(tmp_path / "v.mp4")
    assert decoded[0].shape == (34, 46, 3)
    assert rate == pytest.approx(29.97, abs=1e-3)


def test_header_comes_first_and_bytes_repeat(tmp_path):
    pattern = (np.add.outer(np.arange(96), np.arange(128))[..., None] * np.array([1, 2, 3])).astype(np.uint8)
    frames = [np.roll(pattern, 3 * i, axis=1) for i in range(40)]
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, frames, 10.0)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_no_frame_or_changing_size_leaves_no_file(tmp_path):
    with pytest.raises(InputError, match="needs at least one frame"):
        write_video(tmp_path / "v.mp4", [], 10.0)
    frames = [np.zeros((32, 32, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)]
    with pytest.raises(InputError, match=r"frame 1 has shape \(16, 32, 3\), the first one \(32, 32, 3\)"):
        write_video(tmp_path / "v.mp4", frames, 10.0)
    assert list(tmp_path.iterdir()) == []


def content(**changes):
    path = np.stack([np.linspace(-50, 50, 50), np.zeros(50)], axis=-1)
    values = {
        "ego_planar": np.zeros(3),
        "ego_size_m": (5.0, 2.0),
        "expert_xy": path + np.array([0, 3.0]),
        "driven_xy": path[:25],
    }
    return BirdsEyeContent(**values | changes)


def test_birds_eye_has_ego_in_place_heading_up():
    image = draw_birds_eye(content(), None, width_px=200, height_px=300, m_per_px=0.1)
    assert image.shape == (300, 200, 3)
    ego = (image == drawing.COLOR_EGO).all(axis=-1)
    rows, columns = np.nonzero(ego[190:240])
    assert rows.mean() + 190 == pytest.approx(216, abs=3)
    assert columns.mean() == pytest.approx(100, abs=2)
    expert_columns = np.nonzero((image == drawing.COLOR_EXPERT).all(axis=-1))[1]
    assert expert_columns.mean() == pytest.approx(100 - 30, abs=1.5)  # 3 m to the left


def test_birds_eye_does_not_change_when_the_world_turns():
    turn = 1.1
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    base = content()
    turned = content(
        ego_planar=np.array([0.0, 0.0, turn]),
        expert_xy=base.expert_xy @ rotation.T,
        driven_xy=base.driven_xy @ rotation.T,
    )
    difference = draw_birds_eye(base, None).astype(int) - draw_birds_eye(turned, None)
    assert np.abs(difference).mean() < 0.5


def test_birds_eye_shows_road_plan_actors_and_contact():
    scene = make_scene()
    plain = draw_birds_eye(content(), scene.road_map)
    assert (plain == COLOR_ROAD).all(axis=-1).mean() > 0.1
    actors = {"actor_planar": np.array([[12.0, 5.0, 0.3], [np.nan] * 3]), "actor_sizes_m": np.array([[4.5, 1.9]] * 2)}
    plan = np.stack([np.arange(0, 20.0), np.full(20, -5.0)], axis=-1)
    busy = draw_birds_eye(
        content(plan_xy=plan, candidates_xy=plan[None] + np.array([0, -2]), in_contact=True, **actors), scene.road_map
    )
    for color in (drawing.COLOR_PLAN, drawing.COLOR_ACTOR, drawing.COLOR_CONTACT, drawing.COLOR_CANDIDATE):
        assert (busy == color).all(axis=-1).any()
        assert not (plain == color).all(axis=-1).any()


def test_frame_puts_camera_left_and_view_right():
    camera = np.full((100, 300, 3), 200, np.uint8)
    view = np.full((360, 320, 3), 90, np.uint8)
    frame = compose_frame(camera, view, Caption("a title", (("speed", "8 m/s"),), ("OFF-ROAD",), ("warm-up",)))
    assert frame.shape == (360, 960, 3)
    assert (frame[:213, :640] == 200).all()
    assert (frame[:, 640:] == 90).all()
    below = frame[214:, :640]
    assert (below == drawing.COLOR_CONTACT).all(axis=-1).any()
    assert (below == drawing.COLOR_TEXT).all(axis=-1).any()
    assert compose_frame(None, view, Caption("x" * 300)).shape == (360, 680, 3)


@pytest.mark.parametrize("with_camera", [True, False])
def test_rollout_video_has_one_frame_a_step(tmp_path, with_camera):
    scene = make_scene(duration_s=3.0, tracks=[make_track("lead", (14.0, 0.0, 0.0), 4.0)])
    plans = np.full((20, 64, 3), np.nan, np.float32)
    plans[4:] = 0.0
    plans[4:, :, 0] = 0.8 * np.arange(1, 65)
    record = make_record(scene, straight(20, 8.0), warmup_steps=4, plans=plans)
    frames = np.zeros((20, 30, 50, 3), np.uint8) if with_camera else None
    path = tmp_path / "videos" / "r.mp4"
    assert render_rollout_video(record, scene, frames, path, policy="ego") == 20
    decoded, rate, _ = decode(path)
    assert (len(decoded), rate) == (20, 10.0)
    assert decoded[0].shape == (360, 960 if with_camera else 1000, 3)


def test_wrong_number_of_frames_is_refused(tmp_path):
    scene = make_scene(duration_s=3.0)
    record = make_record(scene, straight(20))
    with pytest.raises(InputError, match="19 camera frames for 20 steps"):
        render_rollout_video(record, scene, np.zeros((19, 8, 8, 3), np.uint8), tmp_path / "r.mp4")


def test_a_window_of_a_rollout_shows_its_candidates(tmp_path):
    scene = make_scene(duration_s=3.0)
    record = make_record(scene, straight(20, 8.0), warmup_steps=4)
    candidates = np.full((20, 2, 64, 3), np.nan)
    candidates[12] = 0.0
    candidates[12, :, :, 0] = 0.8 * np.arange(1, 65)
    candidates[12, :, :, 1] = np.array([[4.0], [-4.0]])
    window_us = (int(record.t_us[10]), int(record.t_us[14]))
    path = tmp_path / "clip.mp4"
    assert render_rollout_video(record, scene, None, path, candidates=candidates, window_us=window_us) == 5
    frames = [frame[:, 400:].astype(int) for frame in decode(path)[0]]
    greenish = [(frame[..., 1] - frame[..., 0] > 20).mean() for frame in frames]
    assert greenish[2] > 2 * max(greenish[0], greenish[4])
