import dataclasses
import math

import pytest
import torch
from vla_examples import SMALL, rows_of, seeded, training_batch

from vla.action_expert import attend_shared, attend_single, fourier_features
from vla.flow_matching import draw_noise, draw_times, integrate, interpolate
from vla.model import build_policy
from vla.prompt import PromptBatch

NAVIGATION = ["", "turn left in 50 m, then keep right at the fork"]


@pytest.fixture(scope="module")
def policy():
    policy = build_policy(SMALL, seed=0).eval()
    # The fresh expert's small outputs would hide differences.
    with torch.no_grad():
        policy.expert.action_out_proj.weight.mul_(5.0)
    return policy


def velocity(policy, noisy, cache):
    time = torch.full(noisy.shape[:2], 0.3)
    return policy.expert(noisy, time, policy._prepare(cache))


@torch.no_grad()
def test_the_last_action_reaches_the_first_output(policy):
    cache = policy.encode(training_batch(SMALL, 1))
    for samples in (1, 3):
        noisy = torch.randn(1, samples, 64, 2, generator=seeded(0)[0])
        perturbed = noisy.clone()
        perturbed[:, :, -1] += 1.0
        difference = (velocity(policy, perturbed, cache) - velocity(policy, noisy, cache)).abs()
        assert difference[:, :, 0].min() > 1e-4


@torch.no_grad()
def test_samples_do_not_see_each_other(policy):
    cache = policy.encode(training_batch(SMALL, 1))
    noisy = torch.randn(1, 3, 64, 2, generator=seeded(0)[0])
    perturbed = noisy.clone()
    perturbed[:, 1] += 1.0
    difference = (velocity(policy, perturbed, cache) - velocity(policy, noisy, cache)).abs().amax(dim=(0, 2, 3))
    assert difference[1] > 1e-2
    assert difference[[0, 2]].max() < 1e-6


@torch.no_grad()
def test_left_padding_changes_nothing(policy):
    batch = training_batch(SMALL, 2, navigation=NAVIGATION)
    together = policy.encode(batch)
    lengths = together.mask.sum(1)
    assert lengths[0] < lengths[1]
    assert not together.mask[0, 0]
    noisy = torch.randn(2, 3, 64, 2, generator=seeded(0)[0])
    for row in range(2):
        alone = policy.encode(rows_of(batch, [row]))
        assert torch.equal(alone.next_position, together.next_position[row : row + 1])
        for found, expected in zip(together.keys + together.values, alone.keys + alone.values, strict=True):
            torch.testing.assert_close(found[row : row + 1, :, -lengths[row] :], expected, atol=1e-5, rtol=0)
        expected = velocity(policy, noisy[row : row + 1], alone)
        found = velocity(policy, noisy, together)[row : row + 1]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        single = velocity(policy, noisy[:, :1], together)[row : row + 1]
        torch.testing.assert_close(single, expected[:, :1], atol=1e-5, rtol=0)


def test_padding_is_masked_in_training_too(policy):
    batch = training_batch(SMALL, 2, navigation=NAVIGATION)
    first_only = dataclasses.replace(batch, weight=batch.weight * [1, 0])
    shorter = dataclasses.replace(first_only, navigation=("", ""))
    losses = [policy.loss(case, seeded(0)[0])["loss"] for case in (first_only, shorter)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)


def test_rotary_positions_of_padded_rows():
    policy = build_policy(dataclasses.replace(SMALL, image_height_px=64), seed=0)
    batch = training_batch(policy.config, 2, navigation=NAVIGATION)
    rows = policy._prompts.rows(batch)
    prompt = policy._prompts.batch(rows)
    grid = torch.tensor([[1, 4, 4]]).expand(8, 3)
    positions, following = policy.backbone.rotary_positions(rows, prompt, grid)
    expected, _ = policy.backbone.model.model.get_rope_index(
        prompt.ids, prompt.is_image.int(), image_grid_thw=grid, attention_mask=prompt.mask.int()
    )
    assert torch.equal(positions * prompt.mask, expected * prompt.mask)
    assert torch.equal(following, expected.amax(dim=(0, 2)) + 1)
    # An image takes fewer positions than tokens, so counting the cache would be wrong for both rows.
    assert (following < prompt.mask.sum(1)).all()


@torch.no_grad()
def test_the_cache_is_that_of_the_whole_model(policy):
    model = policy.backbone.model
    batch = training_batch(SMALL, 2, navigation=NAVIGATION)
    rows = policy._prompts.rows(batch)
    prompt = policy._prompts.batch(rows)
    patches, grid = torch.randn(64, 1536, generator=seeded(0)[0]), torch.tensor([[1, 2, 4]]).expand(8, 3)
    history = model.get_input_embeddings()(prompt.ids[prompt.is_history])
    found = policy.backbone.encode(prompt, rows, patches, grid, history)
    expected = model(
        input_ids=prompt.ids,
        attention_mask=prompt.mask.int(),
        pixel_values=patches,
        image_grid_thw=grid,
        mm_token_type_ids=prompt.is_image.int(),
        use_cache=True,
    ).past_key_values
    for layer, key, value in zip(expected.layers, found.keys, found.values, strict=True):
        where = prompt.mask[:, None, :, None]
        torch.testing.assert_close(key * where, layer.keys * where, atol=1e-5, rtol=0)
        torch.testing.assert_close(value * where, layer.values * where, atol=1e-5, rtol=0)


