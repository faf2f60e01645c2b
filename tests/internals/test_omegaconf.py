"""What `internals.omegaconf` relies on."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import UnsupportedInterpolationType

from vistrain.internals.omegaconf import without_resolvers


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
