from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from neural_sim.cameras import Camera
from neural_sim.frames import pose_from_planar
from neural_sim.gaussians import Gaussians
from neural_sim.reconstruction import adam
from neural_sim.reconstruction.actor_motion import ActorKnots, SweptSpace
from neural_sim.reconstruction.adam import RowAdam
from neural_sim.reconstruction.densification import constrain, dead_gaussians, densify
from neural_sim.reconstruction.ground import GroundSurface, ground_from_path
from neural_sim.reconstruction.model import BACKGROUND, FIRST_ACTOR, ROAD, SceneModel
from neural_sim.reconstruction.placement import placed_actors, rigid_from_twist
from neural_sim.reconstruction.views import View
from neural_sim.rendering.rasterize import Actors
from neural_sim.rendering.renderer import RenderRequest
from neural_sim.road_users import Track
from neural_sim.scenes.recorded_views import drive_request
from neural_sim.trajectory import Trajectory

NOTHING_SWEPT = SweptSpace([])
TIMES_US = 100_000 * np.arange(30)


@pytest.fixture
def surface() -> GroundSurface:
    planar = np.stack([np.arange(30.0), np.zeros(30), np.zeros(30)], axis=-1)
    return ground_from_path(Trajectory(TIMES_US, pose_from_planar(planar)), half_width_m=6.0)


def random_gaussians(count: int, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(count, 3, generator=generator) * torch.tensor([28.0, 4.0, 1.0]) + torch.tensor([0.0, 1.5, 0.0])
    means[:, 2] += 2.2  # above the car that recorded
    quaternions = torch.randn(count, 4, generator=generator)
    return Gaussians(
        means, quaternions, torch.full((count, 3), -2.0), torch.full((count,), 1.0), torch.zeros(count, 4, 3)
    )


def make_model(owners: list[int]) -> SceneModel:
    return SceneModel(random_gaussians(len(owners)), torch.tensor(owners), torch.full((6, 4, 4, 3), 0.5), 2)


def lay_on_road(model: SceneModel) -> None:
    with torch.no_grad():
        model.tensors["means_m"][model.owner == ROAD, 2] = 0.0


@pytest.mark.parametrize("update", [adam._update_cpu, adam._update_torch])
def test_adam_is_torchs_adam_where_rows_are_active(update: Callable, monkeypatch):
    monkeypatch.setattr(adam, "_update_cpu", update)
    ours = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    still = ours.detach()[3].clone()
    mine, reference = RowAdam({"x": ours}), torch.optim.Adam([theirs], lr=0.01, eps=1e-15)
    active = torch.tensor([True, True, True, False, True])
    for step in range(5):
        ours.grad = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(step + 1))
        theirs.grad = ours.grad.clone()
        mine.step({"x": ours}, active, {"x": torch.tensor([[0.01]])})
        reference.step()
    assert torch.allclose(ours[active], theirs[active], atol=1e-6)
    assert torch.equal(ours[3], still)
    assert mine.steps.tolist() == [5, 5, 5, 0, 5]


def request_at(t_us: int, tracks: list[Track], shutter_us: int = 0) -> RenderRequest:
    camera = Camera("front", 8, 4, 8.0, 8.0, 4.0, 2.0, np.eye(4), shutter_us)
    return drive_request(Trajectory(np.array([0]), np.eye(4)[None]), tracks, camera, t_us)


def placed(model: SceneModel, tracks: list[Track], request: RenderRequest, knots: ActorKnots | None = None) -> Actors:
    actors = placed_actors(model, tracks, request, knots)
    assert actors is not None
    return actors


def test_actors_are_placed_and_the_absent_are_hidden():
    model = make_model([BACKGROUND, FIRST_ACTOR, FIRST_ACTOR + 1, ROAD])
    cars = [passing_car(), replace(passing_car(5.0, 6.0), track_id="late")]
    actors = placed(model, cars, request_at(1_000_000, cars))
    assert actors.owner.tolist() == [0, 1, 2, 0]
    assert actors.T_world_actor_close is None
    np.testing.assert_allclose(actors.T_world_actor[0, 0], cars[0].trajectory.poses_at(np.array([1_000_000]))[0])
    assert actors.T_world_actor[0, 1].isnan().all()
    assert placed_actors(model, [], request_at(0, []), None) is None


def test_actors_move_while_a_rolling_shutter_is_open():
    model, car = make_model([FIRST_ACTOR]), passing_car()
    knots = ActorKnots([car], views_at([500_000, 1_500_000]))
    with torch.no_grad():
        model.actor_offsets = torch.tensor([[0.0] * 6, [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]], requires_grad=True)
    actors = placed(model, [car], request_at(1_000_000, [car], shutter_us=100_000), knots)
    opened, closed = actors.T_world_actor[0, 0, :3, 3], actors.T_world_actor_close[0, 0, :3, 3]  # pyright: ignore
    # It drives 5 m/s along x, and its correction grows by 1 m/s along y.
    assert opened.tolist() == pytest.approx([8.75, 3.45, 0.75])
    assert closed.tolist() == pytest.approx([9.25, 3.55, 0.75])


