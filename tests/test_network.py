"""What a network may say of itself is written once: misspelt names are refused, constructors inherit parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistrain import contract
from vistrain.backbones import Backbone
from vistrain.classification import Classifier
from vistrain.contract import Contract, constructor
from vistrain.detection import DINO, DeformableDETR, FocusDETR
from vistrain.network import Network
from vistrain.restoration import RestorationModel, Restorer, SwinIR


class Mean(Network):
    """The least that a network is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": self.layer(batch["image"].mean((2, 3))).sum()}

    def predict(self, batch: Mapping[str, Any]) -> list[Any]:
        return list(self.layer(batch["image"].mean((2, 3))))


def test_a_network_need_not_say_anything() -> None:
    model = Mean()
    assert (model.labels, model.channels, model.compiled_parts) == (None, 3, ("backbone",))
    assert (model.sharded_parts, model.key_maps, model.class_layers, model.scale_layers) == (None, (), (), ())
    assert (model.no_weight_decay(), model.layers_above()) == (set(), None)
    model.check_size(7, 9)
    model.check_size(7, 9, 11)
    model.on_step_end(1)


def test_a_network_must_train_and_predict() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Silent", (Network,), {})()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("key_map", "key_maps"),
        ("compiled_part", "compiled_parts"),
        ("class_layer", "class_layers"),
        ("on_steps_end", "on_step_end"),
        ("preprocesing", "preprocessing"),
    ],
)
def test_a_misspelt_name_is_refused_at_the_class_and_at_the_object(name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: did you mean '{meant}'"):
        type("Misspelt", (Mean,), {name: ()})
    with pytest.raises(TypeError, match=f"{name}: did you mean '{meant}'"):
        setattr(Mean(), name, ())


def test_other_names_are_free() -> None:
    model = Mean()
    for name in ("loss", "classes", "scale", "tile", "head", "criteria", "_key_map", "matcher"):
        setattr(model, name, None)


def test_parts_have_contracts_of_their_own() -> None:
    with pytest.raises(TypeError, match=r"least_paddings: did you mean 'least_padding'\? \(Restorer has that\)"):
        type("Misspelt", (Restorer,), {"least_paddings": 1})
    with pytest.raises(TypeError, match="did you mean 'wanted_strides'"):
        Backbone("test_resnet", strides=(8,)).wanted_stride = (8,)


def test_a_name_is_compared_with_the_offered_ones_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr("vistrain.contract.difflib.get_close_matches", lambda name, *_: compared.append(name) or [])
    contract._near.cache_clear()
    for _ in range(3):
        Mean().seen = 1
    assert compared.count("seen") == 1
    contract._near.cache_clear()


def test_constructors_have_what_their_bases_have() -> None:
    parameters, hints = constructor(FocusDETR)
    assert not {"base", "shared_heads", "spare_label"} & set(parameters)
    assert parameters["num_queries"].default == constructor(DINO)[0]["num_queries"].default == 900
    assert (parameters["clip_boxes"].default, constructor(DINO)[0]["clip_boxes"].default) == (True, False)
    assert hints["aux_loss"] is bool
    assert set(constructor(DeformableDETR)[0]) >= {"backbone", "labels", "matcher", "denoising", "two_stage"}
    assert "multiple" not in constructor(SwinIR)[0]
    with pytest.raises(TypeError, match="no_such"):
        SwinIR(no_such=1)
    with pytest.raises(TypeError, match="multiple values"):
        SwinIR(multiple=3)


def test_a_contract_with_a_base_parameter_that_is_set() -> None:
    class Base(Contract):
        def __init__(self, size: int, kind: str = "a", deep: bool = False) -> None:
            self.arguments = (size, kind, deep)

    class Fixed(Base):
        sets_itself = ("kind",)

        def __init__(self, own: float = 0.5, deep: bool = True, **base: Any) -> None:
            super().__init__(kind="b", deep=deep, **base)

    parameters, hints = constructor(Fixed)
    assert list(parameters) == ["size", "own", "deep"]
    assert (hints["size"], hints["deep"], parameters["deep"].default) == (int, bool, True)
    assert Fixed(size=3).arguments == (3, "b", True)


def test_layers_are_the_backbones() -> None:
    model = RestorationModel(SwinIR(img_size=8, window_size=4, embed_dim=12, depths=(1,), num_heads=(2,)))
    assert model.layers_above() is None
    assert issubclass(Classifier, Network)
    assert model.entrances == ("losses", "predict")
    assert Classifier.entrances == ("losses", "predict", "features")
    assert torch.is_tensor(model(torch.rand(1, 3, 9, 9)))
