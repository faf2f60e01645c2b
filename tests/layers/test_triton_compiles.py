"""Our Triton kernels compile for cards that are not there, which the interpreter, as it runs Python, cannot tell."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from vistrain.devices import triton_lacks

SIZES: dict[str, dict[str, Any]] = {
    "deformable": {"HEADS": 2, "DEPTH": 10, "LEVELS": 2, "POINTS": 3, "BLOCK_Q": 4, "BLOCK_D": 16, "UNROLL": 1},
    "neighborhood": {"HEADS": 2, "DEPTH": 10, "KH": 3, "KW": 2, "DH": 2, "DW": 1, "BIAS": True}
    | {"BLOCK_Q": 4, "BLOCK_D": 16},
}
EXACT = {"points", "weights", "of_value", "of_points", "of_weights", "out", "total", "of_k", "of_v", "of_rpb"}
TYPES = {"scale": "fp32", "levels": "*i32", "rows": "*i32", "columns": "*i32"}
TYPES |= dict.fromkeys(("queries", "tokens", "blocks", "width"), "i32") | dict.fromkeys(EXACT, "*fp32")


@pytest.mark.slow
@pytest.mark.skipif(bool(triton_lacks()), reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets")
@pytest.mark.parametrize("kind", SIZES)
def test_kernels_compile_without_a_card(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = importlib.import_module(f"vistrain.layers.{kind}_triton")
    for kernel in (kernels._forward, kernels._backward):
        constants = {name: value for name, value in SIZES[kind].items() if name in kernel.arg_names}
        types = {name: TYPES.get(name, "*bf16") for name in kernel.arg_names}
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
        built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 1})
        assert ".target sm_80" in built.asm["ptx"]
        assert built.asm["cubin"]
