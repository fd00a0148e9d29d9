"""What a sweep says of its cost and time, before and while it runs."""

import re

import pytest

from dpt_jax import settings
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.storage.lock import locked
from dpt_jax.training import forecast, grid, sweep
from dpt_jax.training.cost import Costs, Seen, published_sizes
from dpt_jax.training.forecast import plan_in_words
from dpt_jax.training.grid import Run, Target, plan
from dpt_jax.training.plan import make_plan
from dpt_jax.training.sweep import Runner
from dpt_jax.training.time_left import TimeLeft, in_words, line_through
from tests.helpers.commands import ROOT, in_process

PAPER = Run("dpt", "eurosat", 16, 1, "all", ())
NOT_KNOWN = Run("dpt", "folder", 16, 1, "all", ())  # which folder is not said


@pytest.mark.compiles
def test_a_plan_knows_what_is_finished_and_how_long_the_rest_takes(overrides, tmp_path):
    planned = plan("few-shot", ["zeroshot", "coop"], ["folder"], [], [1, 2], [1])
    before = plan_in_words(planned, tmp_path, overrides)
    assert before[-2].startswith("time: unknown until a first run has finished")
    assert not list(tmp_path.iterdir())
    assert sweep.sweep(planned[:2], Runner(tmp_path, overrides)) == ([], [])

    workdir = settings.run_dir(tmp_path, grid.run_config(planned[2], overrides))
    workdir.mkdir(parents=True)
    lines = plan_in_words(planned, tmp_path, overrides)
    assert lines[:2] == ["zeroshot on folder: finished", "coop on folder, 1 shot, seed 1: finished"]
    costs = r"12 images to train on, 18 to test on, .* Tflop, \d+ (s|min)"
    assert re.fullmatch(f"coop on folder, 2 shots, seed 1: {costs}", lines[2])
    assert lines[4] == f"3 runs in {tmp_path}: 2 finished, 1 to do."
    assert re.match(r"time: about \d+ \w+ at the rate of the trainings finished here", lines[6])
    with locked(workdir):
        lines = plan_in_words(planned, tmp_path, overrides)
    assert lines[2] == "coop on folder, 2 shots, seed 1: being trained by another process"
    other = plan_in_words(planned, tmp_path, {**overrides, "train.text_lr": 0.5})
    assert other[1] == "coop on folder, 1 shot, seed 1: made with other settings"


def test_a_dataset_that_is_not_here_is_counted_as_published(tmp_path):
    lines = plan_in_words([PAPER, NOT_KNOWN], tmp_path, {})
    # 160 images are five batches an epoch, 60 times.
    assert lines[0].startswith("dpt on eurosat, 16 shots, seed 1: 9,600 images to train on, 8,100")
    assert lines[1] == "dpt on folder, 16 shots, seed 1: cost not known"
    assert "without 1 runs whose cost is not known" in lines[4]
    assert lines[-2].startswith("not read: eurosat: their numbers")
    assert "dataset.root is not set" in lines[-2]
    assert lines[-1].startswith("not known: folder: dataset.root is not set")


def test_a_run_is_counted_by_the_steps_that_it_takes():
    costs = Costs({})
    for method, shots in (("dpt", 1), ("dpt", 16), ("maple", 16), ("cocoop", 2)):
        run = Run(method, "eurosat", shots, 1, "all", ())
        cost, config = costs.of(run), grid.run_config(run, {})
        steps = make_plan(config, 10 * shots).total
        assert cost.trained == steps * min(config.train.batch_size, 10 * shots)
    half = costs.of(Run("dpt", "eurosat", 16, 1, "base", (Target("eurosat", "new"),)))
    assert (half.trained, half.tested) == (60 * 2 * 32, 8100)
    assert costs.of(Run("dpt", "eurosat", -1, 1, "all", ())) is None  # nobody says how many


def test_plain_clip_sees_a_test_split_once():
    costs, seen = Costs({}), Seen()
    coop, other = (costs.of(Run("coop", name, 1, 1, "all", ())) for name in ("eurosat", "dtd"))
    first, again, another = (seen.add(cost) for cost in (coop, coop, other))
    (look,) = coop.looks.values()
    assert look.images == 8100
    assert first - again == pytest.approx(look.flop)
    assert another > again


def test_the_time_left_is_that_of_starting_and_of_the_operations_left():
    planned = plan("few-shot", ["zeroshot", "dpt"], ["eurosat"], [], [1, 16], [1, 2])
    left = TimeLeft({}, {})
    costs, seen = [Costs({}).of(run) for run in planned], Seen()
    for run, cost in zip(planned[:3], costs, strict=False):
        assert left.words(planned) == ""  # too few have run
        left.ran(run, 100 + 1e-12 * seen.add(cost))  # and a second a Tflop
    ahead = sum(100 + Seen(seen.looks).add(cost) / 1e12 for cost in costs[3:])
    assert left.words(planned[3:]) == f", about {in_words(ahead)} left"
    assert left.words(planned[3:], at_once=2) == f", about {in_words(ahead / 2)} left"
    assert left.words([]) == ""
    assert left.words([*planned[3:], NOT_KNOWN]) == ""  # rather than without that run


def test_runs_that_say_nothing_of_the_rate_are_not_believed():
    assert line_through([(1e12, 9), (5e12, 7), (9e12, 5)]) is None  # compiling came first
    assert line_through([(1e12, 5)] * 3) is None
    start, rate = line_through([(1e12, 1), (2e12, 4), (3e12, 7)])
    assert start == 0
    assert rate == pytest.approx(30 / 14 * 1e-12)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "1 s"), (119, "119 s"), (600, "10 min"), (9000, "2 h"), (2e5, "2 days")],
)
def test_durations_are_in_the_unit_that_people_use(seconds, words):
    assert in_words(seconds) == words


def test_the_plan_of_the_command_makes_nothing(tmp_path):
    runs = tmp_path / "runs"
    flags = ("--preset=paper", "--methods=zeroshot", "--plan", f"--runs={runs}")
    done = in_process("-m", "dpt_jax", "sweep", *flags)
    assert f"11 runs in {runs}: 11 to do." in done.stdout
    assert not runs.exists()
    wrong = in_process(
        "-m", "dpt_jax", "sweep", "--plan", "--config.clip.weights=nowhere", check=False
    )
    assert wrong.returncode == 2
    assert "nowhere is no file or directory" in wrong.stderr


def test_the_page_of_the_datasets_has_their_numbers():
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \|", page, re.MULTILINE)
    found = {name: (int(c.replace(",", "")), int(t.replace(",", ""))) for name, c, t in rows}
    assert found == {one.name: (one.classes, one.test_images) for one in CATALOGUE.values()}
    assert len(published_sizes("imagenet").classnames) == 1000


def test_a_run_without_metrics_says_nothing_of_the_rate(tmp_path):
    assert forecast.images_per_second(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert forecast.images_per_second(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"images_per_s": {rate}}}\n' for rate in (5, 40, 50))
    )
    assert forecast.images_per_second(tmp_path) == 40
