"""Attention operators beside softmax: what each costs by the number of tokens, and what a small host learns with it.

    python tools/benchmark_attention.py cost --output runs/attention           forward, backward, memory; growth checked
    python tools/benchmark_attention.py cost --output runs/attention --device cuda --precision bf16 --tokens 4096 16384
    python tools/benchmark_attention.py plain --output runs/attention          ours against papers' plain computation
    python tools/benchmark_attention.py train --output runs/attention          all operators, two tasks, three seeds
    python tools/benchmark_attention.py tables --output runs/attention         pictures, and tables in Markdown
    python tools/benchmark_attention.py tables --write                         those of docs/attention.md, too

Results are appended to CSV files, row by row; what is there already is not measured again. `--operators` chooses some.
Freed memory is kept (`benchmarking.keep_freed_memory`): else the growth that is measured is that of clearing pages.

`cost`: width 192, 6 heads, batch 1, square maps, arguments as published; median of 5, processor time with one thread.
Operators that grow faster than N log N are measured up to 4096 tokens. Exit code 1 says that between 4096 and 16384
tokens time grows faster than an operator states (`attention.base.EXPONENTS`). `train`: see `RECIPE`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before what imports vistrain
import timm
import torch
from attention_plain import PLAIN
from benchmarking import alternate, keep_freed_memory, machine, medians, ratio
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import vistrain.backbones  # noqa: F401 - registers the hosts
from vistrain.attention.base import EXPONENTS, AttentionOperator, auxiliary_losses, operators_of
from vistrain.attention.choice import ChosenOperator, operators, short_name
from vistrain.attention.neighborhood import by_definition
from vistrain.contract import constructor
from vistrain.data import Digits
from vistrain.devices import choose_device
from vistrain.run.profile import PRECISIONS
from vistrain.run.speed import peak_memory

WIDTH, HEADS = 192, 6
TOKENS = (196, 1024, 4096, 16384)
CHECKED = (4096, 16384)
QUADRATIC_MOST = 4096
YARDSTICK = "softmax"
PAGE = Path(__file__).parents[1] / "docs" / "attention.md"
Row = dict[str, Any]


# --- files that are appended to --------------------------------------------------------------------------------------


class Rows:
    """A CSV file of rows that are told apart by some of their columns.

    Args:
        path: of the file; made with its first row.
        keys: columns that say which measurement a row is.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, tuple(keys)
        self.rows: list[Row] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, **values: Any) -> bool:
        """Whether there is a row with these keys."""
        wanted = {key: str(value) for key, value in values.items()}
        return any(all(row[key] == value for key, value in wanted.items()) for row in self.rows)

    def append(self, row: Row) -> None:
        """Writes a row at once, so that what is measured is kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({key: str(value) for key, value in row.items()})
        print("  ".join(f"{key}={value}" for key, value in row.items() if value != ""), flush=True)


ON_PAGE = {"32": "cost", "bf16": "cost in bf16"}  # precision -> its table of docs/attention.md
COST_KEYS = ("operator", "tokens", "device", "precision")
TRAIN_KEYS = ("task", "operator", "seed")
PLAIN_KEYS = ("operator", "pass")
PASSES = {"forward": False, "forward_backward": True}
PLAIN_SECONDS = 2.0  # that both sides of a ratio are run for, in up to 40 turns


def wait(device: torch.device) -> None:
    """Until all work of an accelerator is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of some runs after one; processor time where one thread of a processor computes."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def waited() -> None:
        run()
        wait(device)

    return statistics.median(alternate({"run": waited}, repeats, 1, clock)["run"])


# --- cost ------------------------------------------------------------------------------------------------------------


def made(cls: type[AttentionOperator], side: int) -> AttentionOperator:
    """An operator of the common width for a square map."""
    torch.manual_seed(0)
    return ChosenOperator(cls, {}).build(WIDTH, HEADS, (side, side), layer=1, layers=2)


