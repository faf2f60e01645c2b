"""Parameter groups: which parameters learn, at which pace, and which are decayed."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vistrain.errors import ConfigError, nearest
from vistrain.internals.torch import BatchNorm
from vistrain.layers.low_rank import is_adapted
from vistrain.network import Network
from vistrain.optim.kernels import hidden_weights
from vistrain.optim.lora import LoRA

log = logging.getLogger(__name__)

WHERE = "optimizer.groups"


@dataclass(frozen=True)
class Rule:
    """Parameters that a pattern matches, and what is special about them.

    Args:
        match: one or more shell patterns on parameter names (`backbone.*`, `*.sampling_offsets.*`; `*` crosses dots).
        lr_scale: factor on the learning rate.
        weight_decay: replaces the optimizer's weight decay, also on norms and biases; None leaves it.
    """

    match: tuple[str, ...]
    lr_scale: float = 1.0
    weight_decay: float | None = None

    @classmethod
    def from_config(cls, node: dict[str, Any], where: str) -> Rule:
        """Check one rule as a config gives it.

        Raises:
            ConfigError: a key is unknown, `match` is missing or a value has the wrong type.
        """
        known = [f.name for f in fields(cls)]
        for key in node:
            if key not in known:
                raise ConfigError(f"{where}.{key}", "no such key", nearest(key, known))
        match = node.get("match")
        patterns = [match] if isinstance(match, str) else match
        if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise ConfigError(f"{where}.match", f"{match!r} is neither a pattern nor a list of patterns")
        for key in ("lr_scale", "weight_decay"):
            value = node.get(key)
            wrong = not isinstance(value, int | float) or isinstance(value, bool) or value < 0
            if key in node and wrong and not (key == "weight_decay" and value is None):
                raise ConfigError(f"{where}.{key}", f"{value!r} is not a number of 0 or more")
        return cls(**{**node, "match": tuple(patterns)})


class ParameterGroups:
    """Sorts a network's trainable parameters into groups for a torch optimizer.

    Args:
        rules: each with `match` (a pattern or a list of them, on names as `model.named_parameters()` gives them) and
            `lr_scale` and `weight_decay` where they differ; the first rule that matches a parameter decides.
        no_decay_norms: leave the parameters of normalisation layers undecayed.
        no_decay_bias: leave every bias undecayed.
        no_decay_1d: leave every parameter of one dimension undecayed, and what the network's authors exempt (position
            tables, tokens; `Network.no_weight_decay`): timm's rule, and that of the ImageNet recipes made with it.
        layer_decay: each layer learns this much slower than the one above it (BEiT, Bao et al. 2022); layers are those
            of `Network.layers_above`: timm's of the backbone, and one for all that stands upon it.
        freeze: patterns of parameters that do not learn; batch norms whose parameters are all frozen keep their
            statistics, too.
        lora: linear layers that learn through low-rank products alone, also in frozen parts.
        fallback: give what is no hidden weight (`optim.kernels.hidden_weights`) groups of its own with `use_fallback`,
            as `timm.optim.Muon` takes them: AdamW trains these.

    Raises:
        ConfigError: a rule is malformed.
    """

    def __init__(
        self,
        rules: list[dict[str, Any]] | None = None,
        no_decay_norms: bool = True,
        no_decay_bias: bool = False,
        layer_decay: float | None = None,
        no_decay_1d: bool = False,
        freeze: tuple[str, ...] = (),
        lora: LoRA | None = None,
        fallback: bool = False,
    ) -> None:
        self.rules = [Rule.from_config(rule, f"{WHERE}.rules.{i}") for i, rule in enumerate(rules or [])]
        self.no_decay_norms, self.no_decay_bias, self.no_decay_1d = no_decay_norms, no_decay_bias, no_decay_1d
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ConfigError(f"{WHERE}.layer_decay", f"{layer_decay} is not in 0..1")
        self.layer_decay = layer_decay
        self.freeze, self.lora, self.fallback = tuple(freeze), lora, fallback

    def prepare(self, model: Network) -> None:
        """Freeze and adapt a network in place, once it has the weights that it starts from, and say what learns.

        Before the network is copied (averages) or handed to several processes, and at most once.

        Raises:
            ConfigError: a pattern matches nothing.
        """
        if not self.freeze and self.lora is None:
            return
        self._freeze(model)
        adapted = self.lora.apply(model) if self.lora is not None else []
        self.keep_statistics(model)
        log.info("%s", table_of_frozen(model))
        if adapted:
            log.info("low-rank products in %d linear layers: %s", len(adapted), ", ".join(adapted[:3]) + " ...")

    def keep_statistics(self, model: nn.Module) -> None:
        """Put the batch norms that are frozen into evaluation mode, to be called whenever a network was put into
        training mode."""
        for module in model.modules() if self.freeze else ():
            own = list(module.parameters(recurse=False))
            if isinstance(module, BatchNorm) and own and not any(p.requires_grad for p in own):
                module.eval()

    def _freeze(self, model: nn.Module) -> None:
        names = [name for name, _ in model.named_parameters()]
        _refuse_unmatched(self.freeze, names, f"{WHERE}.freeze")
        for name, parameter in model.named_parameters():
            if any(fnmatchcase(name, pattern) for pattern in self.freeze):
                parameter.requires_grad_(False)

    def __call__(self, model: Network, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The groups of one network.

        Args:
            model: the network; frozen parameters (`requires_grad` false) are left out.
            lr: base learning rate.
            weight_decay: base weight decay.

        Returns:
            Groups as torch optimizers take them: `params`, `lr`, `weight_decay`, and `name` for logs, which tells
            what is special about the group.

        Raises:
            ConfigError: a pattern matches no parameter, nothing is trainable, or the network does not say what its
                layers are.
        """
        if self.lora is None:  # else `prepare` has frozen what was there before the products were
            self._freeze(model)
        names = [name for name, _ in model.named_parameters()]
        for i, stated in enumerate(self.rules):
            _refuse_unmatched(stated.match, names, f"{WHERE}.rules.{i}.match")
        if self.lora is not None and not is_adapted(model):
            raise ConfigError(f"{WHERE}.lora", "the network has no such layers yet", "call `prepare(model)` before")
        hidden = hidden_weights(model) if self.fallback else set()
        undecayed = _norm_parameters(model) if self.no_decay_norms else set()
        undecayed |= _exempt(model) if self.no_decay_1d else set()
        depth = _layer_scales(model, self.layer_decay) if self.layer_decay is not None else {}
        groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            rule = next((r for r in self.rules if any(fnmatchcase(name, p) for p in r.match)), None)
            scale = (rule.lr_scale if rule else 1.0) * depth.get(name, 1.0)
            decay = weight_decay
            if name in undecayed or (self.no_decay_bias and name.endswith("bias")):
                decay = 0.0
            if rule and rule.weight_decay is not None:
                decay = rule.weight_decay
            title = f"lr x{scale:.4g}" + ("" if decay == weight_decay else f", decay {decay:g}")
            apart = self.fallback and name not in hidden
            group = {"params": [], "lr": lr * scale, "weight_decay": decay, "name": title + ", fallback" * apart}
            if self.fallback:
                group["use_fallback"] = apart
            groups.setdefault((scale, decay, apart), group)["params"].append(parameter)
        if not groups:
            raise ConfigError(WHERE, "the network has no trainable parameter", "unfreeze some")
        return list(groups.values())


