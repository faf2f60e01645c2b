"""Building a timm model by name: names, arguments and weights are checked before anything silently goes another way."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv, get_pretrained_cfg, model_entrypoint
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vistrain.backbones import timm_body
from vistrain.backbones.argument_values import SHARES, defaults_of, refuse_values
from vistrain.backbones.resnet_keys import DETECTRON2
from vistrain.backbones.staged import StagedBackbone
from vistrain.backbones.timm_keys import AUTHORS
from vistrain.checkpoints import KeyMap, load_file, load_weights, locate, state_dict_in
from vistrain.devices import on_meta
from vistrain.errors import ConfigError, VistrainError, WeightsError, first_line, nearest, shown, to_blame

log = logging.getLogger(__name__)

OURS = "backbone.body."  # before the names of a backbone in the checkpoints of all networks

# timm's arguments that the wrapper decides, and what to write instead.
_DECIDED = {
    "num_classes": "a dense backbone has no classifier",
    "features_only": "use `strides`",
    "out_indices": "use `strides`",
    "in_chans": "the data set says how many channels its images have",
    "pretrained": "use `pretrained` beside `args`",
    "pretrained_cfg": "put the tag into the name, as in `resnet50.tv_in1k`",
    "pretrained_cfg_overlay": "use `pretrained: /path/to/file` beside `args`",
    "pretrained_strict": "weights are always loaded strictly",
    "checkpoint_path": "use `pretrained: /path/to/file` beside `args`",
    "cache_dir": "set the environment variable HF_HOME",
}
BACK = "if the config you stand on gave it to another backbone: {}, or model.backbone.args=null for all"
FITTING = "leave it out, or give a value of the kind that it has there, which fits the others"
UNFIT = (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, ValueError)  # what timm raises
_CANARY = "vistrain_checks_that_unknown_arguments_are_refused"
# How timm's families are asked to take any image size; the first that a family knows is used.
_FLEXIBLE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def create(
    name: str, pretrained: bool | str, args: Mapping[str, Any], channels: int, num_classes: int | None = 0
) -> tuple[Any, bool]:
    """Builds a timm model, normally without its classifier.

    Args:
        name: timm's name, with a tag (`resnet50.tv_in1k`) where it matters which weights are meant.
        pretrained: timm's weights for that name; or a file of weights under timm's, torchvision's, detectron2's or
            (where timm can convert them) the authors' names. Of colour images, their first convolution is adapted to
            other `channels` by timm's rule either way: summed for one, repeated and scaled by 3 / C for others.
        args: timm's own arguments; null stands for the model's default, so that a config can take back what the one
            that it extends gave.
        channels: of the images.
        num_classes: of the classifier; 0 for none, None for as many as the weights have.

    Returns:
        The model (`Any`: timm's models share methods, but no class), and whether it agreed to take images of any
        size.

    Raises:
        ConfigError: unknown name, tag or argument.
        WeightsError: the weights cannot be had, or do not fit.
    """
    _check_name(name)
    args = {key: value for key, value in args.items() if value is not None}
    _check_args(name, args)
    arguments = dict(args) | ({"in_chans": channels} if channels != 3 else {})
    # With weights, the classifier stays until they are in: timm checks names strictly only if all classes are there.
    if pretrained is False:
        body, flexible = _build(name, arguments | ({} if num_classes is None else {"num_classes": num_classes}))
    elif pretrained is True:
        body, flexible = _build_pretrained(name, arguments)
    else:
        body, flexible = _build(name, arguments)
        _load_file(body, name, locate(pretrained).path, channels)
    _refuse_unfit(name, args, channels)
    if num_classes is not None and getattr(body, "num_classes", num_classes) != num_classes:
        body.reset_classifier(num_classes)
    return body, flexible


def check_arguments(name: str, args: Mapping[str, Any]) -> None:
    """Refuse a name or arguments that do not exist, as `create` does, without weights and without memory.

    Raises:
        ConfigError: unknown name, tag or argument.
    """
    _check_name(name)
    _check_args(name, {key: value for key, value in args.items() if value is not None})


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        otherwise = "`vistrain list backbones` shows them all"
        remedy = nearest(architecture, timm.list_models(), count=3, otherwise=otherwise)
        raise ConfigError("name", f"no backbone {name!r}", remedy)
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:  # timm's for a tag that it does not know
        tags = timm.list_pretrained(f"{architecture}.*")
        remedy = f"there are {', '.join(tags)}" if tags else f"write {architecture!r}"
        raise ConfigError("name", f"no weights {tag!r} of {architecture}", remedy) from error


def _check_args(name: str, args: Mapping[str, Any]) -> None:
    """Refuses arguments that timm would drop without a word, or meet with a traceback."""
    if not args:
        return
    own = _class_of(name)
    wrong = [key for key in args if key in _DECIDED or (own and key in _inside(own))]
    if wrong:
        taken = _parameters(own) if own and issubclass(own, StagedBackbone) else set(args)
        foreign = [key for key in args if key in wrong or key not in taken]
        remedy = _DECIDED.get(wrong[0], f"{name} sets it itself ({_taken_back(foreign)})")
        raise ConfigError(f"args.{wrong[0]}", "is not an argument of the backbone", remedy)
    refuse_values(defaults_of(own) if own else {}, args)
    # An argument that nothing can know: if even that is accepted, the family swallows whatever it is given. If it is
    # refused, the refusal names the first (or every) unknown argument, and a wrong one of the user's comes before it.
    try:
        with on_meta():
            swallowing = timm.create_model(name, num_classes=0, **args, **{_CANARY: 0})
    except TypeError as error:
        unknown = [key for key in args if re.search(rf"'{re.escape(key)}'", str(error))]
        known = _parameters_in(name, str(error))
    except (VistrainError, *UNFIT) as error:
        if isinstance(error, ConfigError) and error.where.startswith("args."):
            raise
        return  # known names with unfit values, or a family that cannot be built on `meta`: the true build will tell
    else:
        known = _parameters(type(swallowing))
        unknown = [key for key in args if key not in known]
    if unknown:
        foreign = [key for key in args if key in unknown or key not in known]
        problem, remedy = (
            f"timm's {name} has no such argument",
            nearest(unknown[0], set(known) - set(unknown), count=3, otherwise=f"`vistrain explain {name}` lists them"),
        )
        raise ConfigError(f"args.{unknown[0]}", problem, f"{remedy} ({_taken_back(foreign)})")


def _taken_back(keys: Sequence[str]) -> str:
    """How arguments of another backbone are taken back, as the command line takes it."""
    return BACK.format(" ".join(f"model.backbone.args.{key}=null" for key in keys))


def arguments_of(name: str) -> dict[str, Any]:
    """What `args` may hold for a model -> the default of its class, which a variant may set otherwise.

    Args:
        name: of timm's, or of ours.

    Raises:
        ConfigError: there is no such model.
    """
    _check_name(name)
    own = _class_of(name)
    defaults = defaults_of(own) if own else {}
    return {key: defaults.get(key) for key in sorted(_parameters(own))} if own else {}


def _class_of(name: str) -> type | None:
    """The class of a model; None of one that cannot be built without memory."""
    try:
        with on_meta():
            return type(timm.create_model(name, num_classes=0))
    except UNFIT:
        return None


def _inside(cls: type) -> set[str]:
    """Arguments that a class of ours hands to its base itself."""
    if not issubclass(cls, StagedBackbone):
        return set()
    return set(cls.sets_itself) - inspect.signature(cls).parameters.keys()


def _refuse_unfit(name: str, args: Mapping[str, Any], channels: int) -> None:
    """Refuse arguments with which a model can be made that then takes no image: heads that do not divide a width.

    Its sizes alone are computed, of one image; a model that cannot do so without these arguments either says nothing.

    Raises:
        ConfigError: at the one that is to blame, or `args`.
    """
    told = {key: value for key, value in args.items() if not any(word in key for word in SHARES)}
    if not told:
        return

    def run(arguments: Mapping[str, Any]) -> None:
        with on_meta():
            known = {**arguments, "in_chans": channels} if channels != 3 else arguments
            body: Any = timm.create_model(name, num_classes=0, **known).eval()
            size = timm_body.fixed_size(body)
            if type(body) in (VisionTransformer, Beit) and min(body.patch_embed.grid_size) < 1:
                patch = "x".join(map(str, body.patch_embed.patch_size))
                raise ValueError(f"{size[0]}x{size[1]} pixels are less than one patch of {patch}")
            body(torch.zeros(1, channels, *size))

    try:
        run(args)
    except NotImplementedError:
        return
    except (TypeError, VistrainError, *UNFIT) as error:
        if "meta" in str(error):  # numbers of an image decide: its sizes alone say nothing
            return
        key = to_blame(run, args, told)
        if key:
            problem = f"{name} takes no image with {shown(args[key])}: {first_line(error)}"
            raise ConfigError(f"args.{key}", problem, FITTING) from error


def _parameters_in(name: str, message: str) -> set[str]:
    """Arguments of the class that a message like `SwinTransformer.__init__() got an unexpected ...` names.

    Where it is the base of several families, those of all that stand in the model's file.
    """
    found = re.search(r"(\w+)\.__init__\(\)", message)
    there = [cls for cls in vars(_module_of(name)).values() if isinstance(cls, type)]
    bases = tuple(cls for cls in there if found and cls.__name__ == found[1])
    return {name for cls in there if bases and issubclass(cls, bases) for name in _parameters(cls)}


def _parameters(cls: type) -> set[str]:
    names: set[str] = set()
    for base in cls.__mro__:
        if base is nn.Module or "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if dataclasses.is_dataclass(base) or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - set(_DECIDED) - _inside(cls)


def _build(name: str, arguments: dict[str, Any], pretrained: bool = False) -> tuple[Any, bool]:
    for flexible in _FLEXIBLE:
        try:
            body = timm.create_model(name, pretrained=pretrained, **{**flexible, **arguments})
        except TypeError as error:
            if any(f"'{key}'" in str(error) for key in flexible):
                continue  # not an argument of this family; it says so before it has built anything
            raise _refused(name, arguments, error) from error
        except OSError:  # a download that failed, and in some versions of its library a ValueError too
            raise
        except (VistrainError, *UNFIT) as error:
            if isinstance(error, VistrainError) and error.where.startswith("args."):
                raise  # it names its key
            if not arguments.keys() - {"num_classes"} or (pretrained and isinstance(error, RuntimeError)):
                raise
            raise _refused(name, arguments, error) from error
        return body, bool(flexible)
    raise AssertionError("the last way asks for nothing")


def _refused(name: str, arguments: Mapping[str, Any], error: Exception) -> ConfigError:
    """What timm says of arguments, at the one that is to blame."""
    own = [key for key in arguments if key not in _DECIDED and not any(key in flexible for flexible in _FLEXIBLE)]
    with on_meta():
        key = own[0] if len(own) == 1 else to_blame(lambda rest: timm.create_model(name, **rest), arguments, own)
    if not key:
        given = {key: arguments[key] for key in own}
        return ConfigError("args", f"{name} cannot be built with {shown(given)}: {first_line(error)}", FITTING)
    problem = f"{name} cannot be built with {shown(arguments[key])}: {first_line(error)}"
    return ConfigError(f"args.{key}", problem, FITTING)


def _build_pretrained(name: str, arguments: dict[str, Any]) -> tuple[Any, bool]:
    from vistrain.internals.hub import fetching  # nobody else needs it

    unreachable = ""
    try:
        with fetching() as unreachable:
            return _build(name, arguments, pretrained=True)
    except OSError as error:  # what downloads fail with, offline and online
        cfg = get_pretrained_cfg(name)
        source = (cfg and (cfg.hf_hub_id or cfg.url)) or name
        raise WeightsError(
            f"pretrained weights of {name}",
            f"{source} is not in the cache and cannot be downloaded ({unreachable or first_line(error, 100)})",
            "download it where there is a network and set `pretrained` to a file, or to false, which "
            "takes random weights",
        ) from error
    except RuntimeError as error:
        # timm's own message for a model that has none, and load_state_dict's for `args` that change shapes.
        problem = " ".join(str(error).split())[:300]
        remedy = "set `pretrained` to a file of the authors', or to false, which takes random weights"
        raise WeightsError(f"pretrained weights of {name}", problem, remedy) from error


def _load_file(body: Any, name: str, path: Path, channels: int) -> None:
    """Loads a file of classification weights strictly, or the backbone of any network's checkpoint; the classifier may
    be of any classes, or absent, and tables of positions for images of another size."""
    content = load_file(path)
    weights = _backbone_of(state_dict_in(content, str(path)), path)
    if DETECTRON2.matches(weights):
        weights = DETECTRON2.apply(weights)
    for key_map in AUTHORS:
        weights = key_map.apply(weights) if key_map.matches(weights) else weights
    table: Tensor | None = None
    if type(body) in (VisionTransformer, Beit):
        table = _resized_table(weights.pop("pos_embed", None), body, _grid_of(content), path)
    weights = convert(weights, body, name, str(path)) | ({} if table is None else {"pos_embed": table})
    weights = _for_channels(weights, body, channels, path)
    own = body.state_dict()
    if not weights.keys() & own.keys():
        few = ", ".join(list(weights)[:4])
        raise WeightsError(str(path), f"has no weights of {name}; it holds {few or 'nothing'}", "is it a backbone's?")
    if type(body) in (VisionTransformer, Beit):
        _refuse_other_depth(weights, body, name, path)
    weights = _other_norm(weights, own, path)
    classifiers = body.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    counts = {v.shape[0] for key, v in weights.items() for c in classifiers if key == f"{c}.weight"}
    if not any(key.startswith(f"{classifier}.") for key in weights for classifier in classifiers):
        body.reset_classifier(0)
    elif counts and counts != {body.num_classes}:  # else weights for as many classes as wanted would be left out
        body.reset_classifier(next(iter(counts)))
    class_layers = [rf"^{re.escape(classifier)}\." for classifier in classifiers]
    load_weights(body, weights, class_layers=class_layers, where=str(path))


def _for_channels(weights: dict[str, Tensor], body: Any, channels: int, path: Path) -> dict[str, Tensor]:
    """Weights of colour images for images of other channels: the first convolutions, by timm's rule.

    Not by `checkpoints.with_channels`: timm adapts what it fetches itself, and a file of the same weights must give the
    same network.
    """
    first = body.pretrained_cfg.get("first_conv") or ()
    keys = [f"{name}.weight" for name in ((first,) if isinstance(first, str) else first)]
    found = {key: weights[key] for key in keys if key in weights and weights[key].ndim == 4}
    adapted = {key: adapt_input_conv(channels, w) for key, w in found.items() if w.shape[1] == 3 != channels}
    if adapted:
        log.info("%s: %s adapted from 3 channels to %d: summed, or repeated", path, ", ".join(adapted), channels)
    return {**weights, **adapted}


def _backbone_of(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The backbone's part of what a run of ours trained, under its own names; other files as they are."""
    found = {key.removeprefix(OURS): value for key, value in weights.items() if key.startswith(OURS)}
    if not found:
        return weights
    others = dict.fromkeys(".".join(key.split(".")[:1]) for key in weights if not key.startswith(OURS))
    if others:
        count = len(weights) - len(found)
        log.info("%s: the backbone alone; left out %d tensors of %s", path, count, ", ".join(others))
    return found


def _grid_of(content: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the patches that a checkpoint of ours was trained for, where its config says it."""
    node: Any = content.get("vistrain")
    for key in ("config", "model", "backbone", "args", "img_size"):
        node = node.get(key) if isinstance(node, Mapping) else None
    sides = (node, node) if isinstance(node, int) else tuple(node or ())
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None


def _resized_table(table: Tensor | None, body: Any, size: tuple[int, int] | None, path: Path) -> Tensor | None:
    """A table of positions `[1, P + N, D]` for the patches of a plain ViT.

    Args:
        table: as the file has it; None has none.
        body: the ViT.
        size: of the images that it is for, pixels, if the file says it; square, if not.
        path: the file.
    """
    own = body.pos_embed
    if table is None or own is None or table.ndim != 3:
        return table
    prefix = own.shape[1] - body.patch_embed.num_patches
    count, new = table.shape[1] - prefix, tuple(body.patch_embed.grid_size)
    side = math.isqrt(max(count, 0))
    old = (side, side)
    if size is not None:  # patches may have another size here, but have its proportions
        old = next(
            ((h, count // h) for h in range(1, count + 1) if count % h == 0 and h * size[1] == count // h * size[0]),
            old,
        )
    if old == new or old[0] * old[1] != count:
        return table
    log.info("%s: the table of positions is resized from %dx%d to %dx%d patches", path, *old, *new)
    resized: Tensor = resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=prefix)
    return resized


def _refuse_other_depth(weights: Mapping[str, Tensor], body: Any, name: str, path: Path) -> None:
    """Refuse a plain ViT's weights of another depth or width in the words of its arguments.

    Raises:
        WeightsError: the file's tensors tell another one than the network has.
    """
    blocks = {int(found[1]) for key in weights if (found := re.match(r"blocks\.(\d+)\.", key))}
    norm = weights.get("blocks.0.norm1.weight")
    if not blocks or norm is None:
        return
    there, here = (max(blocks) + 1, norm.shape[0]), (len(body.blocks), body.embed_dim)
    if there != here:
        problem = f"holds {there[0]} blocks of {there[1]} channels, but {name} has {here[0]} of {here[1]} here"
        remedy = f"set `args: {{depth: {there[0]}, embed_dim: {there[1]}}}`, and `num_heads` of that run"
        raise WeightsError(str(path), problem, remedy)


def _other_norm(weights: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights for a ViT that is pooled otherwise than the file's: its last norm, which then has another name, starts
    anew, as in MAE's fine-tuning."""
    for there, here in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        names = [key for key in weights if key.startswith(there)]
        if names and not any(key.startswith(there) for key in own) and not any(key.startswith(here) for key in weights):
            log.info(
                "%s: left out %s: tokens are pooled otherwise here, and %s starts anew", path, there[:-1], here[:-1]
            )
            kept = {key: value for key, value in weights.items() if key not in names}
            return kept | {key: value for key, value in own.items() if key.startswith(here)}
    return weights


def convert(weights: Mapping[str, torch.Tensor], body: Any, name: str, where: str) -> dict[str, torch.Tensor]:
    """Weights under timm's names, from timm's or the authors'.

    Args:
        weights: of `body`.
        body: the timm model, for its shapes.
        name: timm's name of it.
        where: what messages call the weights.

    Raises:
        WeightsError: timm cannot read them as this model.
    """
    for key_map in AUTHORS:
        weights = key_map.apply(weights) if key_map.matches(weights) else weights
    # timm's converter, by timm's convention a function of this name beside the family.
    filter_function = getattr(_module_of(name), "checkpoint_filter_fn", None)
    if filter_function is None:
        return dict(weights)
    try:
        return dict(filter_function(dict(weights), body))
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(where, f"timm cannot read it as {name} ({error})", f"is it a {name}?") from error


def official(weights: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Weights under the names of the authors of a model of ours; under timm's of the others.

    Args:
        weights: of the model, under timm's names or ours.
        name: timm's name of it.

    Raises:
        WeightsError: a name cannot be told.
    """
    own = [value for value in vars(_module_of(name)).values() if isinstance(value, KeyMap)]
    authors = next((known for known in own if not known.name.startswith("dense ")), None)
    return dict(weights) if authors is None else authors.export(weights)


def _module_of(name: str) -> ModuleType:
    """timm's module in which a model's family lives."""
    return sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
