"""Where the numbers of a run go: `metrics.csv` always, TensorBoard, Weights & Biases and others on request."""

from __future__ import annotations

import csv
import inspect
import logging
import os
import uuid
import warnings
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from vistrain.config import build, index
from vistrain.config.builder import class_named, refusals, signature
from vistrain.errors import ConfigError, first_line
from vistrain.internals.lightning import rank_of_process
from vistrain.structures import Factory

log = logging.getLogger(__name__)

WANDB_INIT_SECONDS = 20.0  # a server that does not answer by then is treated as absent
WANDB_FINISH_SECONDS = 120.0  # what is not uploaded by then stays on disk, for `wandb sync`


class CSVMetrics(Logger):
    """One `metrics.csv` with a row for each optimizer step at which something was logged.

    What is logged at the same step shares its row, so a number that is computed again replaces itself. A resumed run
    continues the file: rows of steps that it is about to repeat are dropped (`resume_at`). Each row is handed to the
    operating system before the next step. What a full disk refused is kept, and written with the next row that finds
    room. Only rank 0 writes.

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
        self._unwritten: dict[int, dict[str, Any]] = {}  # rows that the disk had no room for, by step

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
        try:
            rows = self.read() if step else []
        except (OSError, ValueError, KeyError, csv.Error) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            log.warning("%s cannot be read (%s): it is %s now", self.path, first_line(error), aside.name)
            self.path.rename(aside)
            rows = []
        self._columns = list(rows[0]) if rows else ["step"]
        kept = [row for row in rows if int(row["step"]) <= step]
        self._rewrite(kept)
        if kept and int(kept[-1]["step"]) == step:  # an evaluation that is still to come belongs to this row
            numbers = {name: float(text) for name, text in kept[-1].items() if name != "step" and text}
            self._row = {"step": step, **numbers}

    def read(self) -> list[dict[str, str]]:
        """The rows as text; empty where nothing was logged. A last line that was cut off is left out."""
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [row for row in rows if None not in row.values() and None not in row and row["step"].isdigit()]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add numbers to the row of `step`.

        Raises:
            OSError: they could not be written; they will be, with a later row.
        """
        if step is None:
            raise ValueError("metrics.csv has a row for each step: give the step")
        if not self._opened:
            self.resume_at(step)
        row = {name: float(value) for name, value in metrics.items() if name != "step"}
        same = self._row.get("step") == step
        self._row = {**(self._row if same else {}), "step": step, **row}
        new = [name for name in row if name not in self._columns]
        self._columns += new
        try:
            self._write(step, same, anew=bool(new or self._unwritten))
        except OSError:
            self._unwritten[step] = self._row
            raise
        self._unwritten = {}

    def _write(self, step: int, same: bool, anew: bool) -> None:
        if anew:
            rows: list[dict[str, Any]] = list(self.read()) if self.path.exists() else []
            latest = {**self._unwritten, step: self._row}
            self._rewrite([*(r for r in rows if int(r["step"]) not in latest), *latest.values()])
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
        try:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._columns, restval="")
                writer.writeheader()
                for row in rows:
                    self._offset = file.tell()
                    writer.writerow({k: _short(v) for k, v in row.items()})
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _short(value: Any) -> Any:
    """Numbers to nine digits, which is all that a float32 holds."""
    return f"{value:.9g}" if isinstance(value, float) else value


class TensorBoard(TensorBoardLogger):
    """TensorBoard's event files, in `tensorboard/` of the run folder.

    Args:
        save_dir: folder in place of the run folder.
        flush_secs: seconds between writes to disk.
        max_queue: events that may wait for one.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, save_dir: str = ".", flush_secs: int = 120, max_queue: int = 10) -> None:
        try:
            super().__init__(save_dir, name="", version="tensorboard", flush_secs=flush_secs, max_queue=max_queue)
        except ModuleNotFoundError as error:
            raise ConfigError(
                "logger.tensorboard", "TensorBoard is not installed", "pip install 'vistrain[tensorboard]'"
            ) from error

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the composed config."""


class WandB(WandbLogger):
    """Weights & Biases, which never stops or blocks a run: offline unless asked otherwise, and where online fails.

    `wandb sync` uploads what was recorded offline. Where not even that can be begun, the run goes on without it. A run
    folder has one id, in `wandb_id.txt`, so that a resumed run is the same one there, too.

    Args:
        project: that the run belongs to.
        entity: whose project; None: the account's own.
        name: of the run; None: that of its folder.
        group: of runs that belong together.
        tags: words to find it by.
        notes: a longer text.
        id: of a run to continue; None: that of the run folder.
        mode: None takes `WANDB_MODE`, and `offline` without it.
        save_dir: folder in place of the run folder.
    """

    def __init__(
        self,
        project: str = "vistrain",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: tuple[str, ...] = (),
        notes: str | None = None,
        id: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        save_dir: str = ".",
    ) -> None:
        is_first = rank_of_process() == 0
        own = id or (_id_of(Path(save_dir)) if is_first else None)
        given = {"entity": entity, "group": group, "tags": tags, "notes": notes, "id": own}
        arguments: dict[str, Any] = {"project": project, "name": name or Path(save_dir).resolve().name, "dir": save_dir}
        arguments |= {key: value for key, value in given.items() if value}
        wanted = mode or os.environ.get("WANDB_MODE") or "offline"
        run = _begin_run(wanted, arguments) if is_first else None
        super().__init__(experiment=run, save_dir=save_dir, project=project)


