"""The command line: parses arguments, composes configs, calls what does the work. Imports no torch by itself."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vistrain import __version__, processes
from vistrain.config import build, compose, index, to_yaml, without_pretrained
from vistrain.errors import ConfigError, VistrainError

if TYPE_CHECKING:
    from vistrain.data import CocoDetection

AUTO = Path("auto")  # of --resume; a folder of that name is ./auto, or its absolute path
DESCRIPTION = "Trains, evaluates and reproduces dense-vision models."
EXAMPLES = """\
start here:
  vistrain fit --config vistrain:demo/detection            train a small detector on generated images
  vistrain test --ckpt runs/detection/best.ckpt            evaluate it
  vistrain predict --ckpt runs/detection/best.ckpt --input photos/ --output out/
  vistrain list configs                                    what is shipped
  vistrain doctor                                          if anything does not work

Any key of a config can be changed on the command line: trainer.max_epochs=12 model.num_queries=900
`vistrain COMMAND --help` explains each command.
"""
FIT_EXAMPLES = """\
examples:
  vistrain fit -c vistrain:det/deformable_detr_r50 trainer.devices=8
  vistrain fit -c mine.yaml data.per_device=2 optimizer.lr=1e-4      accumulates up to data.batch_size
  vistrain fit -c mine.yaml --print-config                           the composed config, nothing runs
  vistrain fit -c mine.yaml --print-config full                      with every default, labels and preprocessing
  vistrain fit -c mine.yaml run.weights=runs/first/best.ckpt         start from weights; other classes are fine
  vistrain fit --resume runs/mine                                    continue an interrupted run, exactly
  vistrain fit -c mine.yaml --resume auto                            start, or continue: for scripts that run it again
  torchrun --nnodes 4 --nproc-per-node 8 ... -m vistrain fit -c ...  several machines

KEY=VALUE changes a key of the config; the value is YAML: [1, 2], {a: 1}, null, 1e-4.

Exit codes: 0 finished; 75 told to stop (SIGTERM, SIGUSR1), saved: run it again with --resume auto; 130 Ctrl-C, saved
(a second Ctrl-C ends at once); 2 something is yours to mend; 1 a bug, or a process was lost.
"""
TEST_EXAMPLES = """\
examples:
  vistrain test --ckpt runs/mine/best.ckpt
  vistrain test --ckpt runs/mine/best.ckpt data.root=other/ data.eval_batch_size=8
  vistrain test -c vistrain:det/deformable_detr_r50 --weights r50_deformable_detr-checkpoint.pth
  vistrain test --ckpt runs/mine/best.ckpt --analysis runs/mine/analysis          what goes wrong, with pictures
  vistrain test --ckpt runs/mine/best.ckpt task.tta.flip=true 'task.tta.scales=[0.8, 1, 1.2]'
"""
PREDICT_EXAMPLES = """\
examples:
  vistrain predict --ckpt runs/mine/best.ckpt --input photo.jpg --output out/
  vistrain predict --ckpt runs/mine/best.ckpt --input 'photos/*.png' --output out/ --threshold 0.3
  vistrain predict -c CONFIG --weights official.pth --input photos/ --output out/ --tile 256
"""
REPRODUCE_EXAMPLES = """\
examples:
  vistrain reproduce -c vistrain:restore/dncnn_s25 --weights dncnn_25.pth data.root=/path/to/restoration
  vistrain reproduce -c vistrain:restore/bicubic_x4                 nothing is trained there, so no weights
  vistrain reproduce -c vistrain:det/deformable_detr_r50 --weights r50_deformable_detr-checkpoint.pth

Prints each number of the config's `reference` beside the one measured, and writes OUTPUT/reproduction.json: date,
commit, versions, hardware, the file of weights with its checksum, all numbers, the composed config.
Exit code: 0 if all are within the tolerance, 3 if one is outside, 2 if nothing could be compared.
"""
EVALUATE_EXAMPLES = """\
examples:
  vistrain evaluate predictions.json --annotations instances_val2017.json
  vistrain evaluate predictions.json -c vistrain:det/deformable_detr_r50
  vistrain evaluate predictions.json --annotations instances_val2017.json --analysis out/ --images val2017/
  vistrain evaluate restored/ --truth Set5/ --protocol sr_luma --scale 4         a folder of restored pictures
  vistrain evaluate restored/ --truth Set5/ --protocol lpips --lpips alexnet.pth alex.pth
