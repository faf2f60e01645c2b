"""nnU-Net's names of the weights of its U-Nets.

Names are those of dynamic-network-architectures 0.4.4 (Apache-2.0). Each convolution and norm stands in its files twice
(by name, and in the list of what a unit does), and the encoder once more inside of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

from vistrain.checkpoints import KeyMap


def nnunet_names(strides: Sequence[Sequence[int]]) -> KeyMap:
    """Names of `PlainConvUNet` and `ResidualEncoderUNet`.

    Args:
        strides: of each level, along each axis: a projection stands behind the pooling of a level that has one.
    """
    projections = ((level, int(max(stride) > 1)) for level, stride in enumerate(strides))
    return KeyMap(
        "nnU-Net",
        r"^decoder\.seg_layers\.",
        rules=(
            (r"^decoder\.encoder\.", "again.encoder."),
            (r"\.all_modules\.0\.", ".0.again."),
            (r"\.all_modules\.\d\.", ".1.again."),
            (r"(?<!\w)encoder\.stem\.convs\.0\.", "body.stem."),
            (r"(?<!\w)encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.", r"body.encoder.\1.\2.convs.0."),
            (r"(?<!\w)encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv2\.", r"body.encoder.\1.\2.convs.1."),
            (r"(?<!\w)encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.\d\.", r"body.encoder.\1.\2.shortcut."),
            (r"(?<!\w)encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.", r"body.encoder.\1.\2."),
            (r"^decoder\.stages\.(\d+)\.convs\.(\d+)\.", r"body.decoder.\1.\2."),
            (r"^decoder\.transpconvs\.", "body.up."),
            (r"^decoder\.seg_layers\.", "body.heads."),
            (r"\.conv\.(weight|bias)$", r".0.\1"),
            (r"\.norm\.(weight|bias)$", r".1.\1"),
        ),
        aliases=((r"(^|(?<=\.))again\.", ""),),
        exports=(
            (r"^body\.stem\.", ("encoder.stem.convs.0.",)),
            (r"^body\.encoder\.(\d+)\.(\d+)\.convs\.0\.", (r"encoder.stages.\1.blocks.\2.conv1.",)),
            (r"^body\.encoder\.(\d+)\.(\d+)\.convs\.1\.", (r"encoder.stages.\1.blocks.\2.conv2.",)),
            *(
                (rf"^body\.encoder\.{level}\.(\d+)\.shortcut\.", (rf"encoder.stages.{level}.blocks.\1.skip.{place}.",))
                for level, place in projections
            ),
            (r"^body\.encoder\.(\d+)\.(\d+)\.", (r"encoder.stages.\1.0.convs.\2.",)),
            (r"^body\.decoder\.(\d+)\.(\d+)\.", (r"decoder.stages.\1.convs.\2.",)),
            (r"^body\.up\.", ("decoder.transpconvs.",)),
            (r"^body\.heads\.", ("decoder.seg_layers.",)),
            (r"^(\w+\.st.*)\.0\.(weight|bias)$", (r"\1.conv.\2", r"\1.all_modules.0.\2")),
            (r"^(\w+\.st(?!.*\.all_modules\.).*)\.1\.(weight|bias)$", (r"\1.norm.\2", r"\1.all_modules.1.\2")),
            (r"^encoder\.", ("encoder.", "decoder.encoder.")),
        ),
    )
