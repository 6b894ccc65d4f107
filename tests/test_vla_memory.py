import dataclasses

import pytest

from vla.memory import (
    ROAD_2B,
    activation_bytes,
    build_on_meta,
    memory_table,
    parameters_by_mode,
    qwen3_vl_2b_config,
    training_memory,
)
from vla.training_modes import MODES, ParameterRow, ParameterTable

# 0.1 B trained of 1 B.
TABLE = ParameterTable((ParameterRow("language", 900_000_000, 0), ParameterRow("expert", 100_000_000, 100_000_000)))


@pytest.fixture(scope="module")
def policy():
    return build_on_meta(ROAD_2B, qwen3_vl_2b_config())


def test_a_2b_policy_has_the_published_sizes_and_no_memory(policy):
    backbone = sum(p.numel() for p in policy.backbone.parameters())
    vision = sum(p.numel() for p in policy.backbone.model.model.visual.parameters())
    assert backbone == pytest.approx(2.13e9, rel=0.01)
    assert vision == pytest.approx(0.41e9, rel=0.01)
    assert sum(p.numel() for p in policy.expert.parameters()) == pytest.approx(0.47e9, rel=0.01)
    assert {p.device.type for p in policy.parameters()} == {"meta"}
    # 2 cameras x 4 frames x 180 tokens, text, and 4 draws of 64 waypoints.
    assert 1440 + 256 < policy.tokens_per_example < 1440 + 256 + 150


def test_memory_by_hand():
    one = training_memory(TABLE, zero_stage=2, num_gpus=1, activations=5.0)
    assert (one.weights, one.gradients, one.optimizer) == (2e9, 0.2e9, 1.2e9)
    assert one.total == pytest.approx(2e9 + 1.4e9 + 0.4e9 + 5.0)
    eight = training_memory(TABLE, zero_stage=2, num_gpus=8, activations=0.0)
    assert (eight.weights, eight.gradients, eight.optimizer) == (2e9, 0.025e9, 0.15e9)
    assert training_memory(TABLE, zero_stage=3, num_gpus=8, activations=0.0).weights == 0.25e9


def test_checkpointing_and_frozen_parts_keep_less(policy):
    kept = {mode: activation_bytes(policy, mode) for mode in MODES}
    assert kept["freeze_backbone"] < kept["freeze_vision"] == kept["lora"] < kept["all"]
    assert activation_bytes(policy, "all", checkpointing=False) > 3 * kept["all"]
    assert activation_bytes(policy, "all", micro_batch=4) == 4 * kept["all"]


def test_the_table_has_a_row_for_each_mode_and_stage():
    small = dataclasses.replace(ROAD_2B, num_frames=1)
    lines = memory_table(small, gpus=(1, 8), modes=("freeze_backbone", "all"))
    assert len(lines) == 2 + 4
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    tables = parameters_by_mode(small, qwen3_vl_2b_config(), ("freeze_backbone",))
    assert f"{tables['freeze_backbone'].total.trained / 1e9:.3f} B" in lines[2]