"""
PROFILE_EXAMPLES = """\
examples:
  vistrain profile swin_tiny_patch4_window7_224
  vistrain profile nat_mini --size 512 768 --batch 8 --device cuda --precision bf16
  vistrain profile -c vistrain:demo/detection --size 256 --json
  vistrain profile resnet50 --repeats 0                          parameters and multiply-adds alone, in seconds

Weights are random. Multiply-adds are of one image; speed is of --batch images, median of --repeats passes.
"""
LIST_EXAMPLES = """\
examples:
  vistrain list configs
  vistrain list backbones 'cswin*'
  vistrain list optimizers
"""
EXPLAIN_EXAMPLES = """\
examples:
  vistrain explain detection.DeformableDETR      its parameters, and the configs that use it
  vistrain explain model.num_queries             a key of a config
  vistrain explain trainer                       a section
  vistrain explain det/deformable_detr_r50       a config
"""
COMPLETION_EXAMPLES = """\
to turn it on:
  bash:  vistrain completion bash > ~/.local/share/bash-completion/completions/vistrain
  zsh:   vistrain completion zsh > "${fpath[1]}/_vistrain"
  fish:  vistrain completion fish > ~/.config/fish/completions/vistrain.fish
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `vistrain`; those of the process if None.

    Returns:
        Exit code: 0; 2 if the user has something to mend (said in one line on stderr); 3 if a result was not
        reproduced; 75 if told to stop (run it again); 130 if interrupted.

    Raises:
        Exception: a bug of vistrain, or of a class that the config names; a process then ends with code 1.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments: argparse.Namespace | None = None
    try:
        arguments = parse(words)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except VistrainError as error:
        sys.stderr.write(f"vistrain: {error}\n")
        return 2
    except BrokenPipeError:  # `vistrain list backbones | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns an interrupt into sys.exit(1), argparse ends with sys.exit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        sys.stderr.write(f"vistrain: interrupted{_how_to_resume(arguments)}\n")
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command; words like `key=value` become `overrides`, wherever they stand.

    Raises:
        ConfigError: a word is neither an option nor a change to the config.
        SystemExit: help was asked for, or argparse found something missing.
    """
    words = list(words)
    for i, word in enumerate(words):
        if word == "--print-config":  # its value is optional, and `key=value` must not be taken for one
            full = words[i + 1 : i + 2] == ["full"]
            words[i : i + 1 + full] = [f"--print-config={'full' if full else 'composed'}"]
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    overrides = [word for word in rest if not word.startswith("-") and "=" in word]
    for word in rest:
        if word in overrides and hasattr(arguments, "overrides"):
            continue
        option = word.lstrip("-").partition("=")[0]
        if word.endswith((".yaml", ".yml")) or word.startswith("vistrain:"):
            raise ConfigError(word, "stands alone", f"write --config {word}")
        if word.startswith("-") and ("." in option or option in index.SECTIONS):
            raise ConfigError(
                word, "is not an option", f"a key of the config is changed by {option}=VALUE, without dashes"
            )
        raise ConfigError(
            word, f"{arguments.command} does not take it", index.nearest(word, _options(parser, arguments.command))
        )
    if hasattr(arguments, "overrides"):
        arguments.overrides = overrides
    return arguments


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "vistrain", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"vistrain {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        run: Callable[[argparse.Namespace], int], summary: str, usage: str, epilog: str = "", changes: bool = False
    ) -> argparse.ArgumentParser:
        name = run.__name__.removesuffix("_")
        made = commands.add_parser(
            name, help=summary, description=summary, usage=f"vistrain {name} {usage}", epilog=epilog,
            formatter_class=formatter, allow_abbrev=False,
        )  # fmt: skip
        made.set_defaults(run=run, **({"overrides": []} if changes else {}))
        return made

    made = command(fit, "train as a config says", "--config FILE [OPTIONS] [KEY=VALUE ...]", FIT_EXAMPLES, True)
    _config_option(made)
    made.add_argument(
        "--resume", metavar="FOLDER", type=Path,
        help="continue the run in this folder; `auto`: that of the config, if it was begun, else start it",
    )  # fmt: skip
    made.add_argument("--weights", metavar="FILE", help="start from these weights (the key run.weights)")
    made.add_argument(
        "--debug", action="store_true", help="find errors: no worker processes, anomaly detection, a line per step"
    )
    made.add_argument(
        "--print-config", choices=("composed", "full"), help="print the config and stop; `full` with all defaults"
    )
    _allow_option(made)

    made = command(test, "evaluate a checkpoint", "--ckpt FILE [OPTIONS] [KEY=VALUE ...]", TEST_EXAMPLES, True)
    made.add_argument("--ckpt", metavar="FILE", type=Path, help="a checkpoint of a run; it carries its config")
    _config_option(made)
    made.add_argument("--weights", metavar="FILE", help="an official checkpoint, for the network of --config")
    _analysis_option(made)
    _allow_option(made)

    made = command(
        reproduce, "evaluate published weights, and compare with the published numbers",
        "--config FILE --weights FILE [OPTIONS] [KEY=VALUE ...]", REPRODUCE_EXAMPLES, True,
    )  # fmt: skip
    _config_option(made)
    made.add_argument("--weights", metavar="FILE", help="the published checkpoint")
    made.add_argument("--output", metavar="FOLDER", type=Path, help="for the record (default: reproduced/<name>)")
    _allow_option(made)

    made = command(
        predict, "run a network on images: find, classify, restore",
        "--ckpt FILE --input IMAGES --output FOLDER [OPTIONS]", PREDICT_EXAMPLES, True,
    )  # fmt: skip
    made.add_argument("--ckpt", metavar="FILE", type=Path, help="a checkpoint of a run; nothing else is needed")
    _config_option(made)
    made.add_argument("--weights", metavar="FILE", help="an official checkpoint, for the network of --config")
    made.add_argument(
        "--input", metavar="IMAGES", nargs="+", required=True, help="files, folders, or patterns in quotes"
    )
    made.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="for predictions.json and pictures")
    made.add_argument("--threshold", type=float, help="detection: least score that counts (default: 0.3)")
    made.add_argument(
        "--tile", type=int, help="restoration: side of the tiles of large images (default: 512; 0: whole)"
    )
    made.add_argument("--batch-size", type=int, default=1, help="images at a time (default: %(default)s)")
    made.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps; an accelerator if there is one by default"
    )
    _allow_option(made)

    made = command(
        evaluate, "compute the numbers from a file of predictions, or a folder of restored pictures",
        "PREDICTIONS (--annotations FILE | --config FILE | --truth FOLDER) [OPTIONS] [KEY=VALUE ...]",
        EVALUATE_EXAMPLES, True,
    )  # fmt: skip
    made.add_argument(
        "predictions", metavar="PREDICTIONS", type=Path, help="a file in COCO's results format, or a folder of pictures"
    )
    made.add_argument("--annotations", metavar="FILE", type=Path, help="the truth, in COCO's format")
    _config_option(made)
    _analysis_option(made)
    made.add_argument("--images", metavar="FOLDER", type=Path, help="of --annotations, for pictures of the worst ones")
    made.add_argument("--truth", metavar="FOLDER", type=Path, help="true images, for a folder of restored pictures")
    made.add_argument("--protocol", metavar="NAME", default="sr_luma", help="for pictures (default: %(default)s)")
    made.add_argument("--scale", type=int, default=1, help="that pictures were enlarged by (default: %(default)s)")
    made.add_argument(
        "--color", choices=("rgb", "grey", "luma"), default="rgb", help="for pictures (default: %(default)s)"
    )
    made.add_argument("--lpips", metavar="FILE", nargs="+", default=[], help="weights for the protocol lpips")

    made = command(
        check, "look at the data before a GPU is spent on it", "--config FILE [OPTIONS] [KEY=VALUE ...]", changes=True
    )
    _config_option(made)
    made.add_argument(
        "--output", metavar="FOLDER", type=Path, help="for the report and pictures (default: check/<name>)"
    )
    _allow_option(made)

    made = command(
        profile, "parameters, multiply-adds, speed and memory of a network, and of its parts",
        "(BACKBONE | --config FILE) [OPTIONS] [KEY=VALUE ...]", PROFILE_EXAMPLES, True,
    )  # fmt: skip
    made.add_argument("name", metavar="BACKBONE", nargs="?", help="as `vistrain list backbones` names it")
    _config_option(made)
    made.add_argument("--size", type=int, nargs="+", metavar="N", help="side, or height and width, of images in pixels")
    made.add_argument("--batch", type=int, default=1, help="images at a time (default: %(default)s)")
    made.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; an accelerator if there is one")
    made.add_argument("--precision", default="32", help="32, bf16 or 16 (default: %(default)s)")
    made.add_argument("--repeats", type=int, default=5, help="passes to time (default: %(default)s); 0: count alone")
    made.add_argument("--json", action="store_true", help="print JSON")
    _allow_option(made)

    made = command(list_, "what there is", f"{{{','.join(_kinds())}}} [PATTERN]", LIST_EXAMPLES)
    made.add_argument("kind", metavar="KIND", help=", ".join(_kinds()))
    made.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="as for file names: 'resnet*'")

    made = command(explain, "what a class, a key or a config means", "NAME", EXPLAIN_EXAMPLES)
    made.add_argument("name", metavar="NAME")

    command(doctor, "check the installation, and print what a bug report needs", "")

    made = command(completion, "print a completion script for a shell", "{bash,zsh,fish}", COMPLETION_EXAMPLES)
    made.add_argument("shell", choices=("bash", "zsh", "fish"), nargs="?", default="bash")
    made.add_argument("--line", help=argparse.SUPPRESS)  # what the scripts ask: the command line up to the cursor
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--config", metavar="FILE", action="append", default=[],
        help="a YAML file, or a shipped config as vistrain:det/name; several are merged, later ones win",
    )  # fmt: skip


def _allow_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow", metavar="PACKAGE", action="append", default=[],
        help="let the config name classes of this package, and so run its code",
    )  # fmt: skip


def _analysis_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--analysis", metavar="FOLDER", type=Path,
        help="write a detector's confusion matrix, precision-recall curves, errors by kind and worst images there",
    )  # fmt: skip


def _kinds() -> list[str]:
    from vistrain.config.explain import KINDS

    return list(KINDS)


def _options(parser: argparse.ArgumentParser, command: str) -> list[str]:
    from vistrain.commands.completion import options_of

    return options_of(parser, command)


# -- commands: each is called as the word on the command line, and returns the exit code


def fit(arguments: argparse.Namespace) -> int:
    """Train."""
    with processes.leaving_at_once():
        config = _compose(arguments)
        if arguments.print_config:
            return _print_config(config, arguments.print_config == "full", arguments.allow)
        _start_logging()
        if processes.shares_store():
            logging.getLogger("vistrain").warning(
                "torchrun: processes that are restarted may not find each other - start it with "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
            )
        run, resume = _import_run(), arguments.resume
        # A launcher that starts the command again after a failure means the run that it started first.
        if resume == AUTO or (resume is None and processes.restarted()):
            from vistrain.run.folders import own_run

            resume = own_run(config)
        code: int = run.fit(config, resume=resume, debug=arguments.debug, allow=arguments.allow)
        return code


def test(arguments: argparse.Namespace) -> int:
    """Evaluate a checkpoint of ours, or a config's network with official weights."""
    if arguments.ckpt is None and not arguments.config:
        raise ConfigError("test", "nothing to evaluate", "give --ckpt FILE, or --config FILE with --weights FILE")
    if arguments.analysis is not None:
        folder = json.dumps(str(arguments.analysis))
        arguments.overrides += [
            "callbacks.analysis.type=callbacks.ErrorAnalysis",
            f"callbacks.analysis.folder={folder}",
        ]
    if arguments.ckpt is None:
        config: dict[str, Any] | None = _compose(arguments)
        overrides: list[str] = []
    else:  # files and changes come over the checkpoint's own config, which only `run` can read
        config = compose(arguments.config) if arguments.config else None
        overrides = arguments.overrides
    _start_logging()
    with processes.leaving_at_once():
        _import_run().test(
            config, checkpoint=arguments.ckpt, overrides=overrides, weights=arguments.weights, allow=arguments.allow
        )
    return 0


