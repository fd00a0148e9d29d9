"""Sweeps and their protocols, on the small images and a small CLIP."""

import itertools
import json
import shutil

import jax
import pytest

from dpt_jax import runs as sweep
from dpt_jax.config import prompt_config
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.io import as_path
from dpt_jax.methods import METHODS, TEXT
from dpt_jax.runs import Runner
from dpt_jax.training.workdir import locked
from tests.helpers import coop_trees, make_clip
from tests.helpers.commands import command_refused, in_process, refused
from tests.helpers.configs import IMAGES
from tests.helpers.runs import results_of

pytestmark = pytest.mark.compiles


@pytest.fixture
def overrides(tiny_clip_dir):
    own = {"clip.weights": str(tiny_clip_dir), "dataset.root": str(IMAGES)}
    return own | {"text_prompt.length": 4, "train.batch_size": 6, "train.epochs": 1}


def plan(runs="runs", overrides=(), protocol="few-shot", methods=("coop",), datasets=("folder",),
         targets=(), shots=(1,), seeds=(1,)):  # fmt: skip
    return sweep.plan(
        as_path(runs), dict(overrides), protocol, methods, datasets, targets, shots, seeds
    )


def test_plan_of_protocols_that_transfer():
    for protocol, others in (("cross-dataset", 10), ("domain-generalization", 4)):
        datasets, targets = sweep.PROTOCOLS[protocol]
        (run,) = plan(protocol=protocol, datasets=datasets, targets=targets)
        data = run.config.dataset
        assert (data.name, data.classes, len(run.targets)) == ("imagenet", "all", others)


def test_parts_have_each_run_once_and_any_part_can_finish_the_sweep():
    planned = list(range(61))
    parts = [sweep.in_order_of_part(planned, number, 3) for number in (1, 2, 3)]
    own = [part[: len(planned[number::3])] for number, part in enumerate(parts)]
    assert sorted(itertools.chain(*own)) == planned
    assert all(sorted(part) == planned for part in parts)


def test_the_preset_and_the_plan(tmp_path):
    """The table of DPT's paper; zero-shot has neither shots nor seeds."""
    done = in_process("sweep", "--preset=paper", "--plan", f"--runs={tmp_path}")
    lines = done.stdout.splitlines()
    assert "dpt on eurosat, 16 shots, seed 3: to do" in lines
    assert lines[-1] == f"671 runs in {tmp_path}: 671 to do."
    assert not list(tmp_path.iterdir())


def test_finished_runs_are_skipped_and_the_backbone_is_loaded_once(
    overrides, tmp_path, monkeypatch, capsys
):
    loads = []
    load = sweep.load_clip
    monkeypatch.setattr(sweep, "load_clip", lambda *given: loads.append(given) or load(*given))
    planned = plan(tmp_path, overrides, methods=["zeroshot", "coop"])
    assert sweep.sweep(planned) == ([], [])
    assert len(loads) == 1
    assert {sweep.state(run) for run in planned} == {"finished"}
    (tmp_path / "coop" / "folder" / "1shot" / "seed1" / "results.json").unlink()
    assert sweep.state(planned[1]) == "begun"
    capsys.readouterr()
    assert sweep.sweep(planned) == ([], [])
    assert capsys.readouterr().out.count("finished before") == 1
    # A finished run of other settings is not taken for one of this sweep. That holds for another
    # backbone or folder too, which main.py may resume with.
    others = {"train.epochs": 2, "clip.weights": "tiny-clip", "dataset.root": "/nowhere"}
    for key, value in others.items():
        (changed,) = plan(tmp_path, {**overrides, key: value})
        refused(key, Runner(), changed)
        state = sweep.state(changed)
        assert state.startswith("has other settings: ")
        assert key in state


