"""Sweeps and their protocols, on the small images and a small CLIP."""

import itertools
import json

import jax
import pytest

from dpt_jax import settings
from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.errors import UserError
from dpt_jax.methods import METHODS, TEXT
from dpt_jax.storage.lock import locked
from dpt_jax.training import grid, sweep
from dpt_jax.training import setup as experiments
from dpt_jax.training.grid import Run, Target, plan
from dpt_jax.training.sweep import Runner
from tests.helpers import coop_trees
from tests.helpers.commands import command, in_process

pytestmark = pytest.mark.compiles


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_plan_of_each_protocol():
    runs = plan("few-shot", ["zeroshot", "coop"], ["dtd", "eurosat"], [], [1, 2], [1, 2, 3])
    assert len(runs) == 2 * (1 + 6)
    assert runs[0] == Run("zeroshot", "dtd", 1, 1, "all", ())
    assert runs[6] == Run("coop", "dtd", 2, 3, "all", ())
    (run,) = plan("base-to-new", ["dpt"], ["dtd"], [], [16], [1])
    assert (run.classes, run.targets) == ("base", (Target("dtd", "new"),))
    for protocol, others in (("cross-dataset", 10), ("domain-generalization", 4)):
        datasets, targets = grid.PROTOCOLS[protocol]
        (run,) = plan(protocol, ["dpt"], datasets, targets, [16], [1])
        assert (run.dataset, run.classes, len(run.targets)) == ("imagenet", "all", others)
        assert all(
            target.dataset in CATALOGUE and target.classes == "all" for target in run.targets
        )


def test_finished_runs_are_skipped_and_the_backbone_is_loaded_once(
    overrides, tmp_path, monkeypatch, capsys
):
    loads = []
    load = experiments.load_clip
    monkeypatch.setattr(
        experiments, "load_clip", lambda *arguments: loads.append(arguments) or load(*arguments)
    )
    planned = plan("few-shot", ["zeroshot", "coop"], ["folder"], [], [1, 2], [1])
    assert sweep.sweep(planned, Runner(tmp_path, overrides)) == ([], [])
    assert len(loads) == 1
    found = sorted(
        file.parent.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("results.json")
    )
    assert found == [
        "coop/folder/1shot/seed1",
        "coop/folder/2shot/seed1",
        "zeroshot/folder/1shot/seed1",
    ]
    assert results(tmp_path / found[1])["trained_on"] == {"dataset": "folder", "classes": "all"}
    assert results(tmp_path / found[2])["trained_on"] is None

    (tmp_path / found[0] / "results.json").unlink()
    capsys.readouterr()
    assert sweep.sweep(planned, Runner(tmp_path, overrides)) == ([], [])
    printed = capsys.readouterr().out
    assert printed.count("finished before") == 2
    assert "training is finished" in printed


def test_runs_of_other_lengths_need_no_other_program(overrides, tmp_path):
    """One and two steps an epoch, one and two epochs: what differs is an argument of the step."""
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    # A batch of a size that no other test has compiled.
    overrides |= {"train.batch_size": 5, "text_prompt.length": 3}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        counts = []
        for shots, epochs in ((1, 1), (2, 1), (1, 2)):
            (run,) = plan("few-shot", ["coop"], ["folder"], [], [shots], [1])
            assert Runner(tmp_path / str(epochs), {**overrides, "train.epochs": epochs})(run) == 1
            counts.append(len(compiled))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert 0 < counts[0] == counts[2]


def test_parts_are_all_runs_once_and_cost_about_the_same():
    planned = plan("few-shot", list(METHODS), ["dtd", "eurosat"], [], [1, 4, 16], [1, 2, 3])
    parts = [grid.of_part(planned, number, 3, {}) for number in (1, 2, 3)]
    own = [first for first, _ in parts]
    assert sorted(map(str, itertools.chain(*own))) == sorted(map(str, planned))
    # Then the others', so that any part alone is the whole sweep.
    assert all(sorted(map(str, f + others)) == sorted(map(str, planned)) for f, others in parts)
    costs = [sum(grid.cost(run, {}) for run in part) for part in own]
    assert max(costs) < 1.2 * min(costs)
    assert [run.dataset for run in own[0]] == sorted(run.dataset for run in own[0])


def test_a_run_that_another_process_trains_is_left_to_it(overrides, tmp_path, capsys):
    planned = plan("few-shot", ["coop"], ["folder"], [], [1], [1, 2])
    runner = Runner(tmp_path, overrides)
    workdir = settings.run_dir(tmp_path, grid.run_config(planned[0], overrides))
    workdir.mkdir(parents=True)
    with locked(workdir):
        assert sweep.sweep(planned, runner) == ([], [planned[0]])
    assert f"left to another process: {workdir} is being trained in" in capsys.readouterr().out
    # It has died: who comes again finishes its run.
    assert sweep.sweep(planned, runner) == ([], [])
    assert results(workdir)["method"] == "coop"


