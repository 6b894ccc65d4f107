"""Gaussians as PLY and as OpenUSD particle fields."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from synthetic_scene import make_scene

from neural_sim.errors import InputError
from neural_sim.gaussians import Gaussians
from neural_sim.scenes.gaussian_ply import read_ply, read_sky, write_ply
from neural_sim.scenes.particle_field_usd import write_usda
from neural_sim.scenes.storage import write_scene
from pipelines.cli import main


def make(count=7, degree=2):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return Gaussians(draw(count, 3), draw(count, 4), draw(count, 3), draw(count), draw(count, (degree + 1) ** 2, 3))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trip(tmp_path, degree):
    gaussians = make(degree=degree)
    write_ply(gaussians, tmp_path / "a.ply")
    again = read_ply(tmp_path / "a.ply")
    for name, tensor in gaussians.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name


def test_ply_columns_for_others(tmp_path):
    """Read by another library: wxyz, pre-activation, harmonics channel by channel."""
    gaussians = make(degree=1)
    write_ply(gaussians, tmp_path / "a.ply")
    data = trimesh.load(tmp_path / "a.ply").metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(data["rot_0"].ravel(), gaussians.quaternions_xyzw[:, 3])
    np.testing.assert_array_equal(data["f_rest_1"].ravel(), gaussians.sh[:, 2, 0])
    np.testing.assert_array_equal(data["f_rest_3"].ravel(), gaussians.sh[:, 1, 1])
    np.testing.assert_array_equal(data["scale_2"].ravel(), gaussians.log_scales[:, 2])


def damage_header(old, new):
    return lambda content: content.replace(old, new, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-3], "7 Gaussians need .* bytes, but the file ends before"),
        (lambda content: content[3:], "not a little-endian binary PLY"),
        (damage_header(b"vertex 7", b"vertex 999999999999"), "the file ends before"),
        (damage_header(b"float opacity", b"float density"), "opacity: not Gaussians in the 3DGS convention"),
        (damage_header(b"property float x", b"property list x"), "'property list x' is not a plain number"),
        (damage_header(b"element vertex", b"element faces"), "the first element of the PLY should be vertex"),
        (lambda content: content[:-4] + np.float32("nan").tobytes(), "rot_0 has NaN or infinite values"),
    ],
)
def test_bad_ply(tmp_path, damage, message):
    write_ply(make(), tmp_path / "a.ply")
    (tmp_path / "a.ply").write_bytes(damage((tmp_path / "a.ply").read_bytes()))
    with pytest.raises(InputError, match=message):
        read_ply(tmp_path / "a.ply")


def test_sky_beside_the_ply(tmp_path):
    path = tmp_path / "a.ply"
    assert read_sky(path) is None
    sky = np.random.default_rng(0).uniform(0, 1, (6, 8, 8, 3)).astype(np.float16)
    np.savez(tmp_path / "a.sky.npz", sky_cubemap=sky, mask=np.ones((6, 8, 8)))
    found = read_sky(path)
    assert found is not None
    np.testing.assert_allclose(found, sky.astype(np.float32))
    for arrays, message in (
        ({"other": sky}, "no sky_cubemap"),
        ({"sky_cubemap": sky[:5]}, r"is \[5, 8, 8, 3\], expected"),
        ({"sky_cubemap": np.array([{}])}, "no sky_cubemap in a whole .npz"),
    ):
        np.savez(tmp_path / "a.sky.npz", **arrays)
        with pytest.raises(InputError, match=message):
            read_sky(path)
    (tmp_path / "a.sky.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"a.sky.npz: no sky_cubemap"):
        read_sky(path)


def attribute(text, name):
    body = re.search(rf"\[\] {re.escape(name)} = \[(.*?)\]", text)
    assert body, name
    return np.array([float(number) for number in re.findall(r"[-+0-9.e]+", body.group(1))])


def test_particle_field_is_post_activation(tmp_path):
    gaussians = make(degree=1)
    write_usda(gaussians, tmp_path / "a.usda")
    text = (tmp_path / "a.usda").read_text()
    assert 'def ParticleField3DGaussianSplat "Gaussians"' in text
    assert 'upAxis = "Z"' in text
    np.testing.assert_allclose(attribute(text, "scales").reshape(-1, 3), gaussians.log_scales.exp(), rtol=1e-6)
    np.testing.assert_allclose(attribute(text, "opacities"), torch.sigmoid(gaussians.opacity_logits), rtol=1e-6)
    quaternions = attribute(text, "orientations").reshape(-1, 4)
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1, rtol=1e-6)
    assert np.sign(quaternions[0, 0]) == np.sign(float(gaussians.quaternions_xyzw[0, 3]))
    sh = attribute(text, "radiance:sphericalHarmonicsCoefficients").reshape(-1, 3)
    np.testing.assert_allclose(sh, gaussians.sh.reshape(-1, 3), rtol=1e-6)
    assert "elementSize = 4" in text
    assert "sphericalHarmonicsDegree = 1" in text


def test_export_of_a_scene(tmp_path):
    scene = replace(make_scene(), background=make(5, 2), road=make(3, 0))
    write_scene(scene, tmp_path / "s.usdz")
    assert main(["export", str(tmp_path / "s.usdz"), "--out", str(tmp_path / "s.ply")]) == 0
    found = read_ply(tmp_path / "s.ply")
    assert (len(found), found.sh_degree) == (8, 2)
    assert torch.equal(found.means_m[5:], scene.road.means_m)
    assert main(["export", str(tmp_path / "s.usdz"), "--out", str(tmp_path / "s.obj")]) == 2
