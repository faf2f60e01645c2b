"""CroCo's stereo and flow networks: two steps, resumed to the bit; tiles, likelihoods, weights, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from vistrain.errors import ConfigError, DataError, WeightsError
from vistrain.pretraining import CroCo, CroCoMatcher
from vistrain.pretraining.croco_matching import laplace_losses

SIZES: dict[str, Any] = {
    "dim": 32, "depth": 2, "heads": 2, "decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2,
}  # fmt: skip


def matcher(**more: Any) -> CroCoMatcher:
    small = {"hooks": (0, 1, 2, 3), "widths": (4, 8, 8, 8), "head_width": 8, "image_size": (32, 48), "patch": 16}
    return CroCoMatcher(**(small | SIZES | more))


def pair(height: int = 32, width: int = 48, axes: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 2, 3, height, width), generator=generator, dtype=torch.uint8)
    truth = torch.full((axes, height, width), 3.0)
    truth[:, :, :5] = torch.nan  # not known
    sizes = torch.tensor([[height, width]] * 2)
    return {
        "image": images[0], "views": images[1:], "size": sizes, "id": ["a", "b"],
        "target": [{"flow" if axes == 2 else "disparity": truth}] * 2,
    }  # fmt: skip


def step(network: CroCoMatcher, optimizer: torch.optim.Optimizer, axes: int) -> float:
    loss = network.losses(pair(axes=axes))["loss_displacement"]
    optimizer.zero_grad()
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(("finds", "axes"), [("disparity", 1), ("flow", 2)])
def test_steps_and_what_a_checkpoint_holds(finds: str, axes: int) -> None:
    torch.manual_seed(0)
    network = matcher(finds=finds)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    first = step(network, optimizer, axes)
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    assert step(network, optimizer, axes) < first
    other = matcher(finds=finds)
    again = torch.optim.AdamW(other.parameters(), lr=1e-3)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    step(other, again, axes)
    assert [n for n, v in network.state_dict().items() if not torch.equal(v, other.state_dict()[n])] == []
    assert network.predict(pair(axes=axes))[1].field.shape == (axes, 32, 48)


def test_larger_images_are_cut_into_tiles_and_smaller_ones_extended() -> None:
    network = matcher(tile_overlap=0.5).eval()
    covered = torch.zeros(40, 100)
    for rows, columns in network.tiles(40, 100):
        covered[rows, columns] += 1
        assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 48)
    assert covered.min() >= 1
    assert network.predict(pair(40, 100))[0].field.shape == (1, 40, 100)
    assert network.predict(pair(20, 48))[0].field.shape == (1, 20, 48)
    one = pair()
    images, others = network.pair(one)
    torch.testing.assert_close(network.predict(one)[0].field, network.match(images, others)[0][0])


def test_the_likelihood_is_that_of_a_laplace_distribution() -> None:
    found, truth = torch.tensor([1.0, 4.0]).view(1, 2, 1, 1), torch.tensor([2.0, 2.0]).view(1, 2, 1, 1)
    scale = torch.full((1, 1, 1), 0.3)
    known = torch.distributions.Laplace(found, scale.exp()[:, None].expand_as(found))
    torch.testing.assert_close(laplace_losses(found, scale, truth), -known.log_prob(truth).sum(1))


def test_a_matcher_starts_from_a_croco(tmp_path: Path) -> None:
    source = CroCo((32, 48), 16, **SIZES)
    torch.save({"state_dict": {f"model.{n}": v for n, v in source.state_dict().items()}}, tmp_path / "croco.ckpt")
    network = matcher(pretrained=str(tmp_path / "croco.ckpt"))
    own = network.state_dict()
    taken = [name for name in source.state_dict() if name in own]
    assert len(taken) == len([name for name in own if not name.startswith("head.")])
    assert all(torch.equal(source.state_dict()[name], own[name]) for name in taken)
    torch.save({"state_dict": {"model.decoder.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"other.ckpt: has no .* weights of encoder and decoder - is it a CroCo's"):
        matcher(pretrained=str(tmp_path / "other.ckpt"))
    with pytest.raises(ConfigError, match=r"^model\.pretrained: .* - name a checkpoint file"):
        matcher(pretrained=True)
    matcher(pretrained=False)
    with pytest.raises(WeightsError, match=r"croco.ckpt: .* is \[.*\], here"):
        matcher(pretrained=str(tmp_path / "croco.ckpt"), decoder_dim=32)


def test_what_cannot_be_is_refused() -> None:
    given = pair()
    given["views"] = given["views"][..., :32]
    with pytest.raises(DataError, match=r"the first image is 32x48, the second 32x32"):
        matcher().losses(given)
    del given["views"]
    with pytest.raises(ConfigError, match="gives no second image"):
        matcher().losses(given)
    with pytest.raises(ConfigError, match=r"model.hooks: \[\] of 4 blocks"):
        matcher(hooks=())
