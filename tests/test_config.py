"""The configuration tree: YAML in, dotted overrides on top, errors that name the field."""

import pytest
import yaml

from neural_sim.errors import InputError
from pipelines.config import (
    RunConfig,
    config_to_mapping,
    differences,
    load_config,
    load_shipped_config,
    shipped_configs,
)


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", [name.removesuffix(".yaml") for name in shipped_configs()])
def test_every_shipped_configuration_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_shipped_config(name)
    assert config.name == name
    assert load_config(write(tmp_path, yaml.safe_dump(config_to_mapping(config)))) == config


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert load_config(write(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize(("text", "message"), [
    ("rollout: {guidance: {num_sample: 3}}", r"unknown field 'rollout.guidance.num_sample'; did you mean"),
    ("zzz: 1", r"unknown field 'zzz'; fields here: name, seed"),
    ("clips: [{name: a, dataset: town, options: {sed: 1}}]", r"unknown field 'clips\[0\].options.sed'; did you"),
    ("rollout: {batch_size: many}", r"rollout.batch_size is 'many'; input should be a valid integer"),
    ("rollout: {guidance: {strategy: chance}}", r"rollout.guidance.strategy is 'chance'; input should be 'road'"),
    ("rollout: 3", r"rollout holds 3, expected fields of RolloutConfig"),
    ("a: [", r"not valid YAML"),
])  # fmt: skip
def test_bad_configurations_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_file_names_the_shipped_ones(tmp_path):
    with pytest.raises(InputError, match=r"no such configuration file; shipped ones: .*demo"):
        load_config(tmp_path / "none.yaml")


def test_differences_are_dotted():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c: 2 -> 3", "d: None -> 4"]
