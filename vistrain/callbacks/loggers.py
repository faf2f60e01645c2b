"""Where the numbers of a run go: `metrics.csv` always, TensorBoard and Weights & Biases on request."""

from __future__ import annotations

import csv
import difflib
import inspect
import logging
import os
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vistrain.errors import ConfigError

log = logging.getLogger(__name__)

WANDB_INIT_SECONDS = 20.0  # a server that does not answer by then is treated as absent
WANDB_FINISH_SECONDS = 120.0  # what is not uploaded by then stays on disk, for `wandb sync`


class CSVMetrics(Logger):
    """One `metrics.csv` with a row for each optimizer step at which something was logged.

    What is logged at the same step shares its row, so a number that is computed again replaces itself. A resumed run
    continues the file: rows of steps that it is about to repeat are dropped (`resume_at`). Each row is handed to the
    operating system before the next step. Only rank 0 writes.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = ["step"]
        self._row: dict[str, Any] = {}
        self._offset = 0  # where the latest row starts, in bytes
        self._opened = False

    @property
    def name(self) -> str:
        """As Lightning shows this logger."""
        return "csv"

    @property
    def version(self) -> int:
        """One file per run: there are no versions."""
        return 0

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the composed config."""

    @rank_zero_only
    def resume_at(self, step: int) -> None:
        """Forget what an earlier run logged after `step`; 0 forgets all."""
        self._opened = True
        if not self.path.exists():
            return
        rows = self.read() if step else []
        self._columns = list(rows[0]) if rows else ["step"]
        self._rewrite([row for row in rows if int(row["step"]) <= step])

    def read(self) -> list[dict[str, str]]:
        """The rows as text; empty where nothing was logged. A last line that was cut off is left out."""
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if None not in row.values() and None not in row and row["step"].isdigit()]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add numbers to the row of `step`."""
        if step is None:
            raise ValueError("metrics.csv has a row for each step: give the step")
        if not self._opened:
            self.resume_at(step)
        row = {name: float(value) for name, value in metrics.items() if name != "step"}
        same = self._row.get("step") == step
        self._row = {**(self._row if same else {}), "step": step, **row}
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            rows: list[dict[str, Any]] = list(self.read()) if self.path.exists() else []
            self._rewrite([*(r for r in rows if int(r["step"]) != step), self._row])
            return
        with self.path.open("r+" if self.path.exists() else "w", newline="") as file:
            file.seek(self._offset if same else 0, os.SEEK_SET if same else os.SEEK_END)
            self._append(file)
            file.truncate()

    def _append(self, file: Any) -> None:
        self._offset = file.tell()
        csv.DictWriter(file, self._columns, restval="").writerow({k: _short(v) for k, v in self._row.items()})

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The whole file anew, because its columns or its rows changed; whole or not at all."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            for row in rows:
                self._offset = file.tell()
                writer.writerow({k: _short(v) for k, v in row.items()})
        os.replace(temporary, self.path)


def _short(value: Any) -> Any:
    """Numbers to nine digits, which is all that a float32 holds."""
    return f"{value:.9g}" if isinstance(value, float) else value


def make_loggers(
    section: str | Sequence[str | Logger] | Mapping[str, Any] | None,
    run_folder: str | Path,
    config: Mapping[str, Any] | None = None,
) -> list[Logger]:
    """The loggers of a run.

    Args:
        section: what is wanted beside `metrics.csv`: `tensorboard`, `wandb`, a list of them, or a mapping from them to
            their options (`{wandb: {project: detectors, mode: online}}`). Ready-made loggers are passed on.
        run_folder: where they write.
        config: the composed config, for W&B's own table.

    Returns:
        `CSVMetrics` first.

    Raises:
        ConfigError: an unknown name, or an unknown option.
    """
    if isinstance(section, str):
        section = [section]
    wanted = dict(section) if isinstance(section, Mapping) else {str(entry): entry for entry in section or ()}
    loggers: list[Logger] = [CSVMetrics(run_folder)]
    for name, value in wanted.items():
        if value is None or value is False:
            continue
        if isinstance(value, Logger):
            loggers.append(value)
            continue
        options = dict(value) if isinstance(value, Mapping) else {}
        if name == "tensorboard":
            loggers.append(_tensorboard(run_folder, options))
        elif name == "wandb":
            logger = _wandb(run_folder, options, config)
            loggers += [logger] if logger is not None else []
        elif name != "csv":
            near = difflib.get_close_matches(name, ("tensorboard", "wandb", "csv"), 1, 0.0)
            raise ConfigError(f"logger.{name}", "no such logger", f"did you mean {near[0]!r}?")
    return loggers


def _check_options(where: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.0)
            raise ConfigError(f"{where}.{key}", "no such option", f"did you mean {near[0]!r}?")


def _tensorboard(run_folder: str | Path, options: dict[str, Any]) -> Logger:
    _check_options("logger.tensorboard", options, ("flush_secs", "max_queue"))
    try:
        return TensorBoardLogger(str(run_folder), name="", version="tensorboard", **options)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "logger.tensorboard", "TensorBoard is not installed", "pip install 'vistrain[tensorboard]'"
        ) from error


def _wandb(run_folder: str | Path, options: dict[str, Any], config: Mapping[str, Any] | None) -> Logger | None:
    """A W&B logger that never stops or blocks a run: offline unless asked otherwise, and offline where online fails."""
    known = ("project", "entity", "name", "group", "tags", "notes", "id", "mode")
    _check_options("logger.wandb", options, known)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return None
    import wandb  # takes a second, and few runs want it

    folder = Path(run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    mode = options.pop("mode", None) or os.environ.get("WANDB_MODE") or "offline"
    arguments = {
        "project": "vistrain",
        "name": folder.name,
        "dir": str(folder),
        "config": dict(config or {}),
        **options,
    }
    settings = wandb.Settings(init_timeout=WANDB_INIT_SECONDS)
    if hasattr(settings, "finish_timeout"):  # newer than the oldest release that works
        settings.finish_timeout = WANDB_FINISH_SECONDS
    run = None
    if mode == "online":
        try:
            # Without a key, `init` would ask for one on a terminal; without a network, verifying it would take long.
            arguments_of_login = inspect.signature(wandb.login).parameters
            ask = {"prompt": False} if "prompt" in arguments_of_login else {"timeout": 10}
            if wandb.login(verify=False, **ask):
                run = wandb.init(mode="online", settings=settings, **arguments)
            else:
                log.warning("W&B: no API key (`wandb login`); the run is recorded offline, `wandb sync` uploads it")
        except (wandb.errors.Error, OSError) as error:
            log.warning("W&B: %s; the run is recorded offline, `wandb sync` uploads it", str(error).splitlines()[0])
    if run is None:
        try:
            fallback: Literal["disabled", "offline"] = "disabled" if mode == "disabled" else "offline"
            run = wandb.init(mode=fallback, settings=settings, **arguments)
        except (wandb.errors.Error, OSError) as error:
            log.warning("W&B: %s; the run goes on without it", str(error).splitlines()[0])
            return None
    return WandbLogger(experiment=run)


def quiet() -> None:
    """Silence what Lightning says to everyone: advertisements, and warnings about torch's own data structures, about
    numbers that are logged on every process (the task has made them equal there), about modules in evaluation mode
    (frozen stages are meant to be), and about epochs that are short."""
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\('(val|test|train)/")
    warnings.filterwarnings("ignore", message=r"The number of training batches \(\d+\) is smaller than the logging")
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tips)


def _no_tips(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return "litlogger" not in message and "litmodels" not in message
