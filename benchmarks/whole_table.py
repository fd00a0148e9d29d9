"""How long the paper's whole table takes on other machines: a model of few measured numbers.

    seconds = (runs x (a run's own) + programs x (a program's compilation)) / runs at once
              + test images x (decoding) / cores
              + the larger of (training flop / rate) and (training images x decoding / cores)
              + testing flop / rate

Counted: runs, images and operations, from the shapes and the datasets' published sizes. Measured,
on this machine: a run's own seconds, those of a program, those of an image, and this machine's
rate. Extrapolated: the rates of others, which are a share of their makers' peaks.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.chips import CHIPS, H100
from dpt_jax.training.cost import Costs, Seen
from dpt_jax.training.grid import Run, plan
from dpt_jax.training.presets import PAPER


class Measured(NamedTuple):
    """What this machine was seen to need, in seconds, and its operations per second.

    run: what each run takes besides computing, compiling and reading images. programs: compiled for
    the first run of a method on a dataset. image: of one core, to read one.
    """

    run: float
    programs: float
    program: float
    train_image: float
    test_image: float
    rate: float


class Machine(NamedTuple):
    """A machine: operations per second of all its devices in bfloat16, and its CPU cores.

    rate: 0 for this one, whose rate is measured. at_once: runs beside each other, one a device.
    """

    name: str
    rate: float
    cores: int
    at_once: int = 1


# Cores as Google's machine types ct5lp-hightpu-1t, ct5lp-hightpu-8t and a3-highgpu-1g have them.
MACHINES = (
    Machine("2 CPU cores", 0.0, 2),
    Machine("one v5e chip", CHIPS["v5e"].flops, 24),
    Machine("eight v5e chips, a run on each", 8 * CHIPS["v5e"].flops, 224, at_once=8),
    Machine("one H100", H100.flops, 26),
)


class Table(NamedTuple):
    """What the whole table needs: counts, and operations.

    firsts: runs that are the first of their method on a dataset, and compile.
    """

    runs: int
    firsts: int
    trained: int
    looked: int
    training: float
    testing: float


def whole_table() -> Table:
    """Return what DPT's whole table needs, by the published sizes of its datasets."""
    runs = plan(PAPER.protocol, PAPER.methods, PAPER.datasets, (), PAPER.shots, PAPER.seeds)
    costs, seen = Costs({}, read_all=False), Seen()
    return _added_up(runs, costs, seen)


def _added_up(runs: Sequence[Run], costs: Costs, seen: Seen) -> Table:
    total = Table(len(runs), len({(run.method, run.dataset) for run in runs}), 0, 0, 0.0, 0.0)
    looked: dict[object, int] = {}
    for run in runs:
        cost = costs.of(run)
        assert cost is not None  # the paper's datasets have published sizes
        looked |= {key: look.images for key, look in cost.looks.items()}
        total = total._replace(
            trained=total.trained + cost.trained,
            training=total.training + cost.training,
            testing=total.testing + seen.add(cost) - cost.training,
        )
    return total._replace(looked=sum(looked.values()))


class Hours(NamedTuple):
    """The parts of a table's time."""

    runs: float
    compiling: float
    reading: float
    training: float
    testing: float

    @property
    def together(self) -> float:
        """Return their sum."""
        return sum(self)


def hours(table: Table, measured: Measured, machine: Machine, efficiency: float) -> Hours:
    """Return the hours of a table.

    efficiency: the share of its peak that another machine reaches.
    """
    rate = machine.rate * efficiency or measured.rate
    loading = table.trained * measured.train_image / machine.cores
    seconds = (
        table.runs * measured.run / machine.at_once,
        table.firsts * measured.programs * measured.program / machine.at_once,
        table.looked * measured.test_image / machine.cores,
        max(table.training / rate, loading),
        table.testing / rate,
    )
    return Hours(*(one / 3600 for one in seconds))
