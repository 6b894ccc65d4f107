import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from vla_examples import NOW_US, SMALL, arc_plan, rows_of, seeded, training_batch

from vla.baselines import ConstantVelocityPolicy
from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.images import ImageSettings, preprocess_images
from vla.model import build_policy
from vla.open_loop import open_loop_errors
from vla.prompt import frame_time_text, prompt_text, tokenizer_corpus
from vla.tokenizer import DRIVING_TOKENS, build_tiny_tokenizer


@pytest.fixture(scope="module")
def policy():
    return build_policy(SMALL, seed=0).eval()


def test_images_become_the_patches_of_the_reference_processor():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96, 3), dtype=np.uint8)
    settings = ImageSettings()
    patches, grid = preprocess_images(torch.from_numpy(images), settings)
    reference = Qwen2VLImageProcessorPil(
        patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"shortest_edge": 1, "longest_edge": 10**7}
    )
    expected = reference([Image.fromarray(image) for image in images.reshape(-1, 64, 96, 3)], return_tensors="pt")
    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-6, rtol=0)
    assert torch.equal(grid, expected["image_grid_thw"])
    assert patches.shape[0] == 6 * settings.tokens_per_image(96, 64) * settings.merge**2


def test_training_and_closed_loop_see_the_same_bits(policy, monkeypatch):
    seen = []

    def record(images, settings):
        seen.append(preprocess_images(images, settings))
        return seen[-1]

    monkeypatch.setattr("vla.model.preprocess_images", record)
    batch = training_batch(SMALL, 3)
    policy.loss(batch, seeded(0)[0])
    # The simulator hands over one rollout at a time, in whatever memory layout its renderer left.
    for row in range(3):
        one = rows_of(batch, [row])
        strided = {camera: np.asfortranarray(images) for camera, images in one.images.items()}
        policy.sample(dataclasses.replace(one, images=strided), 1, 1.0, seeded(0))
    trained, closed_loop = seen[0], seen[1:]
    assert torch.equal(trained[0], torch.cat([patches for patches, _ in closed_loop]))
    assert torch.equal(trained[1], torch.cat([grid for _, grid in closed_loop]))


def test_a_policy_told_only_the_speed_cannot_copy_its_past():
    kinds = dataclasses.replace(SMALL, history="speed"), dataclasses.replace(SMALL, history="poses")
    blind, seeing = (build_policy(kind, seed=0).eval() for kind in kinds)
    batch = training_batch(SMALL, 2)
    turned = batch.ego_history.copy()
    turned[:, :-1, :3] *= 1.2
    turned[:, :-1, 3] += 1.0
    other = dataclasses.replace(batch, ego_history=turned)
    faster = dataclasses.replace(batch, ego_history=batch.ego_history + np.float32([0.0, 0.0, 0.0, 1.0]))

    def plans(policy, given):
        return policy.sample(given, 1, 1.0, seeded(0, 1)).poses

    assert torch.equal(plans(blind, batch), plans(blind, other))
    assert not torch.equal(plans(blind, batch), plans(blind, faster))
    assert not torch.equal(plans(seeing, batch), plans(seeing, other))


def test_images_are_never_resized():
    with pytest.raises(PolicyError, match=r"found 100x64 px, expected both sides to be multiples of 32 px"):
        preprocess_images(torch.zeros(1, 64, 100, 3, dtype=torch.uint8), ImageSettings())


def test_the_prompt_names_cameras_times_and_navigation():
    config = dataclasses.replace(SMALL, history_tokens=2)
    text = prompt_text(config, 2, ((-100_000, 0), (-104_000, 0)), "turn left")
    images = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    assert f"front wide 120fov camera:\n-0.1 s {images}0.0 s {images}\n" in text
    assert f"front tele 30fov camera:\n-0.1 s {images}0.0 s {images}\n" in text
    assert "<|traj_history_start|><|traj_history|><|traj_history|><|traj_history_end|>\n" in text
    assert "navigation: turn left\n" in text
    assert text.endswith("<|traj_future_start|>")
    assert "navigation: follow the road\n" in prompt_text(config, 2, ((0, 0), (0, 0)), "")


@pytest.mark.parametrize(("offset_us", "text"), [(0, "0.0 s"), (-99_000, "-0.1 s"), (-1_549_000, "-1.5 s")])
def test_frame_times_are_rounded_to_tenths(offset_us, text):
    assert frame_time_text(offset_us) == text