def test_a_hidden_actor_leaves_the_gradient_of_the_others_finite():
    model = SceneModel(random_gaussians(2), torch.tensor([2, 3]), torch.zeros(6, 4, 4, 3), 1, knot_count=3)
    cars = [passing_car(), replace(passing_car(0.0, 0.3), track_id="early")]
    knots = ActorKnots(cars, views_at([200_000, 1_000_000, 1_500_000]))
    actors = placed(model, cars, request_at(1_000_000, cars), knots)
    actors.T_world_actor[0, 0].sum().backward()
    assert model.actor_offsets.grad is not None
    assert model.actor_offsets.grad.isfinite().all()
    assert (model.actor_offsets.grad.abs().sum(dim=1) > 0).tolist() == [True, False, False]


def test_owners_are_grouped_for_the_rasterizer():
    model = make_model([FIRST_ACTOR + 1, ROAD, FIRST_ACTOR, BACKGROUND, FIRST_ACTOR])
    means = model.tensors["means_m"].detach().clone()
    model.group_owners()
    assert model.owner.tolist() == [ROAD, BACKGROUND, FIRST_ACTOR, FIRST_ACTOR, FIRST_ACTOR + 1]
    assert torch.equal(model.tensors["means_m"], means[[1, 3, 2, 4, 0]])
    same = model.tensors["means_m"]
    model.group_owners()
    assert model.tensors["means_m"] is same


def test_growth_stops_at_the_cap_and_keeps_owners(surface):
    model = make_model([BACKGROUND] * 40 + [ROAD] * 20 + [FIRST_ACTOR] * 10)
    lay_on_road(model)
    model.score = torch.rand(70, generator=torch.Generator().manual_seed(1))
    densify(model, surface, NOTHING_SWEPT, max_gaussians=80, growth=0.5, generator=torch.Generator().manual_seed(0))
    assert len(model) == 80
    assert all(len(tensor) == 80 for tensor in model.tensors.values())
    assert len(model.adam["gaussians"].steps) == 80
    densify(model, surface, NOTHING_SWEPT, max_gaussians=80, growth=0.5, generator=torch.Generator().manual_seed(1))
    assert len(model) == 80
    assert (model.owner[:70] == torch.tensor([0] * 40 + [1] * 20 + [2] * 10)).all()


def test_growth_goes_where_the_images_pull(surface):
    model = make_model([BACKGROUND] * 50)
    model.score[7] = 100.0
    densify(model, surface, NOTHING_SWEPT, max_gaussians=100, growth=0.02, generator=torch.Generator().manual_seed(0))
    assert len(model) == 51
    middle = 0.5 * (model.tensors["means_m"][7] + model.tensors["means_m"][50])
    assert torch.allclose(middle, random_gaussians(50).means_m[7], atol=1e-5)
    assert model.score.abs().sum() == 0


def test_dead_gaussians_move_within_their_kind(surface):
    model = make_model([BACKGROUND] * 20 + [ROAD] * 20)
    lay_on_road(model)
    with torch.no_grad():
        model.tensors["opacity_logits"][[0, 25]] = -9.0
        model.tensors["means_m"][30] = torch.tensor([10.0, 9.0, 0.0])  # a road Gaussian in the garden
        model.tensors["means_m"][1] = torch.tensor([10.0, 0.2, 1.0])  # a floater where the car drove
        model.tensors["means_m"][2] = float("nan")
    assert torch.nonzero(dead_gaussians(model, surface, NOTHING_SWEPT))[:, 0].tolist() == [0, 1, 2, 25, 30]
    densify(model, surface, NOTHING_SWEPT, max_gaussians=40, growth=0.1, generator=torch.Generator().manual_seed(0))
    assert len(model) == 40
    assert not dead_gaussians(model, surface, NOTHING_SWEPT).any()
    assert model.owner.tolist() == [BACKGROUND] * 20 + [ROAD] * 20
    assert (model.tensors["means_m"][:20, 2] > 1.5).all()


