"""Boxes, position encodings, padding and deformable sampling."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from vistrain.errors import ConfigError
from vistrain.layers.boxes import cxcywh_to_xyxy, giou, inverse_sigmoid, iou_and_union, xyxy_to_cxcywh
from vistrain.layers.deformable import MSDeformAttn, _bags, choose_core, deformable_sampling
from vistrain.layers.padding import Normalize, extend, padding_mask, resize_mask
from vistrain.layers.position import SinePositionEncoding, sine_embedding
from vistrain.layers.tiling import tiles_of
from vistrain.structures import Preprocessing


def boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2)
    return torch.cat((corners, corners + torch.rand(count, 2) + 0.01), 1)


# ---------------------------------------------------------------- boxes


def test_layouts_are_inverse() -> None:
    torch.manual_seed(0)
    xyxy = boxes(20)
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(xyxy)), xyxy)
    assert xyxy_to_cxcywh(torch.tensor([0.0, 0.0, 4.0, 2.0])).tolist() == [2.0, 1.0, 4.0, 2.0]


def test_giou_is_torchvisions_and_eps_enters_both_denominators() -> None:
    torch.manual_seed(0)
    a, b = boxes(5), boxes(7)
    torch.testing.assert_close(giou(a[:, None], b[None]), generalized_box_iou(a, b))
    one, far = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0, 1.0])
    assert giou(one, far, eps=0.5).item() == pytest.approx(0 / 2.5 - (3 - 2) / 3.5)
    assert giou(one, one, eps=0.5).item() == pytest.approx(1 / 1.5 - 0)
    point = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert iou_and_union(point, one)[0].item() == 0
    assert math.isfinite(giou(point, point, eps=1e-6).item())


def test_inverse_sigmoid_is_clamped_by_its_eps() -> None:
    x = torch.tensor([-0.1, 0.0, 0.3, 1.0, 1.2])
    torch.testing.assert_close(inverse_sigmoid(x)[2], torch.logit(x[2]))
    for eps in (1e-5, 1e-3):
        limit = -math.log(eps)
        expected = torch.tensor([-limit, -limit, limit, limit])
        torch.testing.assert_close(inverse_sigmoid(x, eps)[[0, 1, 3, 4]], expected, rtol=1e-4, atol=0)


# ---------------------------------------------------------------- positions


def test_sine_embedding_interleaves_sines_and_cosines() -> None:
    x = torch.tensor([[0.5, 2.0]])
    out = sine_embedding(x, 4, temperature=100.0)
    expected = [f(v / 100.0 ** (k / 2)) for v in (0.5, 2.0) for k in (0, 1) for f in (math.sin, math.cos)]
    torch.testing.assert_close(out, torch.tensor([expected]))


@pytest.mark.parametrize("order", ["yx", "xy"])
@pytest.mark.parametrize(("normalize", "offset"), [(True, -0.5), (True, 0.0), (False, 0.0)])
def test_positions_without_a_mask_are_those_of_an_empty_mask(order: str, normalize: bool, offset: float) -> None:
    encoding = SinePositionEncoding(8, 20.0, normalize, offset, order=order)
    empty = torch.zeros(2, 3, 5, dtype=torch.bool)
    with_mask, without = encoding((3, 5), empty), encoding((3, 5), None)
    assert without.shape == (1, 15, 16)
    torch.testing.assert_close(without.expand(2, -1, -1), with_mask)


def test_positions_follow_the_unpadded_extent() -> None:
    encoding = SinePositionEncoding(8)
    mask = padding_mask(torch.tensor([[3, 4]]), 5, 7)
    padded = encoding((5, 7), mask).unflatten(1, (5, 7))[:, :3, :4]
    torch.testing.assert_close(padded, encoding((3, 4), None).unflatten(1, (3, 4)))
    rows, columns = encoding((3, 4), None).unflatten(1, (3, 4)).chunk(2, -1)
    assert torch.equal(rows[:, :, 0], rows[:, :, 1])  # y first: the first half does not depend on x
    assert torch.equal(columns[:, 0], columns[:, 1])


# ---------------------------------------------------------------- padding


def test_normalize_sets_padding_back_to_zero() -> None:
    images = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    images[0], images[1, :, :2, :3] = 255, 51
    pixels, mask = Normalize(Preprocessing())(images, torch.tensor([[4, 6], [2, 3]]))
    assert pixels.dtype == torch.float32
    assert mask[1].sum() == 4 * 6 - 2 * 3
    assert not mask[0].any()
    assert (pixels[1][:, mask[1]] == 0).all()
    assert pixels[1, 0, 0, 0].item() == pytest.approx((0.2 - 0.485) / 0.229, abs=1e-6)


def test_normalize_takes_other_types_and_turns_channels() -> None:
    size = torch.tensor([[2, 2]])
    image = torch.tensor([0.2, 0.4, 0.6])[None, :, None, None].expand(1, 3, 2, 2)
    rgb = Normalize(Preprocessing())(image, size)[0]
    sixteen = (image * 65535).round().to(torch.uint16)
    torch.testing.assert_close(Normalize(Preprocessing())(sixteen, size)[0], rgb, rtol=0, atol=1e-4)
    flat = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), channel_order="bgr")
    assert Normalize(flat)(image, size)[0][0, :, 0, 0].tolist() == pytest.approx([0.6, 0.4, 0.2])
    assert not Normalize(Preprocessing()).state_dict()


def test_padding_of_volumes() -> None:
    """The same as of images: the mask, the normalised values, and extending, side by side."""
    size = torch.tensor([[2, 3, 4], [3, 1, 5]])
    volumes = torch.randint(0, 256, (2, 3, 3, 4, 5), dtype=torch.uint8)
    mask = padding_mask(size, 3, 4, 5)
    for one, sides in zip(mask, size.tolist(), strict=True):
        inside = np.ix_(*(range(n) for n in sides))
        assert not one[inside].any()
        assert (~one).sum() == np.prod(sides)
    pixels, found = Normalize(Preprocessing())(volumes, size)
    assert torch.equal(found, mask)
    for depth in range(3):  # a slice is what the image would be
        inside = (depth < size[:, 0]).long()[:, None] * size[:, 1:]
        plane, _ = Normalize(Preprocessing())(volumes[:, :, depth], inside)
        assert torch.equal(pixels[:, :, depth], plane)
    small = resize_mask(mask, (3, 2, 5))
    assert small.shape == (2, 3, 2, 5)
    assert torch.equal(small, mask[:, :, ::2])


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "edge", "zeros"])
def test_volumes_are_extended_as_numpy_pads_them(mode: str) -> None:
    volume = torch.rand(2, 3, 4, 5)
    numpys = {"mode": "constant" if mode == "zeros" else mode}
    for back, bottom, right in ((0, 0, 0), (1, 0, 2), (7, 3, 11)):
        expected = np.pad(volume.numpy(), ((0, 0), (0, back), (0, bottom), (0, right)), **numpys)
        assert np.array_equal(extend(volume, back, bottom, right, mode=mode).numpy(), expected)


# ---------------------------------------------------------------- deformable sampling

SHAPES = [(5, 7), (3, 4), (1, 2), (1, 1)]


def sampling_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    extents = torch.tensor([(w, h) for h, w in SHAPES])[:, None]
    points = (torch.rand(2, 6, 2, len(SHAPES), 3, 2, dtype=dtype) * 1.6 - 0.3) * extents - 0.5
    points[0, 0, 0, :, 0], points[0, 1, 0, :, 1] = 1e6, -1e6
    points[0, 2, 0, :, 2] = 0.0  # on a pixel's centre, where the neighbours' weights switch
    value = torch.randn(2, sum(h * w for h, w in SHAPES), 2, 4, dtype=dtype)
    weights = torch.rand(points.shape[:-1], dtype=dtype)
    return value, points, weights


@pytest.mark.parametrize("core", ["embedding_bag", "gather"])
def test_cores_agree_with_grid_sample(core: str) -> None:
    value, points, weights = sampling_inputs(torch.float32)
    expected = deformable_sampling(value, SHAPES, points, weights, "grid_sample")
    ours = deformable_sampling(value, SHAPES, points, weights, core)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("core", ["embedding_bag", "gather"])
def test_gradients_of_cores_agree(core: str) -> None:
    gradients = []
    for name in ("grid_sample", core):
        inputs = [x.requires_grad_() for x in sampling_inputs(torch.float64)]
        # grid_sample's own coordinates round differently on a pixel's centre; there any one-sided slope is right
        out = deformable_sampling(inputs[0], SHAPES, inputs[1] + 1e-9, inputs[2], name)
        gradients.append(torch.autograd.grad((out * torch.arange(8)).sum(), inputs))
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_gradients_of_bags_are_torchs_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(5, (40, 6), generator=generator, dtype=torch.int32)  # rows 5 to 7 are never read
    rows, weights = torch.randn(8, 4, generator=generator), torch.randn(40, 6, generator=generator)
    gradients = []
    for bags in (_bags, lambda i, r, w: F.embedding_bag(i, r, per_sample_weights=w, mode="sum")):
        inputs = rows.clone().requires_grad_(), weights.clone().requires_grad_()
        gradients.append(torch.autograd.grad((bags(index, *inputs) * torch.arange(4)).sum(), inputs))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("core", ["grid_sample", "embedding_bag", "gather"])
def test_diverged_points_give_nan_and_no_crash(core: str) -> None:
    value, points, weights = sampling_inputs(torch.float32)
    points[0, 3], weights[0, 3] = math.nan, math.nan
    out = deformable_sampling(value, SHAPES, points, weights, core)
    assert out[0, 3].isnan().all()
    assert out[1].isfinite().all()


def test_attention_starts_as_the_authors_do_and_refuses_odd_sizes() -> None:
    module = MSDeformAttn(32, 4, 2, 3)
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    assert offsets[0, 1].tolist() == [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    torch.testing.assert_close(offsets[1, 0, 0], torch.tensor([0.0, 1.0]))
    assert not module.sampling_offsets.weight.any()
    with pytest.raises(ConfigError, match="heads"):
        MSDeformAttn(30, 4)
    with pytest.raises(ConfigError, match="core"):
        MSDeformAttn(32, 4, core="cuda")


def test_the_rule_for_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_core(torch.device("cpu"), needs_grad=False) == "embedding_bag"
    assert choose_core(torch.device("cuda"), needs_grad=True) == "grid_sample"
    assert choose_core(torch.device("cpu"), needs_grad=True) == "embedding_bag"
    assert choose_core(torch.device("cpu"), needs_grad=True, depth=8) == "grid_sample"
    assert choose_core(torch.device("cpu"), needs_grad=False, depth=8) == "embedding_bag"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    sizes = [(sums, depth) for sums in (4800, 102400) for depth in (8, 32)]
    found = {size: choose_core(torch.device("cpu"), True, *size) for size in sizes}
    assert found.pop((4800, 32)) == "embedding_bag"
    assert set(found.values()) == {"gather"}
    assert choose_core(torch.device("cuda"), needs_grad=True, sums=4800) == "gather"


def test_very_many_tiles_are_told_before_they_are_computed(caplog: pytest.LogCaptureFixture) -> None:
    assert len(tiles_of(100, 100, 1, 0)) == 10_000
    assert not caplog.text
    assert len(tiles_of(101, 100, 1, 0)) == 10_100
    assert caplog.text.count("an image of 101 x 100 pixels is cut into 10100 tiles") == 1
