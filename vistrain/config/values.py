"""Which values mean something: ranges of numbers and combinations of keys, checked before anything is built.

Types of constructor arguments are the builder's matter. Here stands what a type does not say, and what other libraries
would refuse late, in a traceback, or accept without a meaning: a negative clip, NaN, a schedule of strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vistrain.errors import ConfigError, shown

MOST_WHOLE = 2**63 - 1  # what a 64-bit integer holds
MOST_SEED = 2**32 - 1  # NumPy's generators take no larger one

# What each section holds; `seed` and `base` have no keys.
SHAPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("task", "model", "data", "optimizer", "trainer", "run"), (dict,)),
    **dict.fromkeys(("schedule", "callbacks", "reference"), (dict, type(None))),
    "logger": (dict, list, str, bool, type(None)),
    "metrics": (list, type(None)),
    "stages": (list, type(None)),
    "seed": (int,),
}
NAMES_OF_SHAPES = {dict: "a mapping", list: "a list", str: "a name", int: "a number", type(None): "null"}


@dataclass(frozen=True)
class Rule:
    """What a key may hold.

    Attributes:
        wanted: in words, after "is not".
        accepts: whether a value is that.
    """

    wanted: str
    accepts: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def numbers(
    least: float, most: float = math.inf, *, whole: bool = False, below: bool = False, also: tuple[Any, ...] = ()
) -> Rule:
    """Numbers from `least` to `most`.

    Args:
        least, most: both are in the range.
        whole: take no fractions.
        below: `most` itself is too large.
        also: other values that are accepted, such as None.
    """
    kind = "a whole number" if whole else "a number"
    is_open = math.isinf(most) or most == MOST_WHOLE
    extent = f"of {least} or more" if is_open else f"from {least} to {'below ' if below else ''}{most}"
    others = "".join(f", or {'null' if value is None else value}" for value in also)

    def accepts(value: Any) -> bool:
        if any(value is other or (type(value) is type(other) and value == other) for other in also):
            return True
        if not is_number(value) or (whole and not isinstance(value, int)):
            return False
        return least <= value <= most and not (below and value == most)

    return Rule(f"{kind} {extent}{others}", accepts)


def words(*names: Any) -> Rule:
    """One of some names; None and truth values are among them as such."""
    listed = ", ".join(dict.fromkeys(shown(name).strip("'") for name in names))
    return Rule(f"one of {listed}", lambda value: any(value == n and type(value) is type(n) for n in names))


def _batches(least: int) -> Rule:
    """Lightning's limits: a whole number of batches, or a share of them; above nothing, if `least` is 1."""

    def accepts(value: Any) -> bool:
        if not is_number(value):
            return value is None
        return value >= least if isinstance(value, int) else 0 <= value <= 1 and (value > 0 or least == 0)

    share = "above 0.0 up to 1.0" if least else "0.0 to 1.0"
    return Rule(f"a whole number of batches of {least} or more, or a share of them, {share}", accepts)


def _is_devices(value: Any) -> bool:
    if isinstance(value, str):
        return value == "auto" or bool(re.fullmatch(r"-1|[1-9]\d*|\d+(\s*,\s*\d+)*,?", value.strip()))
    if isinstance(value, list):
        return bool(value) and len(set(map(str, value))) == len(value) and all(map(_is_index, value))
    return numbers(1, 2**16, whole=True, also=(-1,)).accepts(value)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: Any) -> bool:
    if isinstance(value, dict):
        units = ("weeks", "days", "hours", "minutes", "seconds")
        return bool(value) and all(k in units and is_number(v) and v >= 0 for k, v in value.items())
    return value is None or (isinstance(value, str) and bool(re.fullmatch(r"\d+:[0-2]\d:[0-5]\d:[0-5]\d", value)))


def _is_pair_of_betas(value: Any) -> bool:
    beta = numbers(0, 1, below=True)
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(beta.accepts, value))


PRECISIONS = (
    "auto", "32-true", "32", 32, "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "64", 64, "bf16", "16",
    16, "transformer-engine", "transformer-engine-float16", None,
)  # fmt: skip
TRUTH = words(True, False)
TRUTH_OR_NULL = words(True, False, None)
NOT_HERE = "null: an object cannot be written there"

