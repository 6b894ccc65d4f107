"""`volume.nurec`: the Gaussians and the sky for other tools, in half precision.

The layout is that of 3dgrut's exporter (gzip of msgpack, raw little-endian tensors with a `.shape` entry each), with
the node names of NVIDIA's driving scenes. Values are pre-activation and quaternions wxyz.
"""

import gzip
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from neural_sim.gaussians import Gaussians
from neural_sim.scenes.scene import Scene
from neural_sim.scenes.sky_layouts import sky_to_layout

_SPECULAR_BANDS = 15
_FLOAT16_MAX = 65504.0
_LAYER_CONFIG = {
    "name": "sh-gaussians",
    "device": "cuda",
    "density_activation": "sigmoid",
    "scale_activation": "exp",
    "rotation_activation": "normalize",
    "precision": 16,
    "particle": {
        "density_kernel_planar": False,
        "density_kernel_degree": 2,
        "density_kernel_density_clamping": False,
        "density_kernel_min_response": 0.0113,
        "radiance_sph_degree": 3,
    },
    "transmittance_threshold": 0.001,
}
_RENDERER_CONFIG = {
    "name": "3dgut-nrend",
    "log_level": 3,
    "force_update": False,
    "update_step_train_batch_end": False,
    "per_ray_features": False,
    "global_z_order": False,
    "projection": {
        "n_rolling_shutter_iterations": 5,
        "ut_dim": 3,
        "ut_alpha": 1.0,
        "ut_beta": 2.0,
        "ut_kappa": 0.0,
        "ut_require_all_sigma_points": False,
        "image_margin_factor": 0.1,
        "min_projected_ray_radius": 0.5477225575051661,
    },
    "culling": {
        "rect_bounding": True,
        "tight_opacity_bounding": True,
        "tile_based": True,
        "near_clip_distance": 1e-8,
        "far_clip_distance": 3.402823466e38,
    },
    "render": {"mode": "kbuffer", "k_buffer_size": 0},
}


def encode_volume(scene: Scene, origin_m: Float[np.ndarray, "3"]) -> bytes:
    """The payload of `scene`; static Gaussians are shifted by `-origin_m` (m), those of actors stay in their boxes.

    Half precision costs 6 cm at 100 m from the origin, so this is for exchange and not what `read_scene` reads.
    """
    actor_ids = list(scene.actors)
    rigids = _joined_actors(scene.actors)
    state: dict[str, Any] = {
        "._extra_state": {"obj_track_ids": {"background": [], "road": [], "dynamic_rigids": actor_ids}},
        **_node("background", scene.background, origin_m),
        **_node("road", scene.road, origin_m),
        **_node("dynamic_rigids", rigids, np.zeros(3)),
        **_tensor(".gaussians_nodes.dynamic_rigids.gaussian_cuboid_ids", _cuboid_ids(scene.actors)),
        **_tensor(".background.textures", _half(sky_to_layout(scene.sky.detach().cpu(), "nurec").numpy()[None])),
    }
    layers = dict.fromkeys(("background", "road", "dynamic_rigids"), _LAYER_CONFIG)
    config = {"layers": layers, "renderer": _RENDERER_CONFIG, "name": "gaussians_primitive"}
    payload = {"nre_data": {"version": "0.2.576", "model": "nre", "config": config, "state_dict": state}}
    return gzip.compress(msgpack.Packer().pack(payload), compresslevel=3, mtime=0)


def _node(name: str, gaussians: Gaussians, origin_m: Float[np.ndarray, "3"]) -> dict[str, Any]:
    tensors = {key: tensor.detach().cpu().numpy() for key, tensor in gaussians.tensors().items()}
    specular = np.zeros((len(gaussians), _SPECULAR_BANDS, 3), np.float32)
    specular[:, : tensors["sh"].shape[1] - 1] = tensors["sh"][:, 1:]
    arrays = {
        "positions": tensors["means_m"].astype(np.float64) - origin_m,
        "rotations": tensors["quaternions_xyzw"][:, [3, 0, 1, 2]],
        "scales": tensors["log_scales"],
        "densities": tensors["opacity_logits"][:, None],
        "features_albedo": tensors["sh"][:, 0],
        # Coefficient-major with RGB fastest; all nodes carry degree 3 because the importer joins them.
        "features_specular": specular.reshape(len(gaussians), 3 * _SPECULAR_BANDS),
        "extra_signal": np.zeros((len(gaussians), 0), np.float32),
    }
    prefix = f".gaussians_nodes.{name}"
    entries: dict[str, Any] = {}
    for key, array in arrays.items():
        entries |= _tensor(f"{prefix}.{key}", _half(array))
    return entries | _tensor(f"{prefix}.n_active_features", np.array(gaussians.sh_degree, np.int64))


def _tensor(key: str, array: Shaped[np.ndarray, "..."]) -> dict[str, Any]:
    return {key: array.astype(array.dtype.newbyteorder("<")).tobytes(), f"{key}.shape": list(array.shape)}


def _half(array: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.clip(array, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)


def _joined_actors(actors: Mapping[str, Gaussians]) -> Gaussians:
    if not actors:
        return Gaussians.empty()
    bands = max(actor.sh.shape[1] for actor in actors.values())
    return Gaussians.concatenate([_with_bands(actor, bands) for actor in actors.values()])


def _with_bands(gaussians: Gaussians, bands: int) -> Gaussians:
    missing = torch.zeros(len(gaussians), bands - gaussians.sh.shape[1], 3).to(gaussians.sh)
    return Gaussians(**gaussians.tensors() | {"sh": torch.cat([gaussians.sh, missing], dim=1)})


def _cuboid_ids(actors: Mapping[str, Gaussians]) -> Int[np.ndarray, "n"]:
    counts = [len(actor) for actor in actors.values()]
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)
