"""CSWin Transformer against its authors' code."""

import pytest

from parity import fixtures
from parity.backbones import assert_classifies, assert_dense, constructor, is_dense
from vistrain.backbones.cswin import DENSE, CSWin, checkpoint_filter_fn


@pytest.mark.parametrize("name", sorted({"backbones/cswin_cls.pt", *fixtures.names("backbones/cswin*.pt")}))
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = constructor(fixture, "patch_size", "use_chk")  # patches are of 4 pixels whatever it says
    if is_dense(fixture, "norm1"):
        arguments.pop("num_classes", None)
        assert_dense("cswin_tiny", arguments, 1e-5, DENSE, fixture)
    else:
        assert_classifies(CSWin(**arguments), fixture["state_dict"], checkpoint_filter_fn, fixture)