def test_a_run_that_fails_is_reported_and_the_others_go_on(overrides, tmp_path, capsys):
    planned = plan("few-shot", ["coop"], ["folder"], [], [1], [1, 2, 3])
    bad = settings.run_dir(tmp_path / "runs", grid.run_config(planned[1], overrides))
    bad.mkdir(parents=True)
    (bad / "config.json").write_text("{")

    run = Runner(tmp_path / "runs", overrides)
    mistaken = planned[0]

    def execute(one):
        if one == mistaken:
            raise KeyError("a bug")
        return run(one)

    failed, _ = sweep.sweep(planned, execute)
    assert [one for one, _ in failed] == planned[:2]
    assert failed[0][1] == "KeyError: 'a bug'"
    assert "config.json is not valid JSON" in failed[1][1]
    assert (tmp_path / "runs" / "coop" / "folder" / "1shot" / "seed3" / "results.json").exists()
    assert "Traceback" in capsys.readouterr().err


def test_a_finished_run_of_other_settings_is_not_taken_for_one_of_this_sweep(overrides, tmp_path):
    """Also not one of another backbone or folder, which a resumed run of main.py may have."""
    (run,) = plan("few-shot", ["zeroshot"], ["folder"], [], [1], [1])
    Runner(tmp_path, overrides)(run)
    for key, value, says in (
        ("train.epochs", 2, r"train\.epochs \(1 there, 2 now\)"),
        ("clip.weights", "tiny-clip", r"clip\.weights \(.* there, 'tiny-clip' now\)"),
        ("dataset.root", "/nowhere", r"dataset\.root \(.* there, '/nowhere' now\)"),
    ):
        with pytest.raises(UserError, match=says):
            Runner(tmp_path, {**overrides, key: value})(run)


def test_what_is_missing_of_a_finished_run_is_made(overrides, tmp_path):
    """Logits that are asked for later, and results that a test elsewhere has overwritten."""
    (run,) = plan("few-shot", ["zeroshot"], ["folder"], [], [1], [1])
    assert Runner(tmp_path, overrides)(run) == 1
    assert Runner(tmp_path, {**overrides, "eval.save_logits": True})(run) == 1
    workdir = settings.run_dir(tmp_path, grid.run_config(run, overrides))
    assert (workdir / "predictions.npz").exists()
    file = workdir / "results.json"
    file.write_text(json.dumps({**results(workdir), "dataset": "emoji"}))
    assert Runner(tmp_path, overrides)(run) == 1
    assert results(workdir)["dataset"] == "folder"
    assert Runner(tmp_path, overrides)(run) == 0


def test_a_size_holds_for_the_methods_that_have_the_part(overrides):
    """A length makes no CoOp of zero-shot; a part without size is an error."""
    for method in METHODS:
        (run,) = plan("few-shot", [method], ["folder"], [], [1], [1])
        config = grid.run_config(run, {**overrides, "visual_prompt.length": 3, "cavpt.top_k": 2})
        prompts = settings.prompt_config(config, 3, 4)
        assert prompts.method == method
        assert bool(prompts.text_length) == (TEXT in METHODS[method].parts)
    with pytest.raises(UserError, match="cavpt"):
        grid.run_config(run, {**overrides, "cavpt.top_k": 0})


def test_base_to_new(overrides, tmp_path):
    """DPT trained on three of six classes, with their classifier, is tested on the other three."""
    (run,) = plan("base-to-new", ["dpt"], ["folder"], [], [2], [1])
    assert Runner(tmp_path, overrides)(run) == 2
    workdir = tmp_path / "dpt" / "folder" / "2shot" / "seed1" / "base"
    base, new = results(workdir), results(workdir / "on" / "folder-new")
    assert list(base["per_class"]) == ["airplane", "dollar bill", "grand piano"]
    assert list(new["per_class"]) == ["sea horse", "water lilly", "yin yang"]
    assert base["trained_on"] == new["trained_on"] == {"dataset": "folder", "classes": "base"}
    assert (new["classes"], new["shots"], new["n"]) == ("new", 2, 9)
    assert Runner(tmp_path, overrides)(run) == 0


def test_class_specific_context_cannot_go_to_new_classes(overrides, tmp_path):
    planned = plan("base-to-new", ["coop"], ["folder"], [], [1], [1])
    failed, _ = sweep.sweep(
        planned, Runner(tmp_path, {**overrides, "text_prompt.class_specific": True})
    )
    assert "means nothing for other classes" in failed[0][1]
    assert (tmp_path / "coop" / "folder" / "1shot" / "seed1" / "base" / "results.json").exists()