def reproduce(arguments: argparse.Namespace) -> int:
    """Compare published weights with published numbers."""
    from vistrain.run.reproduce import published, reproduce

    config = _compose(arguments)
    published(config.get("reference"))  # refused before torch is imported
    _start_logging()
    _import_run()
    from rich.console import Console

    report = reproduce(config, weights=arguments.weights, folder=arguments.output, allow=arguments.allow)
    if processes.is_first():
        Console().print(report)
        verdict = "reproduced" if report.ok else "not reproduced: a number is outside its tolerance"
        sys.stdout.write(f"{verdict}; record: {report.record}\n")
    return 0 if report.ok else 3


def predict(arguments: argparse.Namespace) -> int:
    """Run a network on images."""
    if (arguments.ckpt is None) == (not arguments.config):
        raise ConfigError("predict", "which network?", "give --ckpt FILE, or --config FILE with --weights FILE")
    if arguments.ckpt is not None and arguments.overrides:
        raise ConfigError(arguments.overrides[0], "a checkpoint is run as it is", "changes belong to --config")
    config = _compose(arguments) if arguments.config else None
    _start_logging()
    from vistrain.run.predict import predict_paths

    predict_paths(
        arguments.ckpt,
        arguments.input,
        arguments.output,
        batch_size=arguments.batch_size,
        device=arguments.device,
        allow=arguments.allow,
        config=config,
        weights=arguments.weights,
        threshold=arguments.threshold,
        tile=arguments.tile,
    )
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Numbers from a file of predictions, or a folder of restored pictures."""
    if arguments.truth is not None:
        return _evaluate_pictures(arguments)
    annotations = arguments.annotations
    if annotations is None and not arguments.config:
        raise ConfigError(
            "evaluate",
            "no truth to compare with",
            "give --annotations FILE, or the data's --config FILE; for restored pictures --truth FOLDER",
        )
    if annotations is not None and (arguments.config or arguments.overrides):
        raise ConfigError("evaluate", "--annotations and a config exclude each other", "give one of them")
    images = arguments.images
    if annotations is None:
        data = _detection_data(_compose(arguments))
        annotations, images = data.annotation_file("test"), images or data.folder("test")
    _start_logging()
    from rich.console import Console

    from vistrain.metrics.coco import evaluate_file

    Console().print(evaluate_file(arguments.predictions, annotations))
    if arguments.analysis is not None:
        from vistrain.tasks.detection.analysis import analyse_file

        Console().print(analyse_file(arguments.predictions, annotations, arguments.analysis, images))
        sys.stdout.write(f"analysis: {arguments.analysis}\n")
    return 0


def _evaluate_pictures(arguments: argparse.Namespace) -> int:
    if arguments.annotations is not None or arguments.config or arguments.overrides or arguments.analysis is not None:
        raise ConfigError("--truth", "is for pictures alone", "leave out --annotations, --config and --analysis")
    _start_logging()
    from rich.console import Console

    from vistrain.tasks.restoration.evaluate import evaluate_folder

    report = evaluate_folder(
        arguments.predictions, arguments.truth, arguments.protocol, arguments.scale, arguments.color, arguments.lpips
    )
    Console().print(report)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Open every file of the data."""
    config = _compose(arguments)
    _start_logging()
    from rich.console import Console

    from vistrain.data import DataModule
    from vistrain.data.detection.check import check

    data: DataModule = build(config.get("data"), DataModule, where="data", allow=arguments.allow)

    output = arguments.output or Path("check") / config["run"]["name"]
    report = check(data, output)
    Console().print(report.table())
    sys.stdout.write(f"report and pictures: {output}\n")
    return 0 if report.ok else 2


