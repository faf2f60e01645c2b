"""CAS-ViT against its authors' code."""

import pytest
import torch

from parity import fixtures
from parity.backbones import assert_classifies, assert_dense, constructor, is_dense
from vistrain.backbones.casvit import DENSE, CASViT, checkpoint_filter_fn


@pytest.mark.parametrize("name", sorted({"backbones/casvit_cls.pt", *fixtures.names("backbones/casvit*.pt")}))
def test_outputs(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = constructor(fixture, "fork_feat", "distillation", "downsamples", "norm_layer", "act_layer")
    if is_dense(fixture, "norm0"):
        arguments.pop("num_classes", None)
        assert_dense("casvit_t", arguments, 1e-5, DENSE, fixture, output_norm="batch")
        return
    two = "dist_head.weight" in fixture["state_dict"]
    for distillation in {two, False}:  # two classifiers, or one that answers with their mean
        model = CASViT(**arguments, distillation=distillation)
        assert_classifies(model, fixture["state_dict"], checkpoint_filter_fn, fixture)


def test_a_teacher_gets_answers_of_its_own() -> None:
    model = CASViT(layers=(1, 1, 1, 1), embed_dims=(8, 8, 8, 8), num_classes=3, distillation=True).train()
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, 3)
    model.set_distilled_training(True)
    assert [x.shape for x in model(images)] == [(2, 3)] * 2
    assert model.eval()(images).shape == (2, 3)
