"""Weights of the images of a source."""

import pytest

from mtil.config import config_from_dict, config_to_dict
from mtil.data.dataset.manifest import SourceInfo
from mtil.data.dataset.source_weights import SourceWeights
from mtil.errors import ConfigError


def _source(name: str, prefix: str) -> SourceInfo:
    return SourceInfo(name=name, prefix=prefix, licence="", citation="", read=1)


APPENDED = (_source("BUSI", ""), _source("BUS-BRA", "bus-bra"))
IDS = ["benign (1)", "bus-bra/bus_0001-l", "odd/benign (2)"]


def test_the_source_follows_from_the_prefix_of_an_id() -> None:
    weigh = SourceWeights(APPENDED, {"bus-bra": 0.25})
    assert weigh(IDS).tolist() == [1.0, 0.25, 1.0]


def test_a_source_has_its_name_or_prefix_in_any_case() -> None:
    assert SourceWeights(APPENDED, {"busi": 2.0})(IDS).tolist() == [2.0, 1.0, 2.0]
    assert SourceWeights(APPENDED, {"BUS-BRA": 0.5})(IDS).tolist() == [1.0, 0.5, 1.0]


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"which are BUSI, bus-bra, but names 'udiat'"):
        SourceWeights(APPENDED, {"udiat": 1.0})


def test_not_all_weights_may_be_zero() -> None:
    assert SourceWeights(APPENDED, {"busi": 0.0})(IDS).tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(ConfigError, match="gives all 0"):
        SourceWeights(APPENDED, {"busi": 0.0, "bus-bra": 0.0})


def test_a_mapping_is_stored_as_sorted_pairs() -> None:
    config = config_from_dict({"data": {"source_weights": {"udiat": 1, "busi": 0.5}}})
    assert config.data.source_weights == (("busi", 0.5), ("udiat", 1.0))
    assert config_from_dict(config_to_dict(config)) == config
    with pytest.raises(ConfigError, match="source_weights"):
        config_from_dict({"data": {"source_weights": {"busi": -1}}})