def naive_attention(query, key, value, prompt_key, prompt_value, mask):
    """One sample, one query, one head at a time, with its own copy of the prompt; queries carry the scale."""
    out = torch.zeros_like(query)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:-1])).tolist():
        b, g, k, t, r = index
        keys = torch.cat([prompt_key[b, g], key[b, g, k]])
        values = torch.cat([prompt_value[b, g], value[b, g, k]])
        scores = keys @ query[b, g, k, t, r]
        scores[: prompt_key.shape[2]] += mask[b, 0, 0]
        out[b, g, k, t, r] = torch.softmax(scores, dim=0) @ values
    return out


@pytest.mark.parametrize("samples", [1, 3])
def test_attention_equals_the_obvious_one(samples):
    random = seeded(0)[0]
    b, g, r, t, d, length = 2, 2, 3, 4, 8, 5
    query, key, value, prompt_key, prompt_value = (
        torch.randn(shape, generator=random)
        for shape in ((b, g, samples, t, r, d), *[(b, g, samples, t, d)] * 2, *[(b, g, length, d)] * 2)
    )
    mask = torch.zeros(b, 1, 1, length)
    mask[0, ..., :2] = -math.inf
    arguments = (query, key, value, prompt_key, prompt_value, mask)
    expected = naive_attention(*arguments)
    torch.testing.assert_close(attend_shared(*arguments), expected)
    if samples == 1:
        torch.testing.assert_close(attend_single(*arguments), expected)


def test_samples_do_not_depend_on_chunks_batch_or_count(policy):
    batch = training_batch(SMALL, 2, navigation=NAVIGATION)
    whole = policy.sample(batch, 7, 0.8, seeded(3, 4)).poses
    chunked = build_policy(dataclasses.replace(SMALL, sample_memory_mb=1), seed=0).eval()
    chunked.load_state_dict(policy.state_dict())
    assert chunked._samples_per_chunk(2, 60) < 7
    torch.testing.assert_close(chunked.sample(batch, 7, 0.8, seeded(3, 4)).poses, whole, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(policy.sample(batch, 2, 0.8, seeded(3, 4)).poses, whole[:, :2], atol=2e-4, rtol=1e-5)
    alone = policy.sample(rows_of(batch, [1]), 7, 0.8, seeded(4)).poses
    torch.testing.assert_close(alone, whole[1:], atol=2e-4, rtol=1e-5)
    assert torch.equal(policy.sample(batch, 7, 0.8, seeded(3, 4)).poses, whole)


def test_samples_do_not_depend_on_blocks_of_rollouts(policy, monkeypatch):
    batch, seeds = training_batch(SMALL, 5), (1, 2, 3, 4, 5)
    monkeypatch.setattr("vla.model.CPU_BLOCK_TOKENS", 10**9)
    whole = policy.sample(batch, 3, 0.8, seeded(*seeds)).poses
    tokens = policy.expert.shape.tokens
    for rollouts in (1, 2):
        monkeypatch.setattr("vla.model.CPU_BLOCK_TOKENS", rollouts * 3 * tokens)
        torch.testing.assert_close(policy.sample(batch, 3, 0.8, seeded(*seeds)).poses, whole, atol=2e-4, rtol=1e-5)


def test_noise_is_one_draw_per_rollout_scaled_by_temperature():
    noise = draw_noise(seeded(5, 6), 4, 0.5)
    assert torch.equal(draw_noise(seeded(6), 3, 0.5)[0], noise[1, :3])
    assert torch.equal(draw_noise(seeded(5, 6), 4, 1.0) * 0.5, noise)
    assert draw_noise(seeded(5), 2, 0.0).abs().max() == 0


def test_temperature_zero_makes_all_samples_equal(policy):
    poses = policy.sample(training_batch(SMALL, 1), 3, 0.0, seeded(0)).poses
    torch.testing.assert_close(poses[:, 1:], poses[:, :1].expand(-1, 2, -1, -1))
    assert policy.sample(training_batch(SMALL, 1), 3, 1.0, seeded(0)).poses.std(dim=1).max() > 1e-3


def test_training_times_follow_the_published_distribution():
    times = draw_times((20_000,), seeded(0)[0])
    assert times.min() >= 0
    assert times.max() <= 0.999
    # t = 0.999 (1 - u), E[u] = 1.5 / 2.5 and P(u < x) = x^1.5 for u ~ Beta(1.5, 1)
    assert times.mean().item() == pytest.approx(0.999 * 0.4, abs=0.01)
    assert (times > 0.999 * 0.75).float().mean().item() == pytest.approx(0.25**1.5, abs=0.01)


def test_the_flow_runs_from_noise_to_data():
    data, noise = torch.randn(2, 2, 3, 64, 2, generator=seeded(0)[0])
    start, direction = interpolate(data, noise, torch.zeros(2, 3))
    assert torch.equal(start, noise)
    torch.testing.assert_close(interpolate(data, noise, torch.ones(2, 3))[0], data)
    torch.testing.assert_close(integrate(lambda x, t: direction, noise, 4), data, atol=1e-5, rtol=0)


def test_fourier_features_by_hand():
    features = fourier_features(torch.tensor([0.25]))[0]
    assert features.shape == (20,)
    assert features[0].item() == pytest.approx(math.sqrt(2) * math.sin(2 * math.pi * 0.25), abs=1e-6)
    assert features[19].item() == pytest.approx(math.sqrt(2) * math.cos(2 * math.pi * 100 * 0.25), abs=1e-3)


def test_prompts_are_padded_on_the_left(policy):
    prompt = policy._prompts.batch([(5, 6), (7, 8, 9)])
    assert isinstance(prompt, PromptBatch)
    assert prompt.mask.tolist() == [[False, True, True], [True, True, True]]
    assert prompt.ids[0, 1:].tolist() == [5, 6]