def measure_cost(arguments: argparse.Namespace) -> int:
    """The command `cost`."""
    device, rows = choose_device(arguments.device), Rows(arguments.output / "cost.csv", COST_KEYS)
    cast = PRECISIONS[arguments.precision]
    for cls, tokens in itertools.product(chosen(arguments), arguments.tokens):
        name = short_name(cls)
        at = {"operator": name, "tokens": tokens, "device": device.type, "precision": arguments.precision}
        if rows.has(**at) or (EXPONENTS[cls.growth] > EXPONENTS["N log N"] and tokens > QUADRATIC_MOST):
            continue
        side = math.isqrt(tokens)
        operator = made(cls, side).to(device)
        size = operator.fitting((side, side))
        x = torch.randn(1, math.prod(size), WIDTH, device=device, requires_grad=True)
        exact = operator.float32

        def forward(operator: Any = operator, x: Tensor = x, size: Any = size, exact: bool = exact) -> Tensor:
            with torch.autocast(device.type, cast, enabled=cast is not None and not exact):
                out: Tensor = operator(x, size)
            return out

        def infer(forward: Callable[[], Tensor] = forward) -> None:
            with torch.no_grad():
                forward()

        def step(forward: Callable[[], Tensor] = forward, operator: AttentionOperator = operator) -> None:
            out = forward()
            sum(operator.auxiliary_losses().values(), out.float().square().mean()).backward()
            operator.zero_grad()

        operator.eval()
        fast = seconds_of(infer, device, arguments.repeats)
        operator.train()
        peak = peak_memory(step, device)
        slow = seconds_of(step, device, arguments.repeats)
        rows.append(
            {
                **at,
                "real_tokens": math.prod(size),
                "growth": cls.growth,
                "forward_ms": f"{1e3 * fast:.3f}",
                "forward_backward_ms": f"{1e3 * slow:.3f}",
                "peak_mib": "" if peak is None else f"{peak / 2**20:.1f}",
                "path": operator.path(device),
                "threads": torch.get_num_threads(),
            }
        )
    return check_growth(rows, device.type, arguments.precision)


def exponent(rows: Sequence[Row], column: str) -> float:
    """How a column grows from the first to the last of rows in the order of their tokens."""
    first, last = rows[0], rows[-1]
    return math.log(float(last[column]) / float(first[column])) / math.log(
        int(last["real_tokens"]) / int(first["real_tokens"])
    )


def growths(rows: Rows, device: str, precision: str) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Name, stated growth and measured exponents of each operator that was measured at `CHECKED`."""
    for name in dict.fromkeys(row["operator"] for row in rows.rows):
        ours = [r for r in rows.rows if (r["operator"], r["device"], r["precision"]) == (name, device, precision)]
        ends = sorted((r for r in ours if int(r["tokens"]) in CHECKED), key=lambda r: int(r["tokens"]))
        if len(ends) == 2:
            columns = ("forward_ms", "forward_backward_ms", "peak_mib")
            yield name, ends[0]["growth"], {c: exponent(ends, c) for c in columns if all(r[c] for r in ends)}


def check_growth(rows: Rows, device: str, precision: str) -> int:
    """1 if an operator takes more time with more tokens than it states, else 0."""
    failed = 0
    for name, stated, found in growths(rows, device, precision):
        most = EXPONENTS[stated]  # type: ignore[index]
        bad = device == "cpu" and max(found["forward_ms"], found["forward_backward_ms"]) > most
        failed |= bad
        shown = ", ".join(f"{column.removesuffix('_ms')} {value:.2f}" for column, value in found.items())
        print(f"{'TOO FAST' if bad else 'ok':8} {name}: states {stated}, exponent at most {most}; {shown}")
    return int(failed)


# --- against plain formulations --------------------------------------------------------------------------------------


def measure_plain(arguments: argparse.Namespace) -> int:
    """The command `plain`: width 128, 4 heads; both sides compute the same."""
    rows = Rows(arguments.output / "plain.csv", PLAIN_KEYS)
    for cls in chosen(arguments):
        if cls not in PLAIN:
            print(f"{short_name(cls)}: `attention_plain` has no formulation of it")
            continue
        plain, side = PLAIN[cls]
        if all(rows.has(**{"operator": short_name(cls), "pass": name}) for name in PASSES):
            continue
        size = (side, side)
        torch.manual_seed(0)
        operator = ChosenOperator(cls, {}).build(128, 4, size, layer=1, layers=2).eval()
        x = torch.randn(1, side**2, 128, requires_grad=True)
        torch.testing.assert_close(operator(x, size), plain(operator, x, size), rtol=0, atol=3e-5)

        def run(call: Callable[..., Tensor], backward: bool, x: Tensor = x, size: Any = size) -> None:
            with torch.set_grad_enabled(backward):
                out = call(x, size)
                if backward:
                    out.square().mean().backward()

        for name, backward in PASSES.items():
            sides = {
                "ours": functools.partial(run, operator, backward),
                "plain": functools.partial(run, functools.partial(plain, operator), backward),
            }
            clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
            once = alternate(sides, 1, 1, clock)
            enough = max(arguments.repeats, min(40, math.ceil(PLAIN_SECONDS / sum(map(sum, once.values())))))
            times = alternate(sides, enough, 0, clock)
            ms = {side: f"{1e3 * value:.2f}" for side, value in medians(times).items()}
            faster = f"{ratio(times, 'plain', 'ours'):.2f}"
            rows.append({"operator": short_name(cls), "pass": name, "side": side, **ms, "times_as_fast": faster})
    return 0


# --- training --------------------------------------------------------------------------------------------------------

RECIPE = """A pyramid of two stages of a block, widths 32 and 64, heads of 16, on images of 32x32: maps of 8x8 and 4x4.
The 8x8 digits inside scikit-learn, enlarged (1438 to learn from, 359 to test); generated gratings of five directions
and two periods in noise (1500 and 500). 250 steps of 64 images, AdamW, learning rate 2e-3 with a cosine and 15 steps of
warm-up, weight decay 0.05, shifts by up to an eighth of the side. Seeds are of weights and order. A run ends after 45 s
of processor time."""
STEPS, BATCH, SECONDS = 250, 64, 45.0
# Arguments for maps of 8x8, for the operators that have them
SMALL = {"window_size": 4, "kernel_size": 3, "block_size": 4, "halo_size": 1, "n_win": 4, "agent_num": 16}
SMALL |= {"local_window": 16}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `[n, 1, 32, 32]` in -1..1 and classes, to learn from and to test with."""
    data = Digits(batch_size=BATCH)
    found = []
    for split in ("train", "test"):
        images, labels, _ = data.arrays(split)  # type: ignore[arg-type]
        enlarged = F.interpolate(torch.from_numpy(images).float()[:, None], (32, 32), mode="bilinear")
        found += [enlarged / 127.5 - 1, torch.from_numpy(labels)]
    return found[0], found[1], found[2], found[3]


