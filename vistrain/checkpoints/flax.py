"""Checkpoints of flax networks: names with slashes, kernels with their input channels first.

For a network whose modules have the names of the flax code, nothing else is needed:

    key_maps = (FLAX,)
"""

from __future__ import annotations

from vistrain.checkpoints.keymap import KeyMap

# An `.npz` of the authors' programs holds the weights below `opt/target/`, beside the state of the optimizer.
FLAX = KeyMap(
    "flax",
    marker=r"/kernel$",
    rules=((r"^(opt/target/|params/)", ""), (r"/(kernel|scale)$", "/weight"), (r"/", ".")),
    drop=(r"^opt/(?!target/)",),
    exports=(
        (r"(?i)(norm(_\w+)?)\.weight$", (r"\1.scale",)),
        (r"\.weight$", (".kernel",)),
        (r"\.", ("/",)),
        (r"^", ("opt/target/",)),
    ),
    layouts=((r"ConvTranspose_\d+/kernel$", "flax_conv_transpose"), (r"/kernel$", "flax_kernel")),
)