def table_of_frozen(model: nn.Module) -> str:
    """How many parameters learn and how many do not, a line for each top-level part that has any."""
    rows = [("part", "learn", "frozen")]
    for name, part in [*model.named_children(), ("all", model)]:
        counts = {learns: sum(p.numel() for p in part.parameters() if p.requires_grad == learns) for learns in (1, 0)}
        if any(counts.values()):
            rows.append((name, f"{counts[1]:,}", f"{counts[0]:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{n:<{widths[0]}}  {a:>{widths[1]}}  {b:>{widths[2]}}" for n, a, b in rows)


def _refuse_unmatched(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern.replace("*", ""), names, 3, cutoff=0.0)
            raise ConfigError(where, f"{pattern!r} matches no parameter", f"nearest: {', '.join(near)}")


def _norm_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that belong to normalisation layers, of torch, of timm or of anyone.

    By class name, because such layers share no base class; one-dimensional, because a larger parameter of a module
    that also normalises is a weight like any other.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim <= 1
    }


def _exempt(model: Network) -> set[str]:
    """Names of the parameters that timm's recipes leave undecayed."""
    small = {name for name, p in model.named_parameters() if p.ndim <= 1 or name.endswith(".bias")}
    return small | model.no_weight_decay()


def _layer_scales(model: Network, decay: float) -> dict[str, float]:
    """Learning-rate factor `decay ** (layers above)` for each parameter that is not of the top."""
    layers = model.layers_above()
    if layers is None:
        raise ConfigError(f"{WHERE}.layer_decay", "the backbone does not say what its layers are", "use a timm model")
    return {name: decay**above for name, above in layers.items()}