def test_constraints(surface):
    track = Track("car", "vehicle", (4.0, 2.0, 1.5), Trajectory(TIMES_US, np.tile(np.eye(4), (30, 1, 1))))
    model = make_model([BACKGROUND, ROAD, FIRST_ACTOR])
    with torch.no_grad():
        model.tensors["log_scales"].copy_(torch.tensor([[3.0, -9.0, -2.0]] * 3))
        model.tensors["means_m"].copy_(torch.tensor([[5.0, 4.0, 9.0], [5.0, 2.0, 3.0], [9.0, -9.0, 0.1]]))
    constrain(model, surface, (track,))
    scales = torch.exp(model.tensors["log_scales"].detach())
    means = model.tensors["means_m"].detach()
    assert scales[0].max() == pytest.approx(0.15 * 10.0, rel=1e-4)
    assert scales[0].max() / scales[0].min() <= 10.001
    assert scales[1, 2] == pytest.approx(0.01)
    assert scales[2].max() <= 0.25 * 1.5 + 1e-6
    assert means[0].tolist() == [5.0, 4.0, 9.0]
    assert means[1, 2] == pytest.approx(0.1, abs=1e-5)
    assert means[2].tolist() == pytest.approx([2.4, -1.2, 0.1], abs=1e-5)


def passing_car(from_s: float = 0.5, to_s: float = 2.0) -> Track:
    t_us = np.arange(round(from_s * 1e6), round(to_s * 1e6) + 1, 100_000)
    planar = np.stack([4.0 + t_us * 5e-6, np.full(len(t_us), 3.0), np.zeros(len(t_us))], axis=-1)
    return Track("car", "vehicle", (4.0, 2.0, 1.5), Trajectory(t_us, pose_from_planar(planar, 0.75)))


def views_at(t_us: list[int]) -> list[View]:
    camera = Camera("front", 8, 4, 8.0, 8.0, 4.0, 2.0, np.eye(4))
    return [View(camera, i, t, np.eye(4), np.zeros((4, 8, 3), np.uint8), False) for i, t in enumerate(t_us)]


def test_twists_are_those_of_the_refined_tracks():
    offset = np.array([0.01, -0.02, 0.03, 0.2, -0.1, 0.05])
    T = rigid_from_twist(torch.from_numpy(offset[None])).numpy()[0]
    np.testing.assert_allclose(T[:3, :3], Rotation.from_rotvec(offset[:3]).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(T[:, 3], [0.2, -0.1, 0.05, 1.0])


def test_actor_knots_lie_where_the_track_is_seen_and_interpolate():
    knots = ActorKnots([passing_car(), passing_car(5.0, 6.0)], views_at([0, 500_000, 1_000_000, 2_000_000, 3_000_000]))
    assert [each.tolist() for each in knots.t_us] == [[500_000, 1_000_000, 2_000_000], []]
    offsets = torch.zeros(len(knots), 6)
    offsets[:, 3] = torch.tensor([1.0, 2.0, 4.0])
    at = [float(knots.at(offsets, t)[0, 3]) for t in (0, 500_000, 750_000, 1_500_000, 2_000_000, 9_000_000)]
    assert at == pytest.approx([1.0, 1.0, 1.5, 3.0, 4.0, 4.0])
    assert knots.at(offsets, 0)[1].abs().sum() == 0


def test_actor_penalty_spares_steady_corrections():
    knots = ActorKnots([passing_car()], views_at([500_000, 1_000_000, 1_500_000, 2_000_000]))
    ramp = torch.zeros(4, 6)
    ramp[:, 3] = torch.tensor([0.0, 0.1, 0.2, 0.3])
    jump = ramp.clone()
    jump[:, 3] = torch.tensor([0.0, 0.3, 0.0, 0.3])
    small = float((ramp / 0.2).square().mean())
    assert float(knots.penalty(ramp)) < 1.5 * small
    assert float(knots.penalty(jump)) > 3 * float(knots.penalty(ramp))


def test_refined_track_carries_its_offsets():
    track = passing_car()
    knots = ActorKnots([track], views_at([500_000, 2_000_000]))
    offsets = np.zeros((2, 6))
    offsets[:, 4] = (0.0, 0.3)
    refined = knots.refined(track, 0, offsets)
    shift = refined.trajectory.planar - track.trajectory.planar
    np.testing.assert_allclose(shift[:, 1], 0.3 * (track.trajectory.t_us - 500_000) / 1.5e6, atol=1e-9)


def test_nothing_static_stays_where_a_vehicle_drove(surface):
    swept = SweptSpace([passing_car()])
    points = np.array([[10.0, 3.0, 0.8], [10.0, 4.5, 0.8], [10.0, 3.0, 2.0], [30.0, 3.0, 0.8]])
    assert swept.contains(points).tolist() == [True, False, False, False]
    model = make_model([BACKGROUND, FIRST_ACTOR])
    with torch.no_grad():
        model.tensors["means_m"].copy_(torch.tensor([[10.0, 3.0, 0.8], [10.0, 3.0, 0.8]]))
    assert dead_gaussians(model, surface, swept).tolist() == [True, False]