def profile(arguments: argparse.Namespace) -> int:
    """What a network costs."""
    if arguments.name is not None and "=" in arguments.name:  # a change to the config, which stands first
        arguments.overrides, arguments.name = [arguments.name, *arguments.overrides], None
    if (arguments.name is None) == (not arguments.config):
        raise ConfigError("profile", "which network?", "give the name of a backbone, or --config FILE")
    name: str = arguments.name or ""
    config = _compose(arguments) if arguments.config else None
    if name:
        index.check_backbone(name, "profile")
    _start_logging()
    _import_run()
    from rich.console import Console

    from vistrain.run.profile import profile_backbone, profile_config

    options = {key: getattr(arguments, key) for key in ("size", "batch", "device", "precision", "repeats")}
    if config is None:
        found = profile_backbone(name, **options)
    else:
        found = profile_config(config, allow=arguments.allow, **options)
    if arguments.json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=1) + "\n")
    else:
        Console().print(found.table())
    return 0


def list_(arguments: argparse.Namespace) -> int:
    """What there is."""
    from vistrain.config.explain import listing

    sys.stdout.write(listing(arguments.kind, arguments.pattern))
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """What a name means."""
    from vistrain.config.explain import explanation

    sys.stdout.write(explanation(arguments.name))
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """The state of the installation."""
    from vistrain.commands.doctor import report

    text, is_well = report()
    sys.stdout.write(text)
    return 0 if is_well else 2