def gratings() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same, generated: `[n, 3, 32, 32]`, a grating of any phase and colour in stronger noise."""
    generator, found = torch.Generator().manual_seed(0), []
    grid = torch.arange(32.0)
    for count in (1500, 500):
        labels = torch.randint(10, (count,), generator=generator)
        angle, period = (labels % 5 * math.pi / 5)[:, None, None], (4.0 + 3 * (labels // 5))[:, None, None]
        phase = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
        wave = torch.sin(2 * math.pi * (grid * angle.cos() + grid[:, None] * angle.sin()) / period + phase)
        colour = torch.randn(count, 3, 1, 1, generator=generator)
        found += [0.7 * wave[:, None] * colour + torch.randn(count, 3, 32, 32, generator=generator), labels]
    return found[0], found[1], found[2], found[3]


TASKS: dict[str, tuple[Callable[[], tuple[Tensor, ...]], dict[str, int]]] = {
    "digits": (digits, {"in_chans": 1}),
    "gratings": (gratings, {"in_chans": 3}),
}


def host(cls: type[AttentionOperator], image: dict[str, int]) -> Any:
    """The small host with an operator."""
    own = {name: value for name, value in SMALL.items() if name in constructor(cls)[0]}
    size = {"embed_dims": (32, 64), "depths": (1, 1), "num_heads": (2, 4), "mlp_ratios": (2, 2), "img_size": 32}
    arguments = {"attention": cls, "attention_args": own, "num_classes": 10, **size, **image}
    return timm.create_model("attention_pyramid_micro", **arguments)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by up to an eighth of its side; what leaves comes in as the border's last pixels."""
    side = images.shape[-1]
    reach = side // 8
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    y, x = torch.randint(2 * reach + 1, (2,), generator=generator).tolist()
    return padded[..., y : y + side, x : x + side]


