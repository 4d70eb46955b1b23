"""The configuration: every key known, every key explained, every fault with a hint."""

from __future__ import annotations

import os
import re
import tomllib

import pytest
from pydantic import BaseModel

from brainstage.pipeline import config as module
from brainstage.pipeline.config import Config, PreprocessingConfig, read_config
from brainstage.pipeline.errors import ConfigError, InputMissingError

SECTIONS = [
    found
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, BaseModel) and found.__module__ == module.__name__
]
OPTIONS = [
    (section, name)
    for section in SECTIONS
    for name, info in section.model_fields.items()
    if not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel))
]


def read(tmp_path, text: str, **overrides):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return read_config(path, overrides)


def test_without_a_file_everything_has_its_default():
    assert read_config(None, {}) == Config()


def test_the_command_line_wins_over_the_file(tmp_path):
    text = '[registration]\nmethod = "syn"\nresolution_mm = 2\n'
    config = read(tmp_path, text, registration={"method": "affine"}, bias_field={"method": "none"})
    assert (config.registration.method, config.registration.resolution_mm) == ("affine", 2.0)
    assert config.bias_field.method == "none"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[bias_feild]\nlevels = 2", r"unknown key 'bias_feild'; did you mean 'bias_field'\?"),
        ("[bias_field]\nlevel = 2", r"unknown key 'bias_field\.level'; did you mean 'levels'\?"),
        ("[prediction]\nhigh_confidense = 1", r"did you mean 'high_confidence'\?"),
        ("[quality.snr]\npasing = [1, 2]", r"unknown key 'quality\.snr\.pasing'; did you mean 'passing'\?"),
        ("zzz = 1", r"unknown key 'zzz'; known are ingest, "),
        ("sede = 1", r"did you mean 'seed'\?"),
    ],
)
def test_an_unknown_key_comes_with_a_suggestion(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[intensity]\nmethod = "z"', r"intensity\.method = 'z': .*'zscore'"),
        ("[bias_field]\nlevels = 0", r"bias_field\.levels = 0: .*greater than or equal to 1"),
        ("[bias_field]\ngrid_mm = nan", r"bias_field\.grid_mm = nan"),
        ("[ingest]\nspacing_bounds_mm = [nan, nan]", r"ingest\.spacing_bounds_mm"),
        ("[ingest]\nspacing_bounds_mm = [0.2, inf]", r"ingest\.spacing_bounds_mm\.1 = inf: .*finite"),
        (
            "[ingest]\nspacing_bounds_mm = [6.0, 0.2]",
            r"ingest\.spacing_bounds_mm = .*above 0 .*the lower one first",
        ),
        (
            "[ingest]\nfield_of_view_bounds_mm = [-1.0, 512.0]",
            r"field_of_view_bounds_mm = .*two numbers above 0",
        ),
        ("[ingest]\nfield_of_view_bounds_mm = [80, 80]", r"field_of_view_bounds_mm = .*the lower one first"),
        ("[brain_extraction]\nvolume_bounds_ml = [0.0, 2300.0]", r"volume_bounds_ml = .*two numbers above 0"),
        ("[bias_field]\ntolerance = inf", r"bias_field\.tolerance = inf"),
        ("[bias_field]\ntolerance = 1.0", r"bias_field\.tolerance = 1\.0: .*less than 1"),
        ("[network_grid]\nspacing_mm = nan", r"network_grid\.spacing_mm = nan"),
        ("[registration]\nresolution_mm = nan", r"registration\.resolution_mm = nan"),
        ("[prediction]\nhigh_confidence = nan", r"prediction\.high_confidence = nan"),
        ("[prediction]\nreview_confidence = 1.5", r"prediction\.review_confidence = 1\.5"),
        ("[quality.snr]\npassing = [nan, 1.0]", r"quality\.snr\.passing = .*nan is no bound"),
        ("[quality.snr]\npassing = [5.0, 1.0]", r"quality\.snr\.passing = .*lies above the upper"),
        (
            "[quality.snr]\npassing = [5.0, inf]\ntolerated = [6.0, inf]",
            r"quality\.snr = .*does not hold all",
        ),
        (
            "[quality.snr]\npassing = [5.0, inf]\ntolerated = [1.0, 9.0]",
            r"quality\.snr = .*does not hold all",
        ),
        ('label_column = ""', r"label_column = ''"),
        ("[network_grid]\nshape = [8000, 96, 80]", "32 to 256 voxels"),
        ("[registration]\nresolution_mm = 3", "allowed are 1, 1.5 and 2"),
        ("[network_grid]\nshape = [80, 96, 81]", "multiple of 8"),
        ("[network_grid]\nshape = [80, 96]", r"network_grid\.shape"),
        ("[prediction]\nreview_confidence = 0.9", "must not lie above"),
        ("seed = -1", r"seed = -1"),
        ("ingest = 3", r"ingest = 3"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, text)


def test_all_faults_come_in_one_error(tmp_path):
    with pytest.raises(ConfigError, match=r"seed = -1.*unknown key 'sede'") as caught:
        read(tmp_path, "seed = -1\nsede = 3\n")
    assert caught.value.message.startswith("configuration study.toml: ")


@pytest.mark.parametrize(
    "text", ["[ingest\n", "a = \n", "seed = " + "9" * 5000], ids=["bracket", "value", "digits"]
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"study\.toml is not valid TOML"):
        read(tmp_path, text)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(b"# \xff\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_config(path, {})


def test_a_file_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(InputMissingError, match=r"study\.toml cannot be read"):
        read_config(tmp_path / "study.toml", {})


def test_a_fault_of_the_command_line_says_so():
    with pytest.raises(ConfigError, match=r"from the command line: bias_field\.method = 'best'"):
        read_config(None, {"bias_field": {"method": "best"}})


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


def test_the_part_that_changes_voxels_leaves_out_the_rest(tmp_path):
    config = read(tmp_path, '[prediction]\nhigh_confidence = 0.9\n[intensity]\nmethod = "percentile"\n')
    assert config.preprocessing == PreprocessingConfig(intensity={"method": "percentile"})
    assert set(config.preprocessing.model_dump()) == set(PreprocessingConfig.model_fields)


def test_bounds_of_a_measure_may_leave_a_side_open():
    content = tomllib.loads("quality.snr = { passing = [5.0, 100.0] }")
    bounds = Config.model_validate(content).quality["snr"]
    assert (bounds.passing, bounds.tolerated) == ((5.0, 100.0), (None, None))


def test_an_infinite_bound_of_a_measure_is_an_open_side(tmp_path):
    text = "[quality.snr]\npassing = [5.0, inf]\ntolerated = [-inf, inf]\n"
    bounds = read(tmp_path, text).quality["snr"]
    assert (bounds.passing, bounds.tolerated) == ((5.0, None), (None, None))


@pytest.mark.parametrize(("section", "name"), OPTIONS, ids=[f"{s.__name__}.{n}" for s, n in OPTIONS])
def test_every_option_is_explained_in_the_docstring_of_its_section(section, name):
    assert re.search(rf"\b{name}\b", section.__doc__ or "")


def test_the_options_that_are_explained_are_not_none():
    assert len(OPTIONS) > 15


@pytest.mark.parametrize(
    "text",
    ["seed = " + "[" * 100_000, "seed = " + "{a = " * 5000 + "1" + "}" * 5000],
    ids=["lists", "tables"],
)
def test_a_file_that_is_nested_without_end_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"study\.toml is nested too deeply"):
        read(tmp_path, text)


def test_a_value_nested_deeper_than_it_can_be_shown_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"seed = "):
        read(tmp_path, f"[seed]\n{'.'.join('a' * 2000)} = 1")


def test_a_file_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "study.toml")
    with pytest.raises(InputMissingError, match="it is no regular file"):
        read_config(tmp_path / "study.toml", {})


def test_an_infinite_bound_leaves_its_side_open(tmp_path):
    bounds = read(tmp_path, "[quality.cjv]\npassing = [-inf, 1.4]\ntolerated = [-inf, inf]").quality["cjv"]
    assert (bounds.passing, bounds.tolerated) == ((None, 1.4), (None, None))
    with pytest.raises(ConfigError, match="nan is no bound"):
        read(tmp_path, "[quality.cjv]\npassing = [nan, 1.4]")
