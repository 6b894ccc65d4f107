"""Checks of what a policy is given, so that a mistake is named instead of silently changed."""

from collections.abc import Sequence

import numpy as np
import torch

from vla.config import PolicyConfig
from vla.errors import PolicyError
from vla.policy import PLAN_STEPS, ROUTE_POINTS, Observation, TrainingBatch

HISTORY_STEPS = 16
SPECIAL_TOKEN = "<|"
# Longest distance between two history poses, m: 0.1 s at 100 m/s. A longer one is a hole in the log or another frame.
LONGEST_HISTORY_STEP_M = 10.0
# The last history pose is the origin of the rig frame up to the noise of ego motion, m.
LARGEST_HISTORY_OFFSET_M = 2.0
# Consecutive frames may lie this many frame intervals apart: one is the latest before the time it stands for.
LATEST_FRAME_INTERVALS = 4


def check_observation(observation: Observation, config: PolicyConfig) -> int:
    """Check cameras, image sizes, frame times and history of an observation; returns B.

    Raises `PolicyError` naming what differs from `config`.
    """
    found, expected = sorted(observation.images), sorted(config.cameras)
    if found != expected:
        raise PolicyError(f"observation cameras: found {', '.join(found) or 'none'}, expected {', '.join(expected)}")
    batch = len(observation.t_us)
    for camera in config.cameras:
        _check_images(camera, np.asarray(observation.images[camera]), batch, config)
        _check_frame_times(camera, observation, batch, config)
    _check_history(np.asarray(observation.ego_history), batch)
    if len(observation.navigation) != batch:
        raise PolicyError(f"navigation: found {len(observation.navigation)} instructions for {batch} observations")
    _check_texts("navigation", observation.navigation)
    if config.route_tokens:
        _check_route(observation.route, batch)
    return batch


def check_training_batch(batch: TrainingBatch, config: PolicyConfig) -> int:
    """Check observations, targets and weights of a training batch; returns B. Raises `PolicyError`."""
    size = check_observation(batch, config)
    target, weight = np.asarray(batch.target), np.asarray(batch.weight)
    if target.shape != (size, PLAN_STEPS, 3):
        raise PolicyError(f"target: found shape {target.shape}, expected {(size, PLAN_STEPS, 3)}")
    if weight.shape != (size,) or not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() <= 0:
        raise PolicyError(f"weight: found {weight}, expected {size} finite values >= 0, not all 0")
    _check_finite("target", target)
    if batch.reasoning is not None:
        if len(batch.reasoning) != size:
            raise PolicyError(f"reasoning: found {len(batch.reasoning)} texts for {size} examples")
        _check_texts("reasoning", batch.reasoning)
    return size


def _check_texts(name: str, texts: Sequence[str]) -> None:
    """Special tokens inside a text would be read as images, history or the start of the plan."""
    for row, text in enumerate(texts):
        if SPECIAL_TOKEN in text:
            raise PolicyError(f"{name}: row {row} holds {text!r}; expected plain text without {SPECIAL_TOKEN!r}")


def check_generators(generators: Sequence[torch.Generator], batch: int, num_samples: int, temperature: float) -> None:
    """Check the arguments of sampling. Raises `PolicyError`."""
    if len(generators) != batch:
        raise PolicyError(f"generators: found {len(generators)} for {batch} rollouts, expected one each")
    if num_samples < 1:
        raise PolicyError(f"num_samples: found {num_samples}, expected 1 or more")
    if not np.isfinite(temperature) or temperature < 0:
        raise PolicyError(f"temperature: found {temperature}, expected a finite value >= 0")


def _check_images(camera: str, images: np.ndarray, batch: int, config: PolicyConfig) -> None:
    if images.ndim != 5 or images.shape[0] != batch or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise PolicyError(
            f"{camera}: found {images.dtype} images of shape {images.shape}, expected uint8 "
            f"({batch}, {config.num_frames}, {config.image_height_px}, {config.image_width_px}, 3)"
        )
    if images.shape[1] != config.num_frames:
        raise PolicyError(f"{camera}: found {images.shape[1]} frames, expected {config.num_frames}")
    height_px, width_px = images.shape[2:4]
    if (width_px, height_px) != (config.image_width_px, config.image_height_px):
        raise PolicyError(
            f"{camera}: found images of {width_px}x{height_px} px, expected {config.image_width_px}x"
            f"{config.image_height_px} px; set the camera to that size, nothing is resized here"
        )