def _id_of(folder: Path) -> str | None:
    """The id under which W&B knows the run of a folder; a new one the first time."""
    path = folder / "wandb_id.txt"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        log.warning("%s: %s; a resumed run will be another one there", path, error.strerror)
        return None


def _begin_run(mode: str, arguments: dict[str, Any]) -> Any:
    """A run of W&B in the first of these modes that works: the wanted one, offline, disabled."""
    import wandb  # takes a second, and few runs want it

    Path(arguments["dir"]).mkdir(parents=True, exist_ok=True)

    def settings() -> Any:
        """Made anew for each attempt, since W&B writes into them."""
        made = wandb.Settings(init_timeout=WANDB_INIT_SECONDS)
        if hasattr(made, "finish_timeout"):  # newer than the oldest release that works
            made.finish_timeout = WANDB_FINISH_SECONDS
        return made

    if mode == "online":
        try:
            # Without a key, `init` would ask for one on a terminal; without a network, verifying it would take long.
            arguments_of_login = inspect.signature(wandb.login).parameters
            ask = {"prompt": False} if "prompt" in arguments_of_login else {"timeout": 10}
            if wandb.login(verify=False, **ask):
                return wandb.init(mode="online", settings=settings(), resume="allow", **arguments)
            log.warning("W&B: no API key (`wandb login`); the run is recorded offline, `wandb sync` uploads it")
        except (wandb.errors.Error, OSError) as error:
            log.warning("W&B: %s; the run is recorded offline, `wandb sync` uploads it", str(error).splitlines()[0])
            arguments = {k: v for k, v in arguments.items() if k != "id"}  # which W&B holds to be in use now
    if mode != "disabled":
        try:
            return wandb.init(mode="offline", settings=settings(), **arguments)
        except (wandb.errors.Error, OSError) as error:
            log.warning("W&B: %s; the run goes on without it", str(error).splitlines()[0])
    return wandb.init(mode="disabled", settings=settings(), **arguments)


BY_NAME: dict[str, type[Logger]] = {"wandb": WandB, "tensorboard": TensorBoard}  # see `index.LOGGERS`


def make_loggers(
    section: Any, run_folder: str | Path, config: Mapping[str, Any] | None = None, allow: Collection[str] = ()
) -> list[Logger]:
    """The loggers of a run.

    Args:
        section: what is wanted beside `metrics.csv`, as a config's `logger` says it: nodes by name, of which `wandb`
            and `tensorboard` need no `type`; or one of these names, or a list of them.
        run_folder: where they write, unless their nodes give a `save_dir`.
        config: the composed config; loggers that have a table for it receive it.
        allow: see `config.build`.

    Returns:
        `CSVMetrics` first.

    Raises:
        ConfigError: an unknown name, or an argument that its class does not take.
    """
    loggers = [CSVMetrics(run_folder), *build_loggers(section, run_folder, allow)]
    for logger in loggers:
        with refusals(type(logger), "logger", ()):  # some begin only now
            logger.log_hyperparams(dict(config or {}))
    return loggers


def build_loggers(section: Any, run_folder: str | Path, allow: Collection[str] = ()) -> list[Logger]:
    """The loggers that a config names, before they are told a config; see `make_loggers`. W&B's have begun."""
    return [_build(name, node, str(run_folder), allow) for name, node in index.loggers(section).items()]


def check_loggers(section: Any, run_folder: str | Path, allow: Collection[str] = ()) -> None:
    """Refuse what `build_loggers` would, and begin nothing.

    Raises:
        ConfigError: see `make_loggers`.
    """
    for name, node in index.loggers(section).items():
        if "type" not in node and BY_NAME[name] is WandB:
            build(node, Factory[WandB], where=f"logger.{name}", allow=allow)
        else:
            _build(name, node, str(run_folder), allow)


def _build(name: str, node: dict[str, Any], folder: str, allow: Collection[str]) -> Logger:
    where = f"logger.{name}"
    cls = class_named(node["type"], Logger, where, allow=allow) if "type" in node else BY_NAME[name]
    if cls is WandbLogger and not {"offline", "mode"} & node.keys() and "WANDB_MODE" not in os.environ:
        node = {**node, "offline": True}  # as ours: without an account it would end the run
    is_missing = "save_dir" in signature(cls)[0] and "save_dir" not in node
    given = {"save_dir": folder} if is_missing else {}
    try:
        logger: Logger = build(node, Logger if "type" in node else cls, where=where, allow=allow, given=given)
    except ModuleNotFoundError as error:
        raise ConfigError(
            where, f"{cls.__name__} wants a package that is missing", str(error).splitlines()[0]
        ) from error
    return logger


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
