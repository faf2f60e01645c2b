"""BiFormer against its authors' code."""

from typing import Any

import pytest

from parity import fixtures
from parity.backbones import assert_classifies, assert_dense, constructor, is_dense
from vistrain.backbones.biformer import DENSE, BiFormer, BiFormerSTL, checkpoint_filter_fn

KNOWN = {"backbones/biformer_cls.pt", "backbones/biformer_stl_nchw.pt"}
UNUSED = ("auto_pad", "kv_downsample_kernels", "pe", "pe_stages", "representation_size", "use_checkpoint_stages")


@pytest.mark.parametrize("name", sorted({*KNOWN, *fixtures.names("backbones/biformer*.pt")}))
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = constructor(fixture, *UNUSED)  # maps are always padded, where they must be
    if "stl" in name:
        model = BiFormerSTL(**stl_arguments(arguments, nchw="nchw" in fixture["entry"]))
    elif is_dense(fixture, "extra_norms"):
        arguments.pop("num_classes", None)
        return assert_dense("biformer_tiny", arguments, 1e-6, DENSE, fixture)
    else:
        model = BiFormer(**arguments)
    return assert_classifies(model, fixture["state_dict"], checkpoint_filter_fn, fixture)


def stl_arguments(arguments: dict[str, Any], nchw: bool) -> dict[str, Any]:
    norms = {key: value for key, value in arguments.items() if "norm_layer" in key and value is not None}
    named = {key: "batchnorm2d" if "BatchNorm2d" in str(value) else "layernorm2d" for key, value in norms.items()}
    return {"norm_layer": "layernorm2d", **arguments, **named, "nchw": nchw}
