"""Configs: round trip, reading YAML, refusals."""

import dataclasses

import pytest
import yaml

from pgjax.lab import config as configs
from pgjax.lab.config import Config


def test_a_saved_config_reads_back_equal(tmp_path):
    config = Config(
        env="Pendulum-v1",
        env_params={"max_speed": 7.5, "max_steps_in_episode": 100},
        hidden=(8, 16, 8),
        learning_rate=3e-5,
        max_grad_norm=0.5,
        name="x",
    )
    file = tmp_path / "config.yaml"
    file.write_text(configs.dump(config))
    assert configs.load(file) == config
    assert configs.load(file) != Config()


def test_every_field_is_saved():
    fields = [field.name for field in dataclasses.fields(Config)]
    assert list(yaml.safe_load(configs.dump(Config()))) == fields


def test_what_a_file_leaves_out_takes_its_default(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seeds: 3\n")
    assert configs.load(file) == Config(seeds=3)
    file.write_text("")
    assert configs.load(file) == Config()


def test_numbers_may_be_written_as_people_write_them():
    # YAML 1.1 reads 1e-3 as a string.
    content = {"learning_rate": "1e-3", "discount": 1, "env_params": {"gravity": "9e0"}}
    config = configs.parse(content)
    assert config == Config(learning_rate=1e-3, discount=1.0, env_params={"gravity": 9.0})
    assert isinstance(config.discount, float)


def test_lambda_may_be_called_as_its_flag_is():
    assert configs.parse({"lambda": 0.5}) == configs.parse({"lambda_": 0.5}) == Config(lambda_=0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"lerning_rate": 1.0}, "did you mean 'learning_rate'"),
        ({3: 3}, "key=3"),
        ({"seeds": "three"}, "seeds='three' must be of type int"),
        ({"seeds": True}, "seeds=True"),
        ({"seeds": 1.0}, "seeds=1.0"),
        ({"env": 3}, "env=3"),
        ({"hidden": 64}, "hidden=64"),
        ({"hidden": [64.5]}, "hidden="),
        ({"horizon": "long"}, "horizon='long'"),
        ({"learning_rate": True}, "learning_rate=True"),
        ({"learning_rate": 10**400}, "learning_rate=1000"),
        ({"env_params": ["gravity"]}, "env_params="),
        ({"env_params": {"gravity": "strong"}}, "env_params="),
    ],
)
def test_content_of_the_wrong_kind_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        configs.parse(content)


@pytest.mark.parametrize("text", ["[1, 2]", "[]", "false", "a: [", "words", "\x00"])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="config.yaml"):
        configs.load(file)


def test_the_default_config_is_valid():
    assert configs.validate(Config()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"num_episodes": 0},
        {"num_episodes": -5},
        {"num_episodes": 2**31},
        {"horizon": 2**31},
        {"hidden": (2**31,)},
        {"num_updates": -1},
        {"seeds": 0},
        {"horizon": 0},
        {"chunk_size": 0},
        {"n": 0},
        {"evaluation_episodes": 0},
        {"updates_per_call": 0},
        {"checkpoint_every": -1},
        {"seed": -1},
        {"hidden": (64, 0)},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"value_learning_rate": float("inf")},
        {"initial_log_std": float("nan")},
        {"max_grad_norm": 0.0},
        {"optimizer": "adma"},
        {"name": "../elsewhere"},
        {"name": ""},
        {"name": "a\0b"},
        {"directory": "a\0b"},
    ],
    ids=str,
)
def test_impossible_values_are_refused_by_name(change):
    (argument,) = change
    with pytest.raises(ValueError, match=f"^{argument}="):
        configs.validate(dataclasses.replace(Config(), **change))


def test_seeds_beyond_what_a_key_holds_are_refused():
    configs.validate(Config(seed=2**32 - 8, seeds=8))
    with pytest.raises(ValueError, match="the last of 9 seeds"):
        configs.validate(Config(seed=2**32 - 8, seeds=9))
