"""Names of ResNet weights in other libraries, as plain rules that a detector's key map takes in.

timm's names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`); detectron2 calls the stages
`res2` to `res5`, keeps each norm inside its convolution and calls the projection `shortcut`
(detectron2/modeling/backbone/resnet.py; tools/convert-torchvision-to-d2.py). Caffe2's MSRA files
(`res2_0_branch2a_w`) are another network (the stride is in the first 1x1 convolution, images are BGR) and not taken.

torchvision is BSD-3-Clause, detectron2 Apache-2.0; ResNet is arXiv 1512.03385. Only names of weights are here.

    key_maps = (KeyMap("detrex", marker=..., rules=(*detectron2_rules("backbone.", "backbone.body."), ...)), ...)
"""

from __future__ import annotations

import re

from vistrain.checkpoints import KeyMap

Rules = tuple[tuple[str, str], ...]

# What checkpoints carry and a dense backbone does not: the classifier, and counters that nothing reads.
CLASSIFIER = (r"(^|\.)(stem\.)?fc\.(weight|bias)$",)
COUNTERS = (r"\.num_batches_tracked$",)


def torchvision_rules(prefix: str, body: str) -> Rules:
    """Rules for ResNets under torchvision's and timm's names.

    Args:
        prefix: of the foreign names (`backbone.0.body.` in DETR's code, `backbone.` in mmdetection's).
        body: of ours (`backbone.body.` in a detector).
    """
    return ((rf"^{re.escape(prefix)}(?=(conv1|bn1|layer[1-4])\.)", body),)


def detectron2_rules(prefix: str, body: str) -> Rules:
    """Rules for ResNets under detectron2's names; arguments as in `torchvision_rules`."""
    foreign, stage = re.escape(prefix), rf"^({re.escape(body)}layer\d\.\d+)"
    return (
        (rf"^{foreign}stem\.conv1\.norm\.", f"{body}bn1."),
        (rf"^{foreign}stem\.conv1\.", f"{body}conv1."),
        *((rf"^{foreign}res{i + 1}\.", f"{body}layer{i}.") for i in (1, 2, 3, 4)),
        (rf"{stage}\.conv(\d)\.norm\.", r"\1.bn\2."),
        (rf"{stage}\.shortcut\.norm\.", r"\1.downsample.1."),
        (rf"{stage}\.shortcut\.", r"\1.downsample.0."),
    )


def detectron2_exports(prefix: str, body: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The inverse of `detectron2_rules`, in the form of `KeyMap.exports`."""
    ours, stage = re.escape(body), rf"^({re.escape(prefix)}res\d\.\d+)"
    return (
        (rf"^{ours}bn1\.", (f"{prefix}stem.conv1.norm.",)),
        (rf"^{ours}conv1\.", (f"{prefix}stem.conv1.",)),
        *((rf"^{ours}layer{i}\.", (f"{prefix}res{i + 1}.",)) for i in (1, 2, 3, 4)),
        (rf"{stage}\.bn(\d)\.", (r"\1.conv\2.norm.",)),
        (rf"{stage}\.downsample\.1\.", (r"\1.shortcut.norm.",)),
        (rf"{stage}\.downsample\.0\.", (r"\1.shortcut.",)),
    )


# Files that hold a ResNet alone; torchvision's need no map.
DETECTRON2 = KeyMap(
    name="detectron2",
    marker=r"^res2\.0\.conv1\.norm\.weight$",
    rules=detectron2_rules("", ""),
    drop=(*CLASSIFIER, *COUNTERS),
    exports=detectron2_exports("", ""),
)