RULES: dict[str, Rule] = {
    "seed": numbers(0, MOST_SEED, whole=True),
    "trainer.accelerator": words("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.strategy": Rule("a name such as auto, ddp, fsdp2", lambda v: isinstance(v, str)),
    "trainer.devices": Rule(
        "auto, a number of devices of 1 or more, -1 for all, or a list of their indices", _is_devices
    ),
    "trainer.num_nodes": numbers(1, 2**16, whole=True),
    "trainer.precision": words(*PRECISIONS),
    "trainer.fast_dev_run": Rule("true, false, or a number of batches", lambda v: isinstance(v, bool) or _is_index(v)),
    "trainer.max_epochs": numbers(1, MOST_WHOLE, whole=True, also=(-1, None)),
    "trainer.min_epochs": numbers(0, MOST_WHOLE, whole=True, also=(None,)),
    "trainer.max_steps": numbers(1, MOST_WHOLE, whole=True, also=(-1,)),
    "trainer.min_steps": numbers(0, MOST_WHOLE, whole=True, also=(None,)),
    "trainer.max_time": Rule("a time as 'DD:HH:MM:SS', in quotes, or {hours: 1}", _is_time),
    "trainer.limit_train_batches": _batches(1),
    "trainer.limit_val_batches": _batches(0),
    "trainer.limit_test_batches": _batches(0),
    "trainer.limit_predict_batches": _batches(0),
    "trainer.overfit_batches": Rule(
        "0: the samplers are vistrain's own; take trainer.limit_train_batches, or a set of a few images",
        lambda v: is_number(v) and v == 0,
    ),
    "trainer.val_check_interval": _batches(1),
    "trainer.check_val_every_n_epoch": numbers(1, MOST_WHOLE, whole=True, also=(None,)),
    "trainer.num_sanity_val_steps": numbers(0, MOST_WHOLE, whole=True, also=(-1, None)),
    "trainer.log_every_n_steps": numbers(0, MOST_WHOLE, whole=True, also=(None,)),
    "trainer.gradient_clip_val": numbers(0, also=(None,)),
    "trainer.gradient_clip_algorithm": words("norm", "value", None),
    "trainer.deterministic": words(True, False, "warn", None),
    "trainer.benchmark": TRUTH_OR_NULL,
    "trainer.inference_mode": TRUTH,
    "trainer.detect_anomaly": TRUTH,
    "trainer.sync_batchnorm": TRUTH,
    "trainer.enable_autolog_hparams": TRUTH,
    "trainer.barebones": Rule(
        "false: it turns off logging and checkpoints, of which a run consists", lambda v: v is False
    ),
    "trainer.profiler": words("simple", "advanced", "pytorch", None),
    "trainer.plugins": Rule(NOT_HERE, lambda v: v is None),
    "trainer.model_registry": Rule("null", lambda v: v is None),
    "trainer.reload_dataloaders_every_n_epochs": Rule(
        "0: loaders that are made anew would begin where the run began", lambda v: is_number(v) and v == 0
    ),
    "optimizer.lr": numbers(0),
    "optimizer.weight_decay": numbers(0),
    "optimizer.betas": Rule("two numbers from 0 to below 1", _is_pair_of_betas),
    "optimizer.momentum": numbers(0, 1, below=True),
    "optimizer.eps": numbers(0),
    "optimizer.alpha": numbers(0, 1),
    "optimizer.rho": numbers(0, 1),
    "optimizer.lr_decay": numbers(0),
    "optimizer.lambd": numbers(0),
    "optimizer.base_batch_size": numbers(1, MOST_WHOLE, whole=True, also=(None,)),
    "schedule.warmup_steps": numbers(0, MOST_WHOLE, whole=True),
    "schedule.warmup_epochs": numbers(0),
    "schedule.warmup_factor": numbers(0, 1),
    "schedule.final_factor": numbers(0, 1),
    "schedule.cooldown_epochs": numbers(0),
    "schedule.power": numbers(0),
    "data.workers": numbers(0, 1024, whole=True, also=(None,)),
    "run.name": Rule(
        "a name, which a folder in runs/ can have",
        lambda v: isinstance(v, str) and bool(v.strip()) and ".." not in v.split("/"),
    ),
    "run.folder": Rule("a folder", lambda v: v is None or (isinstance(v, str) and bool(v.strip()))),
    "run.weights": Rule("a file", lambda v: v is None or (isinstance(v, str) and bool(v.strip()))),
}


def problems(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What is wrong with the shape of a section, with a number, or with what must go together.

    Args:
        config: composed; sections may be missing.
    """
    wrong = list(_of_values(config))
    yield from wrong
    if not wrong:  # what goes together is a question about numbers that are some
        for combination in COMBINATIONS:
            yield from combination(config)
    stages = config.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list) else ()):
        if not isinstance(stage, dict):
            yield ConfigError(f"stages[{i}]", f"{stage!r} is not a mapping", "write the changes: {trainer: {...}}")
            continue
        for error in _of_values(stage):  # what must go together is known once it is merged
            yield ConfigError(f"stages[{i}].{error.where}", error.problem, error.remedy)


def _of_values(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    shaped: dict[str, Any] = {}
    for name, value in config.items():
        kinds = SHAPES.get(name, (object,))
        if isinstance(value, kinds):
            shaped[name] = value
        else:
            yield _misshapen(name, value, kinds)
    yield from _meaningless(shaped, "")
    for i, metric in enumerate(shaped.get("metrics") or ()):
        if not isinstance(metric, str):
            yield ConfigError(f"metrics[{i}]", f"{metric!r} is not the name of a protocol", "write metrics: [NAME]")
    for path, rule in RULES.items():
        section, _, key = path.rpartition(".")
        holder = shaped.get(section) if section else shaped
        if isinstance(holder, dict) and key in holder and not rule.accepts(holder[key]):
            yield ConfigError(path, f"{shown(holder[key])} is not {rule.wanted}")


def _misshapen(name: str, value: Any, kinds: tuple[type, ...]) -> ConfigError:
    wanted = " or ".join(NAMES_OF_SHAPES[kind] for kind in kinds if kind in NAMES_OF_SHAPES)
    remedy = "leave the section out, or write its keys" if dict in kinds else ""
    return ConfigError(name, f"{shown(value)} is not {wanted}", remedy)


def _meaningless(value: Any, where: str) -> Iterator[ConfigError]:
    """NaN, infinities, and whole numbers that no 64 bits hold, anywhere in a config."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int) or key == "" or isinstance(key, bool):
                yield ConfigError(where or "config", f"{key!r} is not a key", "quote it, if it is a name")
            yield from _meaningless(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _meaningless(item, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield ConfigError(where, f"{value} is not a number that means anything", "give a finite one, or remove the key")
    elif isinstance(value, int) and abs(value) > MOST_WHOLE:
        yield ConfigError(where, f"{str(value)[:30]} does not fit into 64 bits", "give a smaller number")


# ---------------------------------------------------------------- what must go together


def _limits(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    trainer = config.get("trainer") or {}
    for unit in ("epochs", "steps"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        if least is not None and most is not None and 0 <= most < least:
            yield ConfigError(f"trainer.min_{unit}", f"{least} is more than trainer.max_{unit}={most}", "lower it")


def _evaluations(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    trainer = config.get("trainer") or {}
    interval = trainer.get("val_check_interval")
    if trainer.get("check_val_every_n_epoch", 1) is None and not isinstance(interval, int):
        yield ConfigError(
            "trainer.check_val_every_n_epoch",
            "null counts batches over epochs, but trainer.val_check_interval gives no whole number of them",
            "set trainer.val_check_interval to a number of batches",
        )


def _momentum(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    optimizer = config.get("optimizer") or {}
    if optimizer.get("nesterov") is True and optimizer.get("type") == "torch.optim.SGD":
        if not optimizer.get("momentum"):
            yield ConfigError("optimizer.nesterov", "true needs a momentum", "set optimizer.momentum, such as 0.9")
        if optimizer.get("dampening"):
            yield ConfigError("optimizer.dampening", "does not go with optimizer.nesterov=true", "remove one of them")
    if optimizer.get("fused") is True and optimizer.get("foreach") is True:
        remedy = "keep one: optimizer.foreach=false or optimizer.fused=false"
        yield ConfigError("optimizer.foreach", "does not go with optimizer.fused=true", remedy)


def _clipping(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    trainer = config.get("trainer") or {}
    if trainer.get("gradient_clip_algorithm") is not None and trainer.get("gradient_clip_val") is None:
        yield ConfigError(
            "trainer.gradient_clip_algorithm", "clips nothing by itself", "set trainer.gradient_clip_val, too"
        )


def _warmup(config: Mapping[str, Any]) -> Iterator[ConfigError]:
    schedule = config.get("schedule") or {}
    if schedule.get("warmup_steps") and schedule.get("warmup_epochs"):
        remedy = "keep one: schedule.warmup_epochs=0 or schedule.warmup_steps=0"
        yield ConfigError("schedule.warmup_epochs", "schedule.warmup_steps is given, too", remedy)


COMBINATIONS: tuple[Callable[[Mapping[str, Any]], Iterator[ConfigError]], ...] = (
    _limits,
    _evaluations,
    _momentum,
    _clipping,
    _warmup,
)
