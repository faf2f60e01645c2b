"""Full-size weights of the authors and of detrex fit the R50 model name by name, shape by shape."""

import pytest
import torch

from parity import fixtures
from parity.models import contiguous
from vistrain.backbones import Backbone
from vistrain.checkpoints import load_weights
from vistrain.detection import DeformableDETR
from vistrain.devices import on_meta
from vistrain.errors import WeightsError
from vistrain.structures import LabelSpace

FORMS = {"": {}, "_refine": {"box_refinement": True}, "_two_stage": {"box_refinement": True, "two_stage": True}}
LISTS = {
    "official_defdetr": "",
    "official_defdetr_refine": "_refine",
    "official_defdetr_ts": "_two_stage",
    "deformable_detr_detrex": "",
    "deformable_detr_refine_detrex": "_refine",
    "deformable_detr_two_stage_detrex": "_two_stage",
}


def r50(form: str, labels: LabelSpace) -> DeformableDETR:
    """The R50 model without storage."""
    with on_meta():
        backbone = Backbone("resnet50", strides=(8, 16, 32), freeze_at_stride=4, frozen_norm=True)
        return DeformableDETR(backbone, labels, **FORMS[form])


def weights(name: str) -> tuple[dict[str, torch.Tensor], int]:
    """A full-size state dict of zeros that take no memory, and the number of parameters."""
    content = fixtures.load(f"dense/keys/{name}.json")
    return {k: torch.zeros(()).expand(shape) for k, shape in content["state_dict"].items()}, content["params"]


@pytest.mark.filterwarnings("ignore:for .*:UserWarning")  # torch says that loading into nothing does nothing
@pytest.mark.parametrize(("name", "form"), LISTS.items())
def test_full_size_names(name: str, form: str) -> None:
    state, count = weights(name)
    classes = state["class_embed.0.bias"].shape[0]
    ids = tuple(range(1, 91)) if classes == 91 else tuple(range(80))
    labels = LabelSpace(tuple(f"class {i}" for i in ids), ids, "coco_ids" if classes == 91 else "contiguous")
    assert labels.num_classes == classes
    model = r50(form, labels)
    assert sum(p.numel() for p in model.parameters()) == count
    report = load_weights(model, {"model": state}, key_maps=model.key_maps, class_layers=model.class_layers)
    assert report.loaded == len(model.state_dict())
    assert not report.left_out
    naming = next(key_map for key_map in model.key_maps if key_map.name == report.key_map)
    exported = naming.export(model.state_dict())
    kept = {key: value.shape for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert {key: value.shape for key, value in exported.items()} == kept


@pytest.mark.filterwarnings("ignore:for .*:UserWarning")
def test_another_label_space_leaves_out_the_class_layers_alone() -> None:
    state, _ = weights("official_defdetr_ts")
    model = r50("_two_stage", contiguous(3))
    report = load_weights(model, state, key_maps=model.key_maps, class_layers=model.class_layers)
    assert {item.name.split(".")[0] for item in report.left_out} == {"class_embed"}
    assert len(report.left_out) == 14


def test_weights_of_another_form_are_refused() -> None:
    state, _ = weights("official_defdetr_ts")
    with pytest.raises(WeightsError, match="reference_points"):
        load_weights(r50("_refine", contiguous(91)), state, key_maps=DeformableDETR.key_maps)
