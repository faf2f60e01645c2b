"""A training step of MAE against `transformers`' ViTMAE: same weights, same images, same masks, in turns.

    pip install --target SOMEWHERE --no-deps transformers huggingface_hub tokenizers safetensors regex
    python tools/benchmark_pretraining.py --transformers SOMEWHERE --output runs/benchmarks

Checks first that both sides compute the same loss, then measures forward and backward passes (processor time on one
thread), and the peak memory that each side needs on top of model and images, in a process of its own; and what the
encoder costs by the share of the patches that it is shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarking import alternate, medians, peak_mib, write
from torch import Tensor, nn

from vistrain.pretraining import MAE, PatchEncoder, TokenSplit
from vistrain.pretraining.token_masks import by_noise

SHARES = (0.25, 0.5, 1.0)
# Their names (of transformers 5) -> ours
NAMES = {
    "vit.embeddings.": "backbone.body.",
    "vit.layers.": "backbone.body.blocks.",
    "vit.layernorm.": "backbone.body.norm.",
    "patch_embeddings.projection": "patch_embed.proj",
    "position_embeddings": "pos_embed",
    "decoder.decoder_layers.": "decoder_blocks.",
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}


def sides_of(arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """Both implementations with equal weights."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"image_size": arguments.size, "num_hidden_layers": arguments.depth, "norm_pix_loss": True}
    torch.manual_seed(0)
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**sizes)).train()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    args = {"img_size": arguments.size, "depth": arguments.depth}
    ours = MAE(PatchEncoder("vit_base_patch16_224.mae", args=args)).train()
    # `transformers` has 1e-12 in the norms of its configuration
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = theirs.config.layer_norm_eps
    ours.load_state_dict({**ours.state_dict(), **renamed(theirs.state_dict())})
    return {"transformers": theirs, "ours": ours}


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under our names."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        found[name.removeprefix("decoder.")] = value
    for key in [key for key in found if ".attention.q_proj." in key]:
        parts = [found.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[key.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return found


def step_of(side: str, model: nn.Module, images: Tensor, noise: Tensor) -> Callable[[], float]:
    """A forward and a backward pass; the loss comes back."""

    def step() -> float:
        model.zero_grad(set_to_none=True)
        if side == "ours":
            assert isinstance(model, MAE)
            split = TokenSplit(by_noise(noise), model.masking.kept(noise.shape[1]))
            loss = model.learn(images, split, {})["loss_pixels"]
        else:
            loss = model(pixel_values=images, noise=noise).loss
        loss.backward()
        return loss.item()

    return step


def encoder_shares(model: MAE, images: Tensor, repeats: int) -> dict[str, float]:
    """Seconds of the encoder's forward pass by the share of the patches that it is shown, as parts of the whole's."""
    tokens = images.shape[-1] // 16 * (images.shape[-2] // 16)
    order = torch.arange(tokens).expand(len(images), -1)

    def run(share: float) -> Callable[[], Tensor]:
        return lambda: model.backbone(images, order[:, : int(tokens * share)])

    with torch.no_grad():
        seconds = medians(alternate({str(s): run(s) for s in SHARES}, repeats, clock=time.process_time))
    return {f"encoder, {share} shown": seconds[str(share)] / seconds["1.0"] for share in SHARES}


def peak_memory(arguments: argparse.Namespace, side: str) -> float:
    """MiB that a process needs for one step on top of model and images."""
    command = [sys.executable, __file__, "--memory-of", side, "--transformers", str(arguments.transformers)]
    command += [f"--{key}={getattr(arguments, key)}" for key in ("size", "batch", "depth")]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    """Checks, measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", type=Path, help="folder that it was installed to, if it is elsewhere")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--memory-of", choices=("transformers", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.transformers:
        sys.path.append(str(arguments.transformers))
    torch.set_num_threads(1)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    noise = torch.rand(arguments.batch, (arguments.size // 16) ** 2)
    sides = sides_of(arguments)
    steps = {side: step_of(side, model, images, noise) for side, model in sides.items()}
    if arguments.memory_of:
        step = steps[arguments.memory_of]
        step()  # gradients, and what libraries load
        print(peak_mib(step))
        return
    losses = {side: step() for side, step in steps.items()}
    difference = abs(losses["ours"] / losses["transformers"] - 1)
    assert difference < 1e-5, losses
    seconds = medians(alternate(steps, arguments.repeats, clock=time.process_time))
    memory = {side: peak_memory(arguments, side) for side in sides}
    ours: Any = sides["ours"]
    ratios = {
        "step, speed": seconds["transformers"] / seconds["ours"],
        "step, peak memory, share": memory["ours"] / memory["transformers"],
        **encoder_shares(ours, images, arguments.repeats),
    }
    for what, value in ratios.items():
        print(f"{what:30s} {value:.3f}")
    content = {"losses": losses, "seconds": seconds, "peak_memory_mib": memory, "images": list(images.shape)}
    print(json.dumps(content))
    title = "MAE's step against transformers', float32, one thread"
    write(arguments.output, "pretraining", content | {"ratios": ratios}, ratios, title)


if __name__ == "__main__":
    main()