def _check_frame_times(camera: str, observation: Observation, batch: int, config: PolicyConfig) -> None:
    times_us = np.asarray(observation.image_times_us.get(camera, np.zeros(0)))
    if times_us.shape != (batch, config.num_frames):
        raise PolicyError(
            f"{camera}: found frame times of shape {times_us.shape}, expected {(batch, config.num_frames)}"
        )
    if (np.diff(times_us, axis=1) < 0).any():
        row = int(np.flatnonzero((np.diff(times_us, axis=1) < 0).any(axis=1))[0])
        raise PolicyError(f"{camera}: frame times {times_us[row].tolist()} us of row {row} must be oldest first")
    _check_span(camera, times_us, config)
    late = np.flatnonzero(times_us[:, -1] > np.asarray(observation.t_us))
    if late.size:
        row = int(late[0])
        raise PolicyError(
            f"{camera}: the last frame of row {row}, at {times_us[row, -1]} us, lies after the observation at "
            f"{observation.t_us[row]} us"
        )


def _check_span(camera: str, times_us: np.ndarray, config: PolicyConfig) -> None:
    """Frames that repeat or lie far apart stand for frames that are missing: at the start of a drive, or dropped."""
    if config.num_frames == 1:
        return
    steps_us = np.diff(times_us, axis=1)
    repeated = np.flatnonzero((steps_us == 0).any(axis=1))
    if repeated.size:
        row = int(repeated[0])
        raise PolicyError(
            f"{camera}: frame times {times_us[row].tolist()} us of row {row} repeat; {config.num_frames} different "
            f"frames {config.frame_interval_us} us apart are expected: start later in the drive, or set a longer "
            "frame_interval_us for a slow camera"
        )
    gap_us = LATEST_FRAME_INTERVALS * config.frame_interval_us
    apart = np.flatnonzero((steps_us > gap_us).any(axis=1))
    if apart.size:
        row = int(apart[0])
        raise PolicyError(
            f"{camera}: frame times {times_us[row].tolist()} us of row {row} have a gap above {gap_us} us; expected "
            f"frames {config.frame_interval_us} us apart: drop the example"
        )


def _check_history(history: np.ndarray, batch: int) -> None:
    if history.shape != (batch, HISTORY_STEPS, 4):
        raise PolicyError(f"ego_history: found shape {history.shape}, expected {(batch, HISTORY_STEPS, 4)}")
    _check_finite("ego_history", history)
    steps_m = np.linalg.norm(np.diff(history[..., :2], axis=1), axis=-1)
    jumps = np.argwhere(steps_m > LONGEST_HISTORY_STEP_M)
    if jumps.size:
        row, step = jumps[0].tolist()
        raise PolicyError(
            f"ego_history: row {row} moves {steps_m[row, step]:.1f} m within 0.1 s at step {step}; the log has a gap "
            "there: fill it or drop the example"
        )
    offset_m = np.linalg.norm(history[:, -1, :2], axis=-1)
    if (offset_m > LARGEST_HISTORY_OFFSET_M).any():
        row = int(np.argmax(offset_m))
        raise PolicyError(
            f"ego_history: row {row} ends {offset_m[row]:.1f} m from the origin; expected poses in the rig frame now"
        )


def _check_route(route: np.ndarray | None, batch: int) -> None:
    if route is None:
        raise PolicyError(
            "route: found none, but this policy reads one; write the shards again with this version of roadloop, or "
            "train a policy with route_tokens 0"
        )
    if route.shape != (batch, ROUTE_POINTS, 2):
        raise PolicyError(f"route: found shape {route.shape}, expected {(batch, ROUTE_POINTS, 2)}")
    known = np.asarray(np.isfinite(route).all(axis=-1))
    unordered = np.flatnonzero((~known[:, :-1] & known[:, 1:]).any(axis=1))
    if unordered.size or np.isinf(route).any():
        row = int(unordered[0]) if unordered.size else int(np.argwhere(np.isinf(route))[0, 0])
        raise PolicyError(f"route: row {row} has gaps or infinite points; expected NaN only after the route's end")


def _check_finite(name: str, values: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if bad.size:
        raise PolicyError(f"{name}: not finite at index {tuple(bad[0].tolist())}; fill or drop the example")