def train(cls: type[AttentionOperator], image: dict[str, int], data: Sequence[Tensor], seed: int) -> Row:
    """One run: accuracy on the test set in percent, and what it took."""
    torch.manual_seed(seed)
    model = host(cls, image)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    factor = lambda step: min((step + 1) / 15, (1 + math.cos(math.pi * step / STEPS)) / 2)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    images, labels, test_images, test_labels = data
    model.train()
    found, start, steps, order = operators_of(model), time.process_time(), 0, torch.empty(0, dtype=torch.long)
    while steps < STEPS and time.process_time() - start < SECONDS:
        if len(order) < BATCH:
            order = torch.randperm(len(images), generator=generator)
        batch, order = order[:BATCH], order[BATCH:]
        for operator in found:
            operator.at_progress(steps / STEPS)
        loss = F.cross_entropy(model(shifted(images[batch], generator)), labels[batch])
        loss = sum(auxiliary_losses(found).values(), loss)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        steps += 1
    seconds = time.process_time() - start
    model.eval()
    with torch.no_grad():
        right = [
            (model(part).argmax(1) == truth).sum().item()
            for part, truth in zip(test_images.split(100), test_labels.split(100), strict=True)
        ]
    with torch.device("meta"):
        fake = host(cls, image).eval().requires_grad_(False)
        with by_definition(fake), FlopCounterMode(display=False) as counter:
            fake(torch.zeros(1, *images.shape[1:]))
    return {
        "accuracy": f"{100 * sum(right) / len(test_labels):.2f}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
        "step_ms": f"{1e3 * seconds / steps:.1f}",
        "steps": steps,
    }


def measure_training(arguments: argparse.Namespace) -> int:
    """The command `train`."""
    rows = Rows(arguments.output / "training.csv", TRAIN_KEYS)
    for seed, (task, (load, image)) in itertools.product(range(arguments.seeds), TASKS.items()):
        data: tuple[Tensor, ...] | None = None
        for cls in chosen(arguments):
            at = {"task": task, "operator": short_name(cls), "seed": seed}
            if not rows.has(**at):
                data = data or load()
                rows.append({**at, **train(cls, image, data, seed)})
    return 0


# --- tables and pictures ---------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines)) + "\n"


def training_table(rows: Rows) -> str:
    """A line for each operator: mean and deviation on each task, and of how many seeds where it is not of all."""
    by: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows.rows:
        by[row["operator"]][row["task"]].append(row)
    lines, most = [], max((len(found) for tasks in by.values() for found in tasks.values()), default=0)
    for name, tasks in sorted(by.items()):
        cells = [f"`{name}`"]
        for task in TASKS:
            found = [float(row["accuracy"]) for row in tasks[task]]
            spread = f" +- {statistics.pstdev(found):.1f}" if len(found) > 1 else ""
            of = "" if len(found) == most else f" ({len(found)} of {most})"
            cells.append(f"{statistics.mean(found):.1f}{spread}{of}" if found else "-")
        last = tasks["gratings"] or tasks["digits"]
        parameters, macs = int(last[0]["parameters"]), int(last[0]["multiply_adds"])
        step = statistics.median(float(row["step_ms"]) for row in last)
        lines.append([*cells, f"{parameters / 1e3:.0f}", f"{macs / 1e6:.1f}", f"{step:.0f}"])
    return markdown(
        ["operator", *(f"{task}, %" for task in TASKS), "parameters, 10^3", "multiply-adds, 10^6", "step, ms"], lines
    )


def cost_table(rows: Rows, device: str, precision: str) -> str:
    """Forward and backward at the largest numbers of tokens beside softmax, peak memory, and exponents."""
    at: dict[tuple[str, int], Row] = {
        (r["operator"], int(r["tokens"])): r for r in rows.rows if (r["device"], r["precision"]) == (device, precision)
    }
    found = {name: values for name, _, values in growths(rows, device, precision)}
    names = sorted({name for name, _ in at})
    lines = []
    for name in names:
        cells = [f"`{name}`", f"O({next(r for (n, _), r in at.items() if n == name)['growth']})"]
        for tokens in (1024, 4096, 16384):
            row = at.get((name, tokens))
            cells += [f"{float(row['forward_ms']):.0f} / {float(row['forward_backward_ms']):.0f}" if row else "-"]
        row = at.get((name, 4096))
        cells += [f"{float(row['peak_mib']):.0f}" if row and row["peak_mib"] else "-"]
        cells += [f"{v['forward_ms']:.2f} / {v['forward_backward_ms']:.2f}" if (v := found.get(name)) else "-"]
        cells += [f"{v['peak_mib']:.2f}" if v and "peak_mib" in v else "-"]
        lines.append(cells)
    return markdown(
        ["operator", "states", "1024, ms", "4096, ms", "16384, ms", "4096, MiB", "exponent", "of memory"], lines
    )