def completion(arguments: argparse.Namespace) -> int:
    """A completion script."""
    from vistrain.commands.completion import SCRIPTS, candidates

    asked = arguments.line is not None
    sys.stdout.write("".join(f"{c}\n" for c in candidates(arguments.line)) if asked else SCRIPTS[arguments.shell])
    return 0


# -- what commands share


def _compose(arguments: argparse.Namespace) -> dict[str, Any]:
    """The config of a command; a run is called after its last file unless the config says otherwise."""
    files, resume = arguments.config, getattr(arguments, "resume", None)
    if not files and resume is not None and resume != AUTO:
        files = [resume / "config.yaml"]
        if not files[0].is_file():
            raise ConfigError("--resume", f"{resume} has no config.yaml", "it must be the folder of a run")
    if not files:
        raise ConfigError(
            arguments.command, "which config?", "give --config FILE; `vistrain list configs` shows those shipped"
        )
    changes = {"run": {"weights": arguments.weights}} if getattr(arguments, "weights", None) else {}
    return compose(
        files,
        arguments.overrides,
        start={"run": {"name": Path(str(files[-1]).rpartition(":")[2]).stem}},
        changes=changes,
    )


def _detection_data(config: dict[str, Any], allow: Sequence[str] = ()) -> CocoDetection:
    """The data module of a config, for commands that know boxes."""
    from vistrain.data import CocoDetection

    data: CocoDetection = build(config.get("data"), CocoDetection, where="data", allow=allow)
    return data