def test_the_tiny_tokenizer_is_short_lossless_and_deterministic():
    corpus = tokenizer_corpus(SMALL)
    tokenizer = build_tiny_tokenizer(corpus)
    text = prompt_text(SMALL, 2, ((-100_000, 0), (-100_000, 0)), "at the Zoo ö turn left")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    usual = tokenizer.encode(prompt_text(SMALL, 2, ((-100_000, 0),) * 2, ""), add_special_tokens=False)
    assert len(usual) <= 60
    assert build_tiny_tokenizer(corpus).get_vocab() == tokenizer.get_vocab()
    assert set(DRIVING_TOKENS) <= set(tokenizer.get_vocab())


def test_a_policy_is_the_same_for_the_same_seed(policy):
    again, other = build_policy(SMALL, seed=0), build_policy(SMALL, seed=1)
    state, state_again, state_other = policy.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    assert not torch.equal(state["expert.action_out_proj.weight"], state_other["expert.action_out_proj.weight"])
    before = torch.get_rng_state()
    build_policy(SMALL, seed=2)
    assert torch.equal(before, torch.get_rng_state())


def test_loss_is_finite_seeded_and_weighted(policy):
    batch = training_batch(SMALL, 3)
    losses = policy.loss(batch, seeded(0)[0])
    assert losses["loss"].isfinite()
    assert losses["projection_error_m"] < 0.02
    assert torch.equal(policy(batch, seeded(0)[0])["loss"], losses["loss"])
    assert not torch.equal(policy.loss(batch, seeded(1)[0])["loss"], losses["loss"])
    only_second = dataclasses.replace(batch, weight=np.array([0, 1, 0], np.float32))
    changed = dataclasses.replace(only_second, target=batch.target + np.array([1, 0, 1], np.float32)[:, None, None])
    torch.testing.assert_close(
        policy.loss(only_second, seeded(0)[0])["loss"], policy.loss(changed, seeded(0)[0])["loss"]
    )


def test_action_statistics_follow_the_training_plans():
    policy = build_policy(SMALL, seed=0)
    batch = training_batch(SMALL, 5)
    target, v0 = torch.from_numpy(batch.target), torch.from_numpy(batch.ego_history[:, -1, 3])
    statistics = policy.fit_action_statistics(target, v0)
    assert policy.statistics is statistics
    curvature = batch.target[:, -1, 2] / (0.1 * 64 * batch.ego_history[:, -1, 3])
    assert statistics.curvature_mean == pytest.approx(curvature.mean(), abs=2e-4)
    assert statistics.curvature_std == pytest.approx(curvature.std(), abs=2e-3)
    policy.to(torch.bfloat16)
    assert policy.statistics.mean.dtype == torch.float32


