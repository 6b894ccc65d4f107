import dataclasses

import numpy as np
import pytest
import torch
from vla_examples import SMALL, rows_of, seeded, training_batch

from vla.checkpoint import from_pretrained, save_pretrained
from vla.config import REGRESSOR
from vla.errors import PolicyError
from vla.model import build_policy
from vla.route import RouteEncoder
from vla.training_modes import TrainingModeConfig, apply_training_mode, part_of

CONFIG = dataclasses.replace(SMALL, route_tokens=2)


def bend(curvature, known=20):
    """A route [20, 2] that bends, known for its first points."""
    arc_m = 4.0 * np.arange(20)
    route = np.stack([arc_m, 0.5 * curvature * arc_m**2], axis=-1).astype(np.float32)
    route[known:] = np.nan
    return route


def with_routes(config, *routes, seed=0):
    return dataclasses.replace(training_batch(config, len(routes), seed=seed), route=np.stack(routes))


@pytest.fixture(scope="module", params=["tiny", REGRESSOR])
def policy(request):
    return build_policy(dataclasses.replace(CONFIG, backbone=request.param), seed=0).eval()


def test_plans_follow_the_route_and_its_end(policy):
    routes = (bend(0.01), bend(-0.01), bend(0.01, known=5), bend(0.01, known=0))
    plans = [policy.sample(with_routes(CONFIG, route), 1, 1.0, seeded(0)).poses for route in routes]
    for i, first in enumerate(plans):
        assert first.isfinite().all()
        assert all(float((first - other).abs().max()) > 1e-3 for other in plans[:i])


def test_rows_have_their_own_route(policy):
    batch = with_routes(CONFIG, bend(0.01), bend(-0.01, known=7))
    together = policy.sample(batch, 1, 1.0, seeded(0, 1)).poses
    for row in range(2):
        one = dataclasses.replace(rows_of(batch, [row]), route=batch.route[row : row + 1])
        torch.testing.assert_close(policy.sample(one, 1, 1.0, seeded(row)).poses[0], together[row], atol=1e-4, rtol=0)


def test_the_route_is_saved_with_its_encoder(policy, tmp_path):
    save_pretrained(policy, tmp_path / "policy")
    again = from_pretrained(tmp_path / "policy")
    assert again.config.route_tokens == 2
    batch = with_routes(CONFIG, bend(0.02))
    assert torch.equal(again.sample(batch, 2, 1.0, seeded(0)).poses, policy.sample(batch, 2, 1.0, seeded(0)).poses)


def test_the_encoder_trains_with_the_history():
    policy = build_policy(CONFIG, seed=0)
    apply_training_mode(policy, TrainingModeConfig("freeze_vision"))
    policy.loss(with_routes(CONFIG, bend(0.01), bend(0.0)), seeded(0)[0])["loss"].backward()
    trained = [name for name, p in policy.named_parameters() if name.startswith("route_encoder.")]
    assert len(trained) == 5
    assert {part_of(policy, name) for name in trained} == {"history"}
    assert all(bool(policy.get_parameter(name).grad.abs().max() > 0) for name in trained)


def test_a_policy_learns_what_only_the_route_tells():
    config = dataclasses.replace(CONFIG, backbone=REGRESSOR)
    policy = build_policy(config, seed=0)
    batch = with_routes(config, bend(0.03), bend(-0.03))
    same = {camera: np.repeat(images[:1], 2, axis=0) for camera, images in batch.images.items()}
    turns = np.stack([batch.target[0], batch.target[0] * np.array([1, -1, -1], np.float32)])
    history = np.repeat(batch.ego_history[:1], 2, axis=0)
    batch = dataclasses.replace(batch, images=same, target=turns, ego_history=history)
    optimiser = torch.optim.AdamW(policy.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        policy.loss(batch, seeded(0)[0])["loss"].backward()
        optimiser.step()
    ends = policy.eval().sample(batch, 1, 1.0, seeded(0, 1)).poses[:, 0, -1, 1]
    assert float(ends[0] * ends[1]) < 0
    assert float((ends[0] - ends[1]).abs()) > 0.5 * float(np.abs(turns[0, -1, 1] - turns[1, -1, 1]))


def test_without_route_tokens_the_route_is_not_read():
    policy = build_policy(SMALL, seed=0).eval()
    assert policy.route_encoder is None
    plans = [
        policy.sample(dataclasses.replace(training_batch(SMALL, 1), route=route), 1, 1.0, seeded(0)).poses
        for route in (None, bend(0.01)[None])
    ]
    assert torch.equal(*plans)


def test_the_end_of_the_route_differs_from_the_place_of_the_car():
    encoder = RouteEncoder(16, 1, 1.0)
    ends, stays = torch.full((1, 20, 2), float("nan")), torch.zeros(1, 20, 2)
    assert not torch.equal(encoder(ends), encoder(stays))


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (None, "route: found none, but this policy reads one"),
        (bend(0.01)[None, :10], r"route: found shape \(1, 10, 2\), expected \(1, 20, 2\)"),
        (np.where(np.arange(20)[None, :, None] == 3, np.nan, bend(0.01)), "route: row 0 has gaps"),
        (np.where(np.arange(20)[None, :, None] == 3, np.inf, bend(0.01)), "row 0 has gaps or infinite points"),
    ],
)
def test_bad_routes_are_named(policy, route, message):
    with pytest.raises(PolicyError, match=message):
        policy.sample(dataclasses.replace(training_batch(CONFIG, 1), route=route), 1, 1.0, seeded(0))