def _print_config(config: dict[str, Any], full: bool, allow: Sequence[str]) -> int:
    """The composed config; `full` also builds it, for all that only building can tell."""
    if not full:
        sys.stdout.write(to_yaml(config))
        return 0
    import torch

    from vistrain import run

    # On the meta device nothing is allocated, so there is nothing to load weights into.
    with torch.device("meta"):
        parts = run.build_parts(without_pretrained(config), allow)
    labels, count = parts.data.labels, sum(p.numel() for p in parts.model.parameters())
    facts = {
        "labels": {"name": labels.name, "channels": labels.num_classes, "classes": list(labels.names)},
        "preprocessing": parts.data.preprocessing.to_dict(),
        "parameters": count,
    }
    comments = "".join(f"# {line}\n" for line in to_yaml(facts).splitlines())
    sys.stdout.write(to_yaml(index.complete(config)) + "# What the data and the weights say:\n" + comments)
    return 0


def _how_to_resume(arguments: argparse.Namespace | None) -> str:
    if arguments is None or arguments.command != "fit":
        return ""
    try:
        run = _compose(arguments)["run"]
    except VistrainError:
        return ""
    given = None if arguments.resume == AUTO else arguments.resume
    folder = given or Path(run.get("folder") or Path("runs") / run["name"])
    saved = (folder / "last.ckpt").is_file()
    return f" - continue with: vistrain fit --resume {folder}" if saved else " - before anything was saved"


def _start_logging() -> None:
    """Messages of ours on stderr, from one process of a run."""
    logger = logging.getLogger("vistrain")
    logger.setLevel(logging.INFO if processes.is_first() else logging.ERROR)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())


def _import_run() -> ModuleType:
    """`vistrain.run`, with Lightning's chatter off: importing Lightning sets its level, so it is changed after that."""
    from vistrain import run

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return run