def test_bfloat16_runs_end_to_end():
    policy = build_policy(dataclasses.replace(SMALL, dtype="bfloat16"), seed=0)
    batch = training_batch(SMALL, 2)
    loss = policy.loss(batch, seeded(0)[0])["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.dtype == torch.bfloat16 for p in policy.expert.parameters() if p.grad is not None)
    assert policy.sample(batch, 3, 1.0, seeded(0, 1)).poses.dtype == torch.float32


def test_fourier_actions_one_waypoint_a_token():
    config = dataclasses.replace(SMALL, action_features="fourier", waypoints_per_token=1)
    policy = build_policy(config, seed=0)
    assert policy.expert.action_in_proj[0].weight.shape == (512, 60)
    assert policy.expert.shape.tokens == 64
    assert policy.sample(training_batch(config, 1), 2, 1.0, seeded(0)).poses.shape == (1, 2, 64, 3)


def fit(policy, batches, learning_rate):
    """One step on each batch."""
    optimiser = torch.optim.AdamW(policy.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=len(batches))
    generator = seeded(0)[0]
    for batch in batches:
        optimiser.zero_grad()
        policy.loss(batch, generator)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def test_the_tiny_policy_overfits_what_only_the_images_tell():
    config = dataclasses.replace(SMALL, cameras=SMALL.cameras[:1], num_frames=1, training_draws=4, euler_steps=5)
    batch = training_batch(config, 8, seed=1, speed_mps=8.0)
    policy = build_policy(config, seed=0)
    policy.fit_action_statistics(torch.from_numpy(batch.target), torch.full((8,), 8.0))
    before = policy.open_loop_metrics(batch, seeded(*range(8)), num_samples=4)
    fit(policy, [batch] * 120, learning_rate=3e-3)
    after = policy.open_loop_metrics(batch, seeded(*range(8)), num_samples=4)
    assert after["ade_2s_m"] < 0.12
    assert after["ade_6.4s_m"] < 0.1 * before["ade_6.4s_m"]
    floor = open_loop_errors(
        ConstantVelocityPolicy().sample(batch, 1, 1.0, seeded(*range(8))).poses, torch.from_numpy(batch.target)
    )
    assert after["ade_6.4s_m"] < 0.1 * floor["ade_6.4s_m"]


def pillars(config, size, seed):
    """Views of a bright pillar on noise, and plans that steer towards it: only its column tells the curvature."""
    random = np.random.default_rng(seed)
    batch, camera = training_batch(config, size, seed, speed_mps=8.0), config.cameras[0]
    images = random.integers(60, 180, batch.images[camera].shape, dtype=np.uint8)
    columns = random.integers(0, config.image_width_px - 8, size)
    for image, column in zip(images, columns, strict=True):
        image[:, :, column : column + 8] = 230
    curvature = 0.04 - 0.08 * (columns + 0.5) / (config.image_width_px - 8)
    return dataclasses.replace(batch, images={camera: images}, target=arc_plan(np.full(size, 8.0), curvature))


def test_a_new_policy_soon_learns_where_something_is_in_images_it_never_saw():
    config = dataclasses.replace(
        SMALL, cameras=SMALL.cameras[:1], num_frames=1, training_draws=4, euler_steps=5, image_width_px=128
    )
    policy, unseen = build_policy(config, seed=0), pillars(config, 32, seed=0)
    policy.fit_action_statistics(torch.from_numpy(pillars(config, 256, seed=1).target), torch.full((256,), 8.0))
    fit(policy, [pillars(config, 16, seed=2 + step) for step in range(80)], learning_rate=2e-3)
    planned_y_m = policy.sample(unseen, 1, 0.0, seeded(*range(32))).poses[:, 0, 29, 1].numpy()
    target_y_m = unseen.target[:, 29, 1]
    blind_error_m = np.abs(target_y_m - target_y_m.mean()).mean()
    assert np.abs(planned_y_m - target_y_m).mean() < 0.5 * blind_error_m


def test_constant_velocity_keeps_speed_and_heading():
    samples = ConstantVelocityPolicy().sample(training_batch(SMALL, 2, speed_mps=5.0), 3, 0.8, seeded(0, 1))
    assert samples.poses.shape == (2, 3, 64, 3)
    assert samples.poses[1, 2, 19].tolist() == pytest.approx([10.0, 0.0, 0.0])
    assert samples.score is None


def _changed(**fields):
    return lambda batch: dataclasses.replace(batch, **{name: change(batch) for name, change in fields.items()})


def _image(change):
    return lambda batch: {**batch.images, "camera_front_tele_30fov": change(batch.images["camera_front_tele_30fov"])}


def _times(change):
    return lambda batch: {camera: change(times) for camera, times in batch.image_times_us.items()}


def _jumping_history(batch):
    history = batch.ego_history.copy()
    history[1, :4, 0] -= 50.0
    return history


def _history_with_a_gap(batch):
    history = batch.ego_history.copy()
    history[1, 3, 0] = np.nan
    return history


BAD_OBSERVATIONS = {
    "camera": (
        _changed(images=lambda b: {"rear": b.images[SMALL.cameras[0]]}),
        r"cameras: found rear, expected camera_front_t",
    ),
    "size": (
        _changed(images=_image(lambda i: i[:, :, :, :32])),
        r"tele_30fov: found images of 32x32 px, expected 64x32 px",
    ),
    "frames": (_changed(images=_image(lambda i: i[:, :1])), r"tele_30fov: found 1 frames, expected 2"),
    "dtype": (_changed(images=_image(lambda i: i.astype(np.float32))), r"found float32 images"),
    "order": (_changed(image_times_us=_times(lambda t: t[:, ::-1])), r"must be oldest first"),
    "future": (_changed(image_times_us=_times(lambda t: t + 1)), rf"lies after the observation at {NOW_US} us"),
    "times": (_changed(image_times_us=_times(lambda t: t[:, :1])), r"frame times of shape \(2, 1\), expected \(2, 2\)"),
    "short history": (
        _changed(ego_history=lambda b: b.ego_history[:, 1:]),
        r"found shape \(2, 15, 4\), expected \(2, 16, 4\)",
    ),
    "missing first frames": (
        _changed(image_times_us=_times(lambda t: np.repeat(t[:, -1:], 2, axis=1))),
        r"frame times \[1000000, 1000000\] us of row 0 repeat; 2 different frames 100000 us apart are expected: start",
    ),
    "dropped frames": (
        _changed(image_times_us=_times(lambda t: t - np.array([600_000, 0]))),
        r"frame times \[300000, 1000000\] us of row 0 have a gap above 400000 us",
    ),
    "jump": (
        _changed(ego_history=_jumping_history),
        r"ego_history: row 1 moves 5\d\.\d m within 0.1 s at step 3; the log has a gap there",
    ),
    "another frame": (
        _changed(ego_history=lambda b: b.ego_history + np.float32(30.0)),
        r"ego_history: row 0 ends 42.4 m from the origin; expected poses in the rig frame now",
    ),
    "gap": (_changed(ego_history=_history_with_a_gap), r"ego_history: not finite at index \(1, 3, 0\)"),
    "navigation": (_changed(navigation=lambda b: ("left",)), r"found 1 instructions for 2 observations"),
}


@pytest.mark.parametrize("name", BAD_OBSERVATIONS)
def test_bad_observations_are_named(policy, name):
    change, message = BAD_OBSERVATIONS[name]
    with pytest.raises(PolicyError, match=message):
        policy.sample(change(training_batch(SMALL, 2)), 1, 1.0, seeded(0, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed(target=lambda b: b.target[:, :10]), r"target: found shape \(2, 10, 3\), expected \(2, 64, 3\)"),
        (_changed(target=lambda b: b.target * np.nan), r"target: not finite at index \(0, 0, 0\)"),
        (_changed(weight=lambda b: -b.weight), r"expected 2 finite values >= 0"),
        (_changed(weight=lambda b: 0 * b.weight), r"not all 0"),
    ],
)
def test_bad_training_batches_are_named(policy, change, message):
    with pytest.raises(PolicyError, match=message):
        policy.loss(change(training_batch(SMALL, 2)), seeded(0)[0])


