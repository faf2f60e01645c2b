"""Which parameters are hidden weights: matrices, and kernels of convolutions, that Muon's orthogonal steps are for."""

from __future__ import annotations

import re

from torch import nn

from vistrain.network import Network


def hidden_weights(model: Network) -> set[str]:
    """Names of the weight matrices and convolution kernels between input and output.

    As Muon's author advises (Jordan et al. 2024, kellerjordan.github.io/posts/muon), all else is left to AdamW:
    whatever has one dimension, embeddings, what the network's authors exempt from weight decay (position tables,
    tokens), the layers that see the image, and the heads: layers whose shape depends on the classes. A network without
    classes names no heads.
    """
    apart = model.no_weight_decay()
    ends = [re.compile(pattern) for pattern in (*model.class_layers, *model.input_layers)]
    first = next((name for name, module in model.named_modules() if isinstance(module, _CONVOLUTIONS)), "")
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and name not in apart
        and id(parameter) not in tables
        and name != f"{first}.weight"
        and not any(pattern.search(name) for pattern in ends)
    }


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
