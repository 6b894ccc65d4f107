from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from neural_sim.frames import pose_from_planar
from neural_sim.gaussians import Gaussians, transform_gaussians
from neural_sim.reconstruction import adam
from neural_sim.reconstruction.adam import RowAdam
from neural_sim.reconstruction.densification import constrain, dead_gaussians, densify
from neural_sim.reconstruction.ground import GroundSurface, ground_from_path
from neural_sim.reconstruction.model import BACKGROUND, FIRST_ACTOR, ROAD, SceneModel
from neural_sim.road_users import Track
from neural_sim.trajectory import Trajectory

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


def test_posing_moves_actors_and_hides_the_absent():
    model = make_model([BACKGROUND, FIRST_ACTOR, FIRST_ACTOR + 1, ROAD])
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("zyx", [0.7, 0.2, -0.1]).as_matrix()
    pose[:3, 3] = (5.0, -2.0, 1.0)
    posed = model.posed([pose, None])
    expected = transform_gaussians(model.gaussians(), torch.from_numpy(pose).float())
    assert torch.allclose(posed.means_m[1], expected.means_m[1], atol=1e-5)
    same = posed.quaternions_xyzw[1] - expected.quaternions_xyzw[1]
    opposite = posed.quaternions_xyzw[1] + expected.quaternions_xyzw[1]
    assert min(same.abs().max(), opposite.abs().max()) < 1e-5
    assert torch.sigmoid(posed.opacity_logits[2]) < 1e-6
    for row in (0, 3):
        assert torch.allclose(posed.means_m[row], model.tensors["means_m"][row])


def test_growth_stops_at_the_cap_and_keeps_owners(surface):
    model = make_model([BACKGROUND] * 40 + [ROAD] * 20 + [FIRST_ACTOR] * 10)
    lay_on_road(model)
    model.score = torch.rand(70, generator=torch.Generator().manual_seed(1))
    densify(model, surface, max_gaussians=80, growth=0.5, generator=torch.Generator().manual_seed(0))
    assert len(model) == 80
    assert all(len(tensor) == 80 for tensor in model.tensors.values())
    assert len(model.adam["gaussians"].steps) == 80
    densify(model, surface, max_gaussians=80, growth=0.5, generator=torch.Generator().manual_seed(1))
    assert len(model) == 80
    assert (model.owner[:70] == torch.tensor([0] * 40 + [1] * 20 + [2] * 10)).all()


def test_growth_goes_where_the_images_pull(surface):
    model = make_model([BACKGROUND] * 50)
    model.score[7] = 100.0
    densify(model, surface, max_gaussians=100, growth=0.02, generator=torch.Generator().manual_seed(0))
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
    assert torch.nonzero(dead_gaussians(model, surface))[:, 0].tolist() == [0, 1, 2, 25, 30]
    densify(model, surface, max_gaussians=40, growth=0.1, generator=torch.Generator().manual_seed(0))
    assert len(model) == 40
    assert not dead_gaussians(model, surface).any()
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