def test_bad_sampling_arguments_are_named(policy):
    batch = training_batch(SMALL, 2)
    with pytest.raises(PolicyError, match="found 1 for 2 rollouts"):
        policy.sample(batch, 1, 1.0, seeded(0))
    with pytest.raises(PolicyError, match="num_samples: found 0"):
        policy.sample(batch, 0, 1.0, seeded(0, 1))
    with pytest.raises(PolicyError, match="temperature: found -1"):
        policy.sample(batch, 1, -1.0, seeded(0, 1))


def test_a_prompt_beyond_the_context_is_refused(policy):
    batch = dataclasses.replace(training_batch(SMALL, 1), navigation=("turn " * 5000,))
    with pytest.raises(PolicyError, match="longer than the backbone's context of 4096"):
        policy.encode(batch)


def test_plans_that_are_not_finite_are_refused():
    policy = build_policy(SMALL, seed=0)
    torch.nn.init.constant_(policy.expert.action_out_proj.bias, float("nan"))
    with pytest.raises(PolicyError, match="sample 0 of rollout 0 is not finite"):
        policy.sample(training_batch(SMALL, 1), 2, 1.0, seeded(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cameras": ()}, "cameras: found"),
        ({"cameras": ("a", "a")}, "different names"),
        ({"image_width_px": 100}, "image_width_px: found 100, expected a multiple of 32"),
        ({"waypoints_per_token": 7}, "waypoints_per_token: found 7, expected a divisor of 64"),
        ({"num_frames": 0}, "num_frames: found 0"),
        ({"attention": "fast"}, "attention: found 'fast', expected one of sdpa, eager"),
    ],
)
def test_bad_configurations_are_named(fields, message):
    with pytest.raises(PolicyError, match=message):
        PolicyConfig(**fields)


def test_configurations_survive_json():
    assert PolicyConfig.from_json(SMALL.to_json()) == SMALL
    with pytest.raises(PolicyError, match="unknown fields colour"):
        PolicyConfig.from_json({"colour": 1})


def test_an_expert_that_does_not_fit_the_backbone_is_refused():
    with pytest.raises(PolicyError, match="expert_heads: found 3, expected a multiple of the backbone's 2"):
        build_policy(dataclasses.replace(SMALL, expert_heads=3))