def plain_table(rows: Rows) -> str:
    """How many times as fast as plain computation, for each operator."""
    by: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows.rows:
        by[row["operator"]][row["pass"]] = row
    lines = []
    for name, passes in sorted(by.items()):
        side = next(iter(passes.values()))["side"]
        ratios = [passes[kind]["times_as_fast"] if kind in passes else "-" for kind in PASSES]
        lines.append([f"`{name}`", f"{side}x{side}", *ratios])
    return markdown(["operator", "tokens", "forward", "forward and backward"], lines)


def draw_cost(rows: Rows, path: Path, device: str, precision: str, dpi: int = 90) -> None:
    """Time of forward and backward, and peak memory, by tokens; softmax in black."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(14, 8), layout="constrained")
    names = sorted({r["operator"] for r in rows.rows})
    colours = pyplot.colormaps["tab20"]
    for axis, (column, title) in zip(
        axes, (("forward_backward_ms", "forward and backward, ms"), ("peak_mib", "peak memory, MiB")), strict=True
    ):
        for i, name in enumerate(names):
            ours = [r for r in rows.rows if (r["operator"], r["device"], r["precision"]) == (name, device, precision)]
            points = sorted((int(r["real_tokens"]), float(r[column])) for r in ours if r[column])
            style = {"color": "black", "linewidth": 3, "zorder": 3} if name == YARDSTICK else {"color": colours(i % 20)}
            dashes = ("-", "--", ":")[i // 20 % 3] if name != YARDSTICK else "-"
            axis.loglog(*zip(*points, strict=True), dashes, marker=".", label=name, **style)
        axis.set_xlabel("tokens")
        axis.set_title(title)
        axis.grid(visible=True, which="both", alpha=0.2)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    figure.savefig(path, dpi=dpi)
    pyplot.close(figure)


def write_tables(arguments: argparse.Namespace) -> int:
    """The command `tables`."""
    folder = arguments.output
    rows = Rows(folder / "cost.csv", COST_KEYS)
    for device, precision in sorted({(r["device"], r["precision"]) for r in rows.rows}):
        table = cost_table(rows, device, precision)
        (folder / f"cost_{device}_{precision}.md").write_text(table)
        draw_cost(rows, folder / f"cost_{device}_{precision}.png", device, precision)
        print(f"{device}, {precision}\n\n{table}")
        if arguments.write and device == "cpu" and precision in ON_PAGE:
            write_on_page(ON_PAGE[precision], table)
            if precision == "32":
                draw_cost(rows, PAGE.with_name("attention_cost.png"), device, precision, dpi=60)
    table = training_table(Rows(folder / "training.csv", TRAIN_KEYS))
    (folder / "training.md").write_text(table)
    print(table)
    plain = plain_table(Rows(folder / "plain.csv", PLAIN_KEYS))
    (folder / "plain.md").write_text(plain)
    print(plain)
    if arguments.write:
        write_on_page("training", table)
        write_on_page("plain", plain)
    return 0


def write_on_page(kind: str, table: str) -> None:
    """Puts a table where docs/attention.md has it, and says where and when it was measured."""
    begin, end = f"<!-- {kind}: written by tools/benchmark_attention.py -->\n", f"<!-- end of {kind} -->\n"
    found = machine()
    said = f"{found['cpu']}, one thread, processor time, torch {found['torch']}, {found['date']}.\n\n"
    known = {short_name(cls) for cls in operators().values()}
    missing = sorted(name for name in known if f"| `{name}` |" not in table)
    if missing:
        said += "Without a row, as nobody measured them yet: " + ", ".join(f"`{name}`" for name in missing) + ".\n\n"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(before + begin + said + table + end + rest.split(end, 1)[1])


def chosen(arguments: argparse.Namespace) -> list[type[AttentionOperator]]:
    """The operators to measure, softmax first."""
    known = {short_name(cls): cls for cls in operators().values()}
    wanted = arguments.operators or sorted(known, key=lambda name: (name != YARDSTICK, name))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"no operator {unknown[0]}; there are {', '.join(sorted(known))}")
    return [known[name] for name in wanted]


COMMANDS = {"cost": measure_cost, "plain": measure_plain, "train": measure_training, "tables": write_tables}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--output", type=Path, default=Path("runs/attention"), help="folder of the CSV files")
    parser.add_argument("--operators", nargs="+", help="short names; all if left out")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), help="squares")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32", choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="with tables: those of docs/attention.md, and its picture")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    print(machine())
    return COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