def test_runs_of_other_lengths_need_no_other_program(overrides, tmp_path):
    """One step and four: what differs is an argument of the step."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    # A batch of a size that no other test has compiled.
    overrides |= {"train.batch_size": 5, "text_prompt.length": 3}
    counts = []
    for shots, epochs in ((1, 1), (2, 2)):
        own = {**overrides, "train.epochs": epochs}
        (run,) = plan(tmp_path / str(epochs), own, shots=[shots])
        assert Runner()(run) == 1
        counts.append(len(compiled))
    assert 0 < counts[0] == counts[1]


def test_a_run_that_another_process_trains_is_left_to_it(overrides, tmp_path, monkeypatch):
    """Also if both look for the lock before either has it."""
    planned = plan(tmp_path, overrides, seeds=[1, 2])
    planned[0].workdir.mkdir(parents=True)
    with locked(planned[0].workdir):
        assert sweep.state(planned[0]) == "in training in another process"
        monkeypatch.setattr(sweep, "is_locked", lambda workdir: False)
        assert sweep.sweep(planned) == ([], [planned[0]])
    assert sweep.sweep(planned) == ([], [])
    assert results_of(planned[0].workdir)["method"] == "coop"


def test_changed_inputs_of_a_finished_run_are_noticed(overrides, tmp_path, tiny_clip_dir, capsys):
    """Added or changed test images, other class names, and other weights."""
    root = shutil.copytree(IMAGES, tmp_path / "images")
    weights = shutil.copytree(tiny_clip_dir, tmp_path / "clip")
    overrides |= {"dataset.root": str(root), "clip.weights": str(weights)}
    planned = plan(tmp_path / "runs", overrides, methods=["zeroshot", "coop"])

    def again():
        """Return how many runs were finished before, and how many failed."""
        capsys.readouterr()
        failed, _ = sweep.sweep(planned)
        return capsys.readouterr().out.count("finished before"), len(failed)

    assert again() == (0, 0)
    assert again() == (2, 0)

    def rename(old, new):
        for split in ("train", "test"):
            (root / split / old).rename(root / split / new)

    first, second, *_ = sorted((root / "test").rglob("*.png"))
    shutil.copy(first, first.with_name("more.png"))
    assert again() == (0, 0)
    assert results_of(planned[1].workdir)["n"] == 19
    shutil.copy(first, second)
    assert again() == (0, 0)
    assert again() == (2, 0)
    rename("airplane", "aeroplane")
    assert again() == (0, 1)  # the prompts were trained on other names
    rename("aeroplane", "airplane")
    assert again() == (1, 0)
    make_clip.write(weights, seed=5, **make_clip.TINY)
    assert again() == (0, 1)


def test_a_run_that_fails_does_not_end_the_others(overrides, tmp_path, capsys, monkeypatch):
    planned = plan(tmp_path, overrides, seeds=[1, 2, 3])
    planned[1].workdir.mkdir(parents=True)
    (planned[1].workdir / "config.json").write_text("{")
    runner = Runner()

    def execute(run):
        if run == planned[0]:
            raise KeyError("a bug")
        return runner(run)

    monkeypatch.setattr(sweep, "Runner", lambda: execute)
    failed, _ = sweep.sweep(planned)
    assert [run for run, _ in failed] == planned[:2]
    assert failed[0][1] == "KeyError: 'a bug'"
    assert "config.json" in failed[1][1]
    assert (planned[2].workdir / "results.json").exists()
    assert "Traceback" in capsys.readouterr().err


def test_settings_of_one_method(overrides):
    """They take precedence over those of all; a method that they make impossible is named."""
    overrides |= {"coop.text_prompt.length": 7, "coop.clip.weights": "tiny-clip"}
    coop, vlp = (run.config for run in plan(overrides=overrides, methods=["coop", "vlp"]))
    assert (coop.text_prompt.length, coop.clip.weights) == (7, "tiny-clip")
    assert (vlp.text_prompt.length, vlp.clip.weights) == (4, overrides["clip.weights"])
    done = in_process("sweep", "--plan", "--methods=zeroshot,coop", "--shots=1",
                      "--seeds=1", "--config.coop.text_prompt.depth=0")  # fmt: skip
    assert "zeroshot on digits: to do" in done.stdout
    assert "coop on digits, 1 shot, seed 1: refused: text_prompt.depth" in done.stdout
    arguments = ("sweep", "--methods=coop", "--config.coop.text_prompt.depth=0")
    command_refused("coop on digits, 1 shot, seed 1: text_prompt.depth", *arguments)


def test_a_size_applies_to_the_methods_that_have_the_part(overrides):
    overrides |= {"visual_prompt.length": 3, "cavpt.top_k": 2}
    for run in plan(overrides=overrides, methods=METHODS):
        prompts = prompt_config(run.config, 3, 4)
        assert bool(prompts.text_length) == (TEXT in METHODS[run.config.method].parts)


def test_base_to_new(overrides, tmp_path):
    (run,) = plan(tmp_path, overrides, "base-to-new", shots=[2])
    assert Runner()(run) == 2
    workdir = tmp_path / "coop" / "folder" / "2shot" / "seed1" / "base"
    base, new = results_of(workdir), results_of(workdir / "on" / "folder-new")
    assert list(base["per_class"]) == ["airplane", "dollar bill", "grand piano"]
    assert list(new["per_class"]) == ["sea horse", "water lilly", "yin yang"]
    assert base["trained_on"] == new["trained_on"] == {"dataset": "folder", "classes": "base"}
    assert (new["classes"], new["shots"], new["n"]) == ("new", 2, 9)
    assert Runner()(run) == 0


def test_prompts_of_one_dataset_on_others(overrides, tmp_path):
    """Trained on the tiny ImageNet; tested on another dataset and on a shifted ImageNet."""
    data = tmp_path / "data"
    names = ["imagenet", "dtd", "imagenet_r"]
    for name in names:
        coop_trees.make(name, data)
    overrides["dataset.root"] = str(data)
    (run,) = plan(tmp_path / "runs", overrides, "cross-dataset", ["coop"], ["imagenet"], names)
    assert Runner()(run) == 3
    workdir = tmp_path / "runs" / "coop" / "imagenet" / "1shot" / "seed1"
    for name in names[1:]:
        found = results_of(workdir / "on" / name)
        assert (found["dataset"], found["shots"], len(found["per_class"])) == (name, 1, 2)
        assert found["trained_on"] == {"dataset": "imagenet", "classes": "all"}
        saved = json.loads((workdir / "on" / name / "config.json").read_text())
        assert saved["dataset"]["template"] == CATALOGUE[name].template
    # An impossible target does not end the others.
    (workdir / "on" / names[2] / "results.json").unlink()
    wrong = run.targets[0]._replace(overrides={"train.epochs": 0})
    refused("on dtd: train.epochs", Runner(), run._replace(targets=(wrong, run.targets[1])))
    assert (workdir / "on" / names[2] / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--methods=coop,tip"], "'tip'"),
        (["--shots=0"], "dataset.shots"),
        (["--shots="], "--shots"),
        (["--datasets="], "--datasets"),
        (["--config.seed=3"], "--seeds"),
        (["--config.init_from=somewhere"], "--protocol"),
        (["--config=configs/vpt.py"], "--config=FILE"),
        (["--workdir=somewhere"], "--workdir"),
        (["--protocol=base-to-new", "--targets=dtd"], "--targets"),
        (
            ["--protocol=base-to-new", "--methods=coop", "--config.text_prompt.class_specific"],
            "text_prompt.class_specific",
        ),
        (["--config.maple.depth=3"], "there is no such key"),
        (["--methods=probe", "--protocol=base-to-new"], "--methods=probe"),
        (["--preset=paper", "--protocol=base-to-new"], "--protocol"),
        (["--part=3/2"], "--part"),
        (["--preset=paper"], "dataset.root"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, names, tmp_path):
    command_refused(names, "sweep", f"--runs={tmp_path}", *arguments)


def test_the_command_and_its_exit_code(tiny_clip_dir, tmp_path):
    """A dataset that is not there fails, the bundled one runs; tables are made of it."""
    arguments = ["--methods=zeroshot", "--datasets=emoji,eurosat", f"--runs={tmp_path}"]
    arguments += [f"--config.clip.weights={tiny_clip_dir}", "--config.dataset.root=/nowhere"]
    done = in_process("sweep", *arguments, check=False)
    assert done.returncode == 1
    assert "1 of 2 runs are finished" in done.stdout
    assert "failed: zeroshot on eurosat: " in done.stdout
    done = in_process("report", tmp_path)
    assert "| zero-shot |" in done.stdout
