"""What `internals.omegaconf` relies on."""

from __future__ import annotations

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import UnsupportedInterpolationType

from vistrain.internals.omegaconf import read_scalar, read_yaml, without_resolvers


def test_the_table_of_resolvers_exists_and_is_what_omegaconf_asks(monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    node = OmegaConf.create({"x": "${oc.env:SECRET}"})
    assert "oc.env" in BaseContainer._resolvers
    assert node.x == "told"
    with without_resolvers(), pytest.raises(UnsupportedInterpolationType):
        _ = node.x
    assert node.x == "told"


def test_resolvers_of_others_come_back_also_after_an_error():
    BaseContainer._resolvers["twice"] = lambda root, parent, node, inputs, text: 2 * int(inputs[0])
    try:
        with without_resolvers():
            assert not OmegaConf.has_resolver("twice")
        with pytest.raises(ZeroDivisionError), without_resolvers():
            _ = 1 / 0
        assert OmegaConf.create({"x": "${twice:4}"}).x == 8
    finally:
        OmegaConf.clear_resolver("twice")


def test_no_public_function_clears_the_built_in_ones():
    """Where this fails, `OmegaConf.clear_resolvers` has learnt it, and the private name is no longer needed."""
    OmegaConf.clear_resolvers()
    assert OmegaConf.has_resolver("oc.env")


def test_yaml_is_read_as_omegaconf_does_and_aliases_are_one_object():
    found = read_yaml("a: &x [1e-4, yes, 'b']\nc: *x\nd: 1_000\ne: 2001-01-01")
    assert found == {"a": [1e-4, True, "b"], "c": [1e-4, True, "b"], "d": 1000, "e": "2001-01-01"}
    assert found["a"] is found["c"]
    assert len(read_yaml("a: [" + "x, " * 30_000 + "]")["a"]) == 30_000
    assert read_yaml("") is None
    with pytest.raises(yaml.YAMLError, match="duplicate key"):
        read_yaml("a: 1\na: 2")


@pytest.mark.parametrize("text", ["[" * 10**6, "{a: " * 10**5, "- " * 10**5, "a:\n" + " " * 500 + "b: 1"])
def test_what_libyaml_would_crash_over_is_not_handed_to_it(text):
    with pytest.raises(ValueError, match="more than"):
        read_yaml(text)


def test_a_scalar_is_one_whatever_stands_in_it():
    for text, value in (("1e-4", 1e-4), ("3", 3), ("null", None), ("true", True), ("0x10", 16), ("", None)):
        assert read_scalar(text) == value
    for text in ("a # b", "a: b", "*a", "&a", "!a", "- a", "1.2.3", "[a", "| x"):
        assert read_scalar(text) == text
