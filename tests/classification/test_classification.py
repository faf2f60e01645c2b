"""The classifier: losses and mixing held against timm, distillation, probes, weights, and whole runs."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.mixup import Mixup
from timm.loss import AsymmetricLossMultiLabel, BinaryCrossEntropy, LabelSmoothingCrossEntropy
from torch import nn

import vistrain
from vistrain import config, losses, run
from vistrain.backbones.timm_model import TimmModel
from vistrain.checkpoints import load_weights
from vistrain.classification import BatchAugment, Classifier, Distillation
from vistrain.cli import main
from vistrain.devices import on_meta
from vistrain.errors import ConfigError, WeightsError
from vistrain.layers.seeding import seeded
from vistrain.optim import ParameterGroups
from vistrain.structures import Factory, LabelSpace, Preprocessing
from vistrain.tasks.classification.task import most_confused, vote

LABELS = LabelSpace(("ant", "bee", "cat"), (0, 1, 2))


def classifier(name: str = "test_resnet", labels: LabelSpace = LABELS, **arguments) -> Classifier:
    torch.manual_seed(0)
    parts = {k: arguments.pop(k) for k in ("pretrained", "trainable_blocks", "args") if k in arguments}
    return Classifier(TimmModel(name, labels, **parts), labels, **arguments)


def batch(count: int = 4, side: int = 32, many: bool = False) -> dict:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (count,), generator=generator)
    if many:
        labels = (torch.rand(count, 3, generator=generator) > 0.5).long()
    return {
        "image": torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8),
        "size": torch.tensor([[side, side]] * count),
        "labels": labels,
    }


# ------------------------------------------------------------------ losses and mixing


def test_losses_are_timms():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 7), torch.randint(0, 7, (5,))
    dense = nn.functional.one_hot(labels, 7).float()
    wanted = LabelSmoothingCrossEntropy(0.1)(logits, labels)
    torch.testing.assert_close(losses.SoftCrossEntropy(0.1)(logits, dense), wanted)
    for smoothing, threshold, summed in ((0.1, None, False), (0.0, 0.2, True), (0.3, 0.2, False)):
        wanted = BinaryCrossEntropy(smoothing, threshold, sum_classes=summed)(logits, labels)
        found = losses.BinaryCrossEntropy(smoothing, threshold, sum_classes=summed)(logits, dense)
        torch.testing.assert_close(found, wanted)
    many = (torch.rand(5, 7) > 0.6).float()
    wanted = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)(logits, many)
    torch.testing.assert_close(losses.AsymmetricLoss()(logits, many), wanted)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixing_is_timms(mode):
    torch.manual_seed(3)
    images, labels = torch.randn(6, 3, 16, 16), torch.randint(0, 3, (6,))
    dense = nn.functional.one_hot(labels, 3).float()
    seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(11)))
    with seeded(seed):
        theirs, targets = Mixup(0.8, 1.0, mode=mode, label_smoothing=0.0, num_classes=3)(images.clone(), labels)
    torch.manual_seed(11)
    found, mixed = BatchAugment(mixup=0.8, cutmix=1.0, mode=mode)(images.clone(), dense)
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(mixed, targets, atol=1e-6, rtol=1e-5)


def test_erasing_and_mixing_follow_torchs_seed_and_leave_other_generators():
    augment = BatchAugment(mixup=0.2, cutmix=1.0, erasing=0.5)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(augment(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.eye(4)))
    torch.testing.assert_close(results[0], results[1])
    assert np.array_equal(before, np.random.get_state()[1])


def test_an_odd_batch_cannot_be_mixed():
    with pytest.raises(ConfigError, match=r"data.per_device: Mixup and CutMix pair the images .*, and 3 is odd"):
        classifier(augment=BatchAugment(mixup=0.8)).losses(batch(3))


# ------------------------------------------------------------------ the network


def test_losses_reach_every_parameter_and_predictions_are_probabilities():
    model = classifier(augment=BatchAugment(mixup=0.8, cutmix=1.0, erasing=0.3))
    found = model.losses(batch())
    assert set(found) == {"loss_class"}
    found["loss_class"].backward()
    assert all(p.grad is not None for p in model.parameters())
    scores = model.eval().predict(batch())
    assert len(scores) == 4
    torch.testing.assert_close(scores[0].scores.sum(), torch.tensor(1.0))


def test_many_labels():
    model = classifier(multi_label=True)
    assert model.losses(batch(many=True))["loss_class"].ndim == 0
    assert model.eval().predict(batch(many=True))[0].multi_label
    with pytest.raises(ConfigError, match=r"model.multi_label: is true, and the data has one class per image"):
        model.losses(batch())
    with pytest.raises(ConfigError, match=r"model.multi_label: is false, and the data has several"):
        classifier().losses(batch(many=True))
    with pytest.raises(ConfigError, match="cross-entropy wants one class per image"):
        classifier(multi_label=True, loss=losses.SoftCrossEntropy())


def test_the_linear_probe_trains_the_classifier_alone_and_moves_no_statistics():
    model = classifier(trainable_blocks=0).train()
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["backbone.body.fc.weight", "backbone.body.fc.bias"]
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.losses(batch())["loss_class"].backward()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    probe = classifier(trainable_blocks=0, probe_norm=True).train()
    probe.losses(batch())["loss_class"].backward()
    assert probe.probe_norm.running_mean.abs().sum() > 0
    assert probe.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_blocks_unfreeze_from_the_top():
    counts = []
    for blocks in (0, 1, 2, 3):
        model = classifier("test_vit", trainable_blocks=blocks)
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        counts.append(len(trainable))
        assert "backbone.body.head.weight" in trainable
        assert "backbone.body.pos_embed" not in trainable
    assert counts == sorted(set(counts))
    with pytest.raises(ConfigError, match=r"test_vit has .* blocks"):
        classifier("test_vit", trainable_blocks=99)


def test_no_decay_as_timm_has_it():
    model = classifier("test_vit")
    groups = ParameterGroups(no_decay_1d=True)(model, 1e-3, 0.05)
    undecayed = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    listed = model.backbone.body.no_weight_decay()
    for name, parameter in model.named_parameters():
        short = name.removeprefix("backbone.body.")
        assert (id(parameter) in undecayed) == (parameter.ndim <= 1 or short in listed), name


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "resnet10t"])
def test_any_timm_model_is_a_classifier_and_takes_its_own_weights(name, tmp_path):
    torch.manual_seed(4)
    source = timm.create_model(name, num_classes=3).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = classifier(name).eval()
    report = load_weights(model, tmp_path / "weights.pth", key_maps=model.key_maps, class_layers=model.class_layers)
    assert report.key_map == "timm"
    images = torch.randn(2, 3, 64, 64) if name != "test_vit" else torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(model(images), source(images))
    other = classifier(name, pretrained=str(tmp_path / "weights.pth")).eval()
    assert other.backbone.knows_classes
    torch.testing.assert_close(other(images), source(images))


def test_weights_for_other_classes_leave_the_classifier(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=11).state_dict(), tmp_path / "w.pth")
    model = classifier(pretrained=str(tmp_path / "w.pth"))
    assert not model.backbone.knows_classes
    assert model.backbone.body.fc.out_features == 3
    report = load_weights(model, tmp_path / "w.pth", key_maps=model.key_maps, class_layers=model.class_layers)
    assert [item.name for item in report.left_out] == ["backbone.body.fc.weight", "backbone.body.fc.bias"]
    vit = classifier("test_vit")
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(vit, tmp_path / "w.pth", key_maps=vit.key_maps, class_layers=vit.class_layers)


def test_names_and_arguments_are_checked():
    with pytest.raises(ConfigError, match=r"no backbone 'resnet5O'.*did you mean 'resnet50'"):
        classifier("resnet5O")
    with pytest.raises(ConfigError, match=r"args.drop_path_rat.*drop_path_rate"):
        classifier(args={"drop_path_rat": 0.1})
    with pytest.raises(ConfigError, match="a classifier needs at least one"):
        classifier(labels=LabelSpace((), ()))


def test_an_impossible_size_names_sizes():
    with pytest.raises(
        ConfigError, match=r"data.image_size: convit_tiny cannot take images of 200x200; it takes 224x224"
    ):
        classifier("convit_tiny").check_size(200, 200)
    classifier("convit_tiny").check_size(224, 224)
    classifier("test_vit").check_size(96, 96)
    with pytest.raises(ConfigError, match="cannot take images of 97x97; it takes 160x160, 96x96, 112x112"):
        classifier("test_vit").check_size(97, 97)


def test_the_evaluation_protocol_is_that_of_the_default_cfg():
    with on_meta():
        found = TimmModel("resnet50.a1_in1k", LABELS).preprocessing
        swin = TimmModel("swin_tiny_patch4_window7_224.ms_in1k", LABELS).preprocessing
    assert (found.input_size, found.crop_pct, found.test_size, found.test_crop_pct) == (
        (224, 224),
        0.95,
        (288, 288),
        1.0,
    )
    assert (swin.crop_pct, swin.interpolation, swin.test_size) == (0.9, "bicubic", None)
    assert Preprocessing.from_dict(found.to_dict()) == found


# ------------------------------------------------------------------ distillation


def teacher(tmp_path: Path, classes: int = 3, name: str = "test_resnet") -> Factory:
    torch.manual_seed(9)
    model = timm.create_model(name, num_classes=classes)
    torch.save(model.state_dict(), tmp_path / "teacher.pth")
    return Factory(TimmModel, name=name, labels=LABELS, pretrained=str(tmp_path / "teacher.pth"))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation(tmp_path, kind):
    made = teacher(tmp_path)
    model = classifier(distillation=Distillation(made, kind, 0.25, temperature=2.0)).eval()
    sample = batch()
    found = model.losses(sample)
    images, _ = model.normalize(sample["image"], sample["size"])
    answer, logits = made().eval()(images), model(images)
    wanted = nn.functional.cross_entropy(logits, answer.argmax(1))
    if kind == "soft":
        p, q = (answer / 2).softmax(1), (logits / 2).softmax(1)
        wanted = (p * (p / q).log()).sum(1).mean() * 4
    torch.testing.assert_close(found["loss_distill"], 0.25 * wanted)
    torch.testing.assert_close(found["loss_class"], 0.75 * nn.functional.cross_entropy(logits, sample["labels"]))
    assert not any("distill" in name or "teacher" in name for name in model.state_dict())
    assert copy.deepcopy(model).distillation is model.distillation  # an average of the student shares the teacher


def test_a_teacher_sees_images_its_own_way(tmp_path):
    from vistrain.classification.distillation import _renormalised

    images = torch.rand(2, 3, 4, 4)
    one, two = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), Preprocessing(channel_order="bgr")
    from vistrain.layers.padding import Normalize

    size = torch.tensor([[4, 4]] * 2)
    first, second = (Normalize(p)(images, size)[0] for p in (one, two))
    torch.testing.assert_close(_renormalised(first, one, two), second)


def test_a_teacher_of_other_classes_teaches_nothing(tmp_path):
    model = classifier(distillation=Distillation(teacher(tmp_path, 5)))
    with pytest.raises(ConfigError, match="no weights for the data's classes, so there is nothing to learn from it"):
        model.losses(batch())


def test_the_distillation_token_learns_from_the_teacher(tmp_path):
    labels = LABELS
    arguments = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    backbone = TimmModel("deit_tiny_distilled_patch16_224", labels, args=arguments)
    assert backbone.classifiers == ("head", "head_dist")
    model = Classifier(backbone, labels, distillation=Distillation(teacher(tmp_path))).train()
    found = model.losses(batch())
    grads = torch.autograd.grad(
        found["loss_class"], backbone.body.head_dist.weight, allow_unused=True, retain_graph=True
    )
    assert grads[0] is None
    found["loss_distill"].backward()
    assert backbone.body.head_dist.weight.grad is not None
    assert backbone.body.head.weight.grad is None
    assert len(model.eval().predict(batch())) == 4


# ------------------------------------------------------------------ neighbours


def test_neighbours_vote():
    bank = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    shares = vote(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), bank, torch.tensor([2, 2, 0]), 3, 2, 0.1)
    assert shares.argmax(1).tolist() == [2, 0]
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert vote(bank, bank, torch.tensor([2, 2, 0]), 3, 99, 0.1).shape == (3, 3)


def test_the_most_confused_classes_are_drawn():
    counts = np.diag([9, 9, 9, 9])
    counts[1, 3] = 4
    assert most_confused(counts, 2) == [1, 3]
    assert most_confused(counts, 4) == [0, 1, 2, 3]


# ------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def changes(root: Path, folder: Path, **more) -> dict:
    data = {"root": str(root), "train_images": 4, "val_images": 2, "batch_size": 8, "workers": 0, "image_size": 32}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "check_val_every_n_epoch": 1}
    model = {"backbone": {"name": "test_resnet"}}
    schedule = {"warmup_steps": 1}
    run = {"folder": str(folder)}
    return config.merge({"data": data, "trainer": trainer, "model": model, "schedule": schedule, "run": run}, more)


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = {"model": {"augment": {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25}}, "data": {"repeats": 2}}
    recipe = config.merge(recipe, {"data": {"augment": {"policy": "rand-m9-mstd0.5-inc1"}}})
    composed = config.compose(["vistrain:demo/classification"], changes=changes(data_root, folder, **recipe))
    assert run.fit(composed) == 0
    return folder


def test_a_run_leaves_its_numbers_and_pictures(finished):
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert {"val/cls/top1", "val/cls/top5", "val/cls/ece", "train/loss_class"} <= set(rows[-1])
    assert float(rows[-1]["val/cls/top1"]) >= 0
    for name in ("confusion.png", "first_batch.png", "eval/epoch_001.png", "best.ckpt"):
        assert (finished / name).is_file(), name
    report = json.loads((finished / "per_class.json").read_text())
    assert report["protocol"] == "accuracy"
    assert len(report["classes"]) == 10
    predictions = json.loads((finished / "predictions.json").read_text())
    assert len(predictions) == 20
    assert {"id", "target", "name", "top", "scores"} <= set(predictions[0])


def test_a_checkpoint_is_tested_and_predicts_alone(finished, data_root, tmp_path, capsys):
    assert main(["test", "--ckpt", str(finished / "best.ckpt")]) == 0
    assert "accuracy, 20 images" in capsys.readouterr().out
    image = next(data_root.rglob("val/dots/*.jpg"))
    command = ["predict", "--ckpt", str(finished / "best.ckpt"), "--input", str(image), "--output", str(tmp_path)]
    assert main(command) == 0
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert len(content["images"][0]["classes"]) == 5
    assert (tmp_path / "classes.csv").read_text().startswith("file,label,score")
    scores = vistrain.load(finished / "best.ckpt", device="cpu").predict(Image.open(image)).scores
    assert scores.shape == (10,)


def test_a_run_of_the_classifier_starts_another_of_other_classes(finished, tmp_path, caplog):
    for split in ("train", "val"):
        for k, name in enumerate("ab"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(k * 9 + i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.png")
    small = {"root": str(tmp_path / "set"), "batch_size": 4, "workers": 0, "image_size": 32}
    extra = {"data": {"type": "data.ImageFolder", **small}, "run": {"weights": str(finished / "last.ckpt")}}
    composed = changes(tmp_path, tmp_path / "run")
    composed = config.merge({k: v for k, v in composed.items() if k != "data"}, extra)
    merged = config.compose(["vistrain:demo/classification"], changes={**composed, "metrics": ["accuracy"]})
    with caplog.at_level("INFO"):
        assert run.fit(merged) == 0
    assert "left out backbone.body.fc.weight: [10, " in caplog.text
    with pytest.raises(WeightsError, match=r"is for other classes: backbone.body.fc.weight"):
        run.test(merged, weights=str(finished / "last.ckpt"))


def test_progressive_unfreezing_is_stages(data_root, tmp_path):
    stages = [{"model": {"backbone": {"trainable_blocks": n}}} for n in (0, 2, None)]
    composed = config.compose(
        ["vistrain:demo/classification"], changes=changes(data_root, tmp_path / "run", stages=stages)
    )
    assert run.fit(composed) == 0
    first, last = (run.load(tmp_path / "run" / f"stage_{i}" / "last.ckpt")[1]["state_dict"] for i in (1, 3))
    assert not torch.equal(first["backbone.body.fc.weight"], last["backbone.body.fc.weight"])
    assert not torch.equal(first["backbone.body.conv1.0.weight"], last["backbone.body.conv1.0.weight"])


def test_neighbours_are_evaluated_through_the_command_line(finished, data_root, tmp_path):
    numbers = run.test(
        config.compose(
            ["vistrain:demo/classification"],
            changes=changes(data_root, tmp_path / "knn", task={"type": "tasks.NeighbourTask", "neighbours": 3}),
        ),
        weights=str(finished / "last.ckpt"),
    )
    assert 0 <= numbers["test/cls/top1"] <= 1


def test_many_labels_from_a_list(tmp_path, data_root, finished):
    folder = next(data_root.glob("patterns-*"))
    files = sorted(p.relative_to(folder).as_posix() for p in folder.glob("val/*/*.jpg"))
    lines = [f"{f},{'round' if 'ring' in f or 'dots' in f else 'straight|hard'}" for f in files]
    (tmp_path / "list.csv").write_text("file,labels\n" + "\n".join(lines) + "\n")
    data = {"type": "data.ImageList", "train": str(tmp_path / "list.csv"), "val": str(tmp_path / "list.csv")}
    data |= {"root": str(folder), "batch_size": 4, "workers": 0, "image_size": 32}
    base = changes(data_root, tmp_path / "run")
    many = {"type": "classification.Classifier", "multi_label": True, "loss": {"type": "losses.AsymmetricLoss"}}
    changed = {**base, "data": data, "metrics": ["multi_label"], "model": many | base["model"]}
    composed = config.compose(["vistrain:demo/classification"], changes=changed)
    assert run.fit(composed) == 0
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert 0 < float(rows[-1]["val/cls/mAP"]) <= 1


def test_a_size_that_the_model_cannot_take_ends_in_one_line(data_root, tmp_path, capsys):
    command = [
        "fit",
        "-c",
        "vistrain:demo/classification",
        f"data.root={data_root}",
        "data.train_images=4",
        "model.backbone.args=null",
    ]
    command += ["data.val_images=2", "data.workers=0", "model.backbone.name=convit_tiny", f"run.folder={tmp_path}/r"]
    assert main([*command, "data.image_size=200", "data.batch_size=2"]) == 2
    error = capsys.readouterr().err
    assert "data.image_size: convit_tiny cannot take images of 200x200; it takes 224x224" in error