def test_a_target_that_fails_leaves_the_others_alone(overrides, tmp_path):
    (run,) = plan("few-shot", ["zeroshot"], ["folder"], [], [1], [1])
    run = run._replace(targets=(Target("fgvc_aircraft", "all"), Target("folder", "new")))
    with pytest.raises(UserError, match=r"on fgvc_aircraft: .*/fgvc_aircraft is not there"):
        Runner(tmp_path, overrides)(run)
    workdir = settings.run_dir(tmp_path, grid.run_config(run, overrides))
    assert results(workdir / "on" / "folder-new")["n"] == 9


@pytest.mark.parametrize("method", ["zeroshot", "dpt"])
def test_prompts_of_one_dataset_on_others(method, overrides, clip_dir, tmp_path):
    """Trained on the tiny ImageNet; tested on another dataset and on a shifted ImageNet."""
    data = tmp_path / "data"
    for name in ("imagenet", "dtd", "imagenet_r"):
        coop_trees.make(name, data)
    overrides["dataset.root"] = str(data)
    (run,) = plan(
        "cross-dataset", [method], ["imagenet"], ["imagenet", "dtd", "imagenet_r"], [1], [1]
    )
    assert Runner(tmp_path / "runs", overrides)(run) == 3
    workdir = tmp_path / "runs" / method / "imagenet" / "1shot" / "seed1"
    for name, classes in (("dtd", 2), ("imagenet_r", 2)):
        found = results(workdir / "on" / name)
        assert (found["dataset"], found["shots"], len(found["per_class"])) == (name, 1, classes)
        assert found["trained_on"] == (
            None if method == "zeroshot" else {"dataset": "imagenet", "classes": "all"}
        )
        saved = json.loads((workdir / "on" / name / "config.json").read_text())
        assert saved["dataset"]["template"] == CATALOGUE[name].settings["dataset.template"]


def test_evaluating_elsewhere_leaves_the_results_of_the_run_alone(overrides, tmp_path):
    """main.py on new classes of a run: the results go to a folder below it."""
    (run,) = plan("few-shot", ["coop"], ["folder"], [], [1], [1])
    Runner(tmp_path, overrides)(run)
    workdir = tmp_path / "coop" / "folder" / "1shot" / "seed1"
    before = results(workdir)
    done = in_process(
        "main.py",
        "--config=configs/coop.py:folder",
        "--mode=eval",
        f"--config.init_from={workdir}",
        "--config.dataset.classes=new",
    )
    assert f"results: {workdir / 'on' / 'folder-new' / 'results.json'}" in done.stdout
    assert results(workdir) == before
    assert results(workdir / "on" / "folder-new")["trained_on"] == {
        "dataset": "folder",
        "classes": "all",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods=coop,tip"], "'tip' is not one of zeroshot, coop"),
        (["--datasets=imagnet"], "no dataset 'imagnet'"),
        (["--shots=1,two"], "--shots=1,two: give whole numbers"),
        (["--shots=0"], "dataset.shots is 0"),
        (["--config.seed=3"], "--config.seed: the sweep varies it, use --seeds"),
        (
            ["--config.init_from=somewhere"],
            "--config.init_from: the sweep varies it, use --protocol",
        ),
        (["--config=configs/vpt.py"], "--workdir and --config=FILE are for main.py"),
        (["--config.cavpt.top_k=0"], "configs/vlp.py"),
        (["--workdir=somewhere"], "--workdir and --config=FILE are for main.py"),
        (
            ["--protocol=base-to-new", "--targets=dtd"],
            "--targets: base-to-new tests on the other half",
        ),
        (["--methods="], "there is nothing to run"),
        (["--methods=probe", "--protocol=base-to-new"], "--methods=probe: a probe knows the"),
        (["emoji"], "unknown argument 'emoji'"),
        (["--preset=papers"], "--preset=papers: it is not one of paper"),
        (["--preset=paper", "--protocol=base-to-new"], "is a table of --protocol=few-shot"),
        (["--preset=paper", "--shots="], "there is nothing to run"),
        (["--part=3/2"], "--part=3/2: give I/N, I from 1 to N"),
        (["--preset=paper"], "dataset.root is not set: give the folder that holds imagenet/"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments, says, tmp_path):
    done = in_process("-m", "dpt_jax", "sweep", f"--runs={tmp_path}", *arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_and_its_exit_code(tmp_path, clip_dir):
    """A dataset whose root is missing fails, the embedded one runs; tables are made of it."""
    arguments = ["--methods=zeroshot", "--datasets=emoji,eurosat", f"--runs={tmp_path}"]
    weights = f"--config.clip.weights={clip_dir}"
    done = command("-m", "dpt_jax", "sweep", *arguments, weights, check=False)
    assert done.returncode == 1
    assert "1 of 2 runs are finished" in done.stdout
    assert "failed: zeroshot on eurosat: dataset.root is not set" in done.stdout
    done = command("-m", "dpt_jax", "report", str(tmp_path))
    assert "| zero-shot |" in done.stdout
