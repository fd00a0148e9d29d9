"""Tables and figures of runs, also beside published numbers.

Runs on other data or backbones, or with other settings, are not one row.
"""

import csv
import json
import re
import shutil

import numpy as np
import pytest

import dpt_jax
from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.evaluation.results import read_result
from dpt_jax.io import as_path
from dpt_jax.methods import ROWS
from dpt_jax.report import one_run as run_report
from dpt_jax.report import runs as report
from dpt_jax.report.one_run import in_words
from dpt_jax.report.runs import AVERAGE, read_published
from tests.helpers.commands import ROOT, command_refused, in_process, refused
from tests.helpers.configs import IMAGES
from tests.helpers.runs import results_of

CALIBRATION = {"ece": 0.1, "bins": [{"images": 50, "confidence": 0.6, "accuracy": 0.5}]}
RESULTS = {"classes": "all", "shots": 1, "seed": 1, "selection": "none", "task": "", "n": 50,
           "unreadable": 0, "parameters": None, "per_class": {}, "zero_shot_accuracy": 0.3,
           "calibration": CALIBRATION, "zero_shot_calibration": CALIBRATION}  # fmt: skip


def write(folder, method, accuracy, *, dataset="dtd", trained="", of=None, **more):
    """A results.json of prompts of this dataset, or of `trained`; accuracy in percent."""
    trained = None if method == "zeroshot" else trained or dataset
    half = "all" if more.get("classes", "all") == "all" else "base"
    results = {**RESULTS, "method": method, "dataset": dataset, "macro_f1": accuracy / 200}
    results |= dict.fromkeys(("accuracy", "balanced_accuracy"), accuracy / 100)
    results["trained_on"] = trained and {"dataset": trained, "classes": half}
    results |= {"of": of or origin(dataset, trained), **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))


def write_seeds(folder, method, accuracies, dataset="dtd", **more):
    """The same for seeds 1, 2 and so on."""
    for seed, accuracy in enumerate(accuracies, 1):
        name = f"{method}-{dataset}-{more.get('classes')}-{seed}"
        write(folder / name, method, accuracy, dataset=dataset, seed=seed, **more)


def origin(name, trained_on, **more):
    """The origin that results record. A dataset has its name as digest."""
    own = {"step": 1, "prompts": "p", "backbone": "b" * 16, "template": "a photo of a {}."}
    own |= {"epoch": None, "epochs": None, "train_list": "t", "init_from": False, "settings": {}}
    own |= {"test_list": name, "test_files": "", "data": {"name": name, "digest": name}}
    own["trained_on"] = trained_on and {"name": trained_on, "digest": trained_on}
    return own | more


def rows_of(text):
    """The cells of every table row."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_few_shot_table_is_mean_and_deviation_of_the_seeds(tmp_path):
    write(tmp_path / "z", "zeroshot", 40)
    write_seeds(tmp_path, "coop", (50, 54, 58))
    write(tmp_path / "again", "coop", 58, seed=3)  # evaluated twice, one run
    write(tmp_path / "d", "dpt", 70, shots=16)
    text = report.report_folder(tmp_path)[0]
    assert "Accuracy (%) on 50 test images, mean ± standard deviation of n seeds" in text
    deviation = np.std([50, 54, 58])
    assert rows_of(text)[0] == ["method", "1 shot", "16 shots"]
    assert rows_of(text)[2:5] == [
        ["zero-shot", "40.0", "40.0"],
        ["CoOp", f"54.0 ± {deviation:.1f} (n=3)", ""],
        ["DPT", "", "70.0 (n=1)"],
    ]
    lines = {(line["method"], line["shots"]): line for line in read_csv(tmp_path / "report.csv")}
    assert float(lines["coop", "1"]["accuracy_mean"]) == 0.54
    assert float(lines["coop", "1"]["accuracy_std"]) == pytest.approx(deviation / 100, abs=1e-5)
    assert (lines["coop", "1"]["seeds"], lines["dpt", "16"]["macro_f1_mean"]) == ("3", "0.35000")
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text


def test_gains_are_of_the_same_seeds(tmp_path):
    """A seed that only one method has does not count, and one seed has no standard error."""
    write(tmp_path / "z", "zeroshot", 40)
    for method, accuracies in (("vpt", (50, 60, 70)), ("probe", (51, 63)), ("dpt", (80,))):
        write_seeds(tmp_path, method, accuracies)
    text = report.report_folder(tmp_path)[0]
    over_zero_shot, over_vpt = text.partition("gain over zero-shot")[2].split("gain over VPT")
    error = np.std([10, 20, 30], ddof=1) / np.sqrt(3)
    assert rows_of(over_zero_shot)[2:] == [
        ["VPT", f"+20.0 ± {error:.1f} (n=3)"],
        ["linear probe", "+17.0 ± 6.0 (n=2)"],
    ]
    assert rows_of(over_vpt)[2:] == [["linear probe", "+2.0 ± 1.0"]]


def test_average_is_over_datasets_that_have_all_run(tmp_path):
    for dataset, accuracy in (("dtd", 50), ("eurosat", 70)):
        write(tmp_path / f"z{dataset}", "zeroshot", accuracy - 10, dataset=dataset)
        write(tmp_path / f"c{dataset}", "coop", accuracy, dataset=dataset)
    write(tmp_path / "half", "vpt", 90, dataset="dtd")
    write(tmp_path / "second", "coop", 50, dataset="dtd", seed=2)
    text = report.report_folder(tmp_path)[0]
    average = rows_of(text.partition("Average over 2 datasets")[2])
    assert average[2:4] == [["zero-shot", "50.0"], ["CoOp", "60.0"]]
    assert "if all have run, over 1 to 2 seeds" in text
    write(tmp_path / "alone", "zeroshot", 20, dataset="emoji")
    text = report.report_folder(tmp_path)[0]
    assert "### emoji\n" in text and "Average over 3 datasets" in text
    assert (tmp_path / "report.png").is_file()


def test_base_to_new_table_has_the_harmonic_mean(tmp_path):
    """Of the seeds that have both halves."""
    for method, halves in {"zeroshot": ((60,), (40,)), "dpt": ((80, 60), (20,))}.items():
        for classes, accuracies in zip(("base", "new"), halves, strict=True):
            write_seeds(tmp_path, method, accuracies, classes=classes, shots=16)
    write(tmp_path / "unfinished", "coop", 70, classes="base", shots=16)
    for half in ("base", "new"):  # prompts of another dataset are not in this table
        write(tmp_path / half, "vpt", 99, classes=half, trained="eurosat")
    text = report.report_folder(tmp_path)[0]
    assert rows_of(text)[2:] == [
        ["zero-shot", "", "60.0", "40.0", "48.0"],
        ["CoOp", "16", "70.0 (n=1)", "", ""],
        ["DPT", "16", "70.0 ± 10.0 (n=2)", "20.0 (n=1)", "32.0 (n=1)"],
    ]
    assert (tmp_path / "base_to_new.png").read_bytes().startswith(b"\x89PNG")


def test_transfer_table_has_source_targets_and_their_average(tmp_path):
    for dataset, zero_shot, tuned in (("imagenet", 60, 70), ("dtd", 40, 45), ("eurosat", 50, 65)):
        write(tmp_path / f"z{dataset}", "zeroshot", zero_shot, dataset=dataset)
        write(tmp_path / f"d{dataset}", "dpt", tuned, dataset=dataset, shots=16, trained="imagenet")
    write(tmp_path / "c", "coop", 99, dataset="dtd")  # trained on dtd itself, so not in this table
    text = report.report_folder(tmp_path)[0].partition("From imagenet to other datasets")[2]
    assert rows_of(text) == [
        ["method", "shots", "imagenet (source)", "dtd", "eurosat", "average of targets"],
        rows_of(text)[1],
        ["zero-shot", "", "60.0", "40.0", "50.0", "45.0"],
        ["DPT", "16", "70.0", "45.0", "65.0", "55.0"],
    ]


def read_csv(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_files_with_a_row_per_run_and_a_row_per_class(tmp_path):
    """From 0 to 1, whatever is left out of the tables, and safe in a spreadsheet."""
    classes = {**CLASSES, "=1+1": CLASSES["cat"]}
    more = {"balanced_accuracy": 0.375, "calibration": {"ece": 0.1}}
    write(tmp_path / "a", "dpt", 50, n=6, per_class=classes, parameters=1000, **more)
    for seed in (2, 3):
        write(tmp_path / f"z{seed}", "coop", 40, seed=seed, n=50 + seed)
    _, written = report.report_folder(tmp_path)
    assert {"runs.csv", "classes.csv"} <= {*written}
    dpt, *coop = sorted(read_csv(tmp_path / "runs.csv"), key=lambda row: row["method"] != "dpt")
    columns = ("dataset", "shots", "seed", "accuracy", "macro_f1", "balanced_accuracy", "ece",
               "parameters")  # fmt: skip
    assert [dpt[column] for column in columns] == [
        "dtd", "1", "1", "0.50000", "0.25000", "0.37500", "0.10000", "1000",
    ]  # fmt: skip
    assert len(coop) == 2
    assert all(row["excluded"] for row in coop)
    rows = read_csv(tmp_path / "classes.csv")
    assert [(row["class"], row["images"], row["accuracy"]) for row in rows] == [
        ("cat", "4", "0.75000"),
        ("dog|wolf", "2", "0.00000"),
        ("unseen", "0", ""),
        ("'=1+1", "4", "0.75000"),
    ]


def test_latex(tmp_path):
    write_seeds(tmp_path, "dpt", (52, 54), "a_b^2")
    done = in_process("report", tmp_path, "--latex")
    assert "report.tex" in done.stdout
    text = (tmp_path / "report.tex").read_text()
    assert "\\caption{a\\_b\\^{}2: Accuracy (\\%) on 50 test images" in text
    assert "DPT      & 53.0 $\\pm$ 1.0" in text
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 1


CLASSES = {
    "cat": {"n": 4, "accuracy": 0.75, "f1": 0.8, "predicted": {"cat": 3, "dog|wolf": 1}},
    "dog|wolf": {"n": 2, "accuracy": 0.0, "f1": 0.0, "predicted": {"cat": 2}},
    "unseen": {"n": 0, "accuracy": None, "f1": 0.0, "predicted": {}},
}


def test_one_run_is_reported_by_class(tmp_path):
    write(tmp_path, "dpt", 50, n=6, per_class=CLASSES)
    text = run_report.report_run(tmp_path)[0]
    assert "Trained on dtd, 1 shot, seed 1: 50.0 % of 6 test images right" in text
    rows = rows_of(text)
    assert ["cat", "4", "75.0", "0.800"] in rows
    assert ["unseen", "0", "", "0.000"] in rows
    assert ["dog\\", "wolf", "cat", "2 of 2"] in rows  # the bar in a name is escaped
    counts = run_report.confusion({"per_class": CLASSES})
    np.testing.assert_array_equal(counts, [[3, 1, 0], [2, 0, 0], [0, 0, 0]])
    assert [line["class"] for line in read_csv(tmp_path / "report.csv")] == list(CLASSES)


def test_figures_are_drawn(tmp_path):
    """Of both kinds, also with more classes than there is room for names."""
    for method in ROWS:
        for shots in (1, 2):
            write(tmp_path / "all" / f"{method}{shots}", method, 50 + shots, shots=shots)
    assert "report.png" in report.report_folder(tmp_path / "all")[1]
    many = {f"class {i}": {**CLASSES["cat"], "predicted": {f"class {i}": 1}} for i in range(70)}
    for name, classes in (("few", CLASSES), ("many", many)):
        write(tmp_path / name, "dpt", 50, per_class=classes)
        assert "report.png" in run_report.report_run(tmp_path / name)[1]


@pytest.mark.parametrize("content", [None, "{", "3", '{"method": "dpt"}'])
def test_damaged_results_are_named(content, tmp_path):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    refused(str(tmp_path), dpt_jax.results, tmp_path)


def of(data="a" * 64, trained="", **more):
    """The origin of results on a folder of images; `more` has settings, or replaces entries."""
    base = {"train.epochs": 2, "dtype": "float32", "dataset.template": "a photo of a {}."}
    settings = {key: more.pop(key) for key in base if key in more}
    return {
        **origin("flowers", "flowers", test_list=data, test_files="f", epoch=2, epochs=2),
        "data": {"name": "flowers", "digest": data},
        "trained_on": {"name": "flowers", "digest": trained or data},
        "settings": {**base, **settings},
        **more,
    }


def write_folder(folder, accuracy, *, seed=1, n=50, **more):
    write(folder, "dpt", accuracy, dataset="folder", seed=seed, n=n, of=of(**more))


@pytest.mark.parametrize(
    ("other", "headings"),
    [
        ({"data": "c" * 64, "n": 700}, ("flowers (aaaaaa)", "flowers (cccccc)")),
        ({"backbone": "d" * 16}, ("flowers (CLIP bbbbbb)", "flowers (CLIP dddddd)")),
        # Prompts of one folder tested on another.
        ({"data": "c" * 64, "trained": "a" * 64}, ("From flowers (aaaaaa) to other datasets",)),
    ],
)
def test_other_data_and_backbones_have_tables_of_their_own(tmp_path, other, headings):
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 30, **other)
    text = report.report_folder(tmp_path)[0]
    assert all(f"### {heading}\n" in text for heading in headings)
    assert ["DPT", "60.0 ± 30.0"] not in rows_of(text)
    assert "Average over" not in text  # of one dataset twice


def test_no_average_over_datasets_seen_by_several_backbones(tmp_path):
    write(tmp_path / "a", "coop", 50, dataset="dtd")
    other = origin("eurosat", "eurosat", backbone="d" * 16)
    write(tmp_path / "b", "coop", 70, dataset="eurosat", of=other)
    text = report.report_folder(tmp_path)[0]
    assert "### dtd\n" in text and "### eurosat\n" in text and "Average over" not in text


def test_files_of_unknown_size_are_the_same_test_images(tmp_path):
    for seed, sizes in enumerate(("", "aa"), 1):
        own = {"train_list": str(seed), "test_files": sizes}
        write_folder(tmp_path / str(seed), 70 + 2 * seed, seed=seed, **own)
    assert rows_of(report.report_folder(tmp_path)[0])[2:] == [["DPT", "73.0 ± 1.0"]]


def test_an_unfinished_training_is_not_a_seed_of_a_result(tmp_path):
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 30, seed=2, train_list="u", epoch=1)
    text = report.report_folder(tmp_path)[0]
    assert rows_of(text)[2:] == [["DPT", "90.0"]]
    assert "b is from epoch 1 of 2: left out" in text
    found = read_result(tmp_path / "b" / "results.json")
    assert "seed 2, to epoch 1 of 2: 30.0 %" in in_words(found)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"train.epochs": 3}, r"differ in train.epochs \([23] and [23]\)"),
        ({"dtype": "bfloat16"}, "differ in dtype"),
        ({"dataset.template": "a photo of a {}, a type of pet."}, "differ in dataset.template"),
        ({"n": 51}, "differ in n"),
        ({"test_files": "e"}, "differ in test_files"),
        ({"seed": 1, "train_list": "u"}, "of one seed, differ in train_list"),
        ({"seed": 1, "prompts": "q"}, "of one seed, differ in prompts"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_left_out_by_name(tmp_path, other, says):
    """Also if neither is the first run of its cell."""
    write_folder(tmp_path / "0", 80, seed=3)
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 30, **{"seed": 2, **other})
    write(tmp_path / "c", "coop", 50)
    text = report.report_folder(tmp_path)[0]
    assert re.search(f"[0a] and .*b,? {says}.*left out", text)
    assert rows_of(text)[2:] == [["CoOp", "50.0"]]


def test_kinds_of_selection_are_not_mixed_and_versions_are_named(tmp_path):
    """A folder of images has its own name."""
    write_folder(tmp_path / "a", 90)
    write_folder(tmp_path / "b", 80, seed=2, train_list="u")
    text = report.report_folder(tmp_path)[0]
    assert "### flowers\n" in text
    assert rows_of(text)[2:] == [["DPT", "85.0 ± 5.0"]]
    assert "Note:" not in text
    for seed, by in ((1, "support"), (2, "none")):
        own = {"selection": by, "task": "flowers@12345678", "of": of(train_list=str(seed))}
        write(tmp_path / by, "zslp", 70, dataset="folder", seed=seed, **own)
    text = report.report_folder(tmp_path)[0]
    assert [row[0] for row in rows_of(text)[2:]] == ["DPT"]
    assert "(none and support)" in text
    (tmp_path / "none" / "results.json").unlink()
    text = report.report_folder(tmp_path)[0]
    assert "chosen by support: ZS-LP" in text


SHIPPED = ROOT / "dpt_jax" / "assets" / "published_vit_b16.csv"


def beside(folder, lines, header="method,dataset,shots,accuracy,classes,source"):
    """The report's text after the tables of runs only."""
    file = folder.parent / "published.csv"
    file.write_text("\n".join([header, *lines]), encoding="utf-8")
    return report.report_folder(folder, as_path(file))[0].partition(": beside published numbers")[2]


@pytest.fixture
def runs(tmp_path):
    """Zero-shot, and three seeds of CoOp, on two datasets; DPT of one seed on one."""
    folder = tmp_path / "runs"
    for dataset, more in (("dtd", 0), ("caltech101", 10)):
        write(folder / f"z{dataset}", "zeroshot", 40 + more, dataset=dataset)
        write_seeds(folder, "coop", (50 + more, 54 + more, 58 + more), dataset)
    write(folder / "d", "dpt", 70, shots=16)
    write_seeds(folder, "vlp", (70, 70))
    return folder


@pytest.mark.filterwarnings("error")
def test_differences_are_in_points_and_in_standard_errors_of_the_mean(runs):
    lines = [
        "dpt,dtd,16,71.5,,",
        "coop , dtd, 1, 50 , all, a paper",  # aligned
        "zeroshot,dtd,,41,,",
        "vpt,dtd,1,50,,",  # has not run
        "vlp,dtd,1,71,,",
    ]
    text = beside(runs, lines)
    error = np.std([50, 54, 58], ddof=1) / np.sqrt(3)
    assert rows_of(text)[2:] == [
        ["zero-shot", "", "40.00", "41.00", "-1.00", "", ""],
        ["CoOp", "1 shot", "54.00", "50.00", "+4.00", f"{4 / error:+.1f}", "3"],
        ["VLP", "1 shot", "70.00", "71.00", "-1.00", "", "2"],
        ["DPT", "16 shots", "70.00", "71.50", "-1.50", "", "1"],
    ]
    assert "Published: a paper." in text
    assert "1 of 5 published numbers have no run here, such as vpt,dtd,1,all" in text
    alone = rows_of(beside(runs, lines[:1]))
    assert alone[-1] == ["DPT", "16 shots", "70.00", "71.50", "-1.50", "", "1"]


def test_the_average_needs_all_of_the_papers_datasets(runs):
    """Its standard error is that of a mean of eleven independent means."""
    line = f"coop,{AVERAGE},1,60,,"
    beside(runs, [line])
    assert "1 of 1 published numbers have no run here" in (runs / "report.md").read_text()
    for dataset in PAPER_DATASETS:
        write_seeds(runs, "coop", (50, 54, 58), dataset)
    beside(runs, [line])
    text = (runs / "report.md").read_text().partition("Average over 11 datasets: beside")[2]
    error = np.std([50, 54, 58], ddof=1) / np.sqrt(3) / np.sqrt(11)
    assert rows_of(text)[2:] == [
        ["CoOp", "1 shot", "54.00", "60.00", "-6.00", f"{-6 / error:+.1f}", "3"]
    ]


def test_base_to_new_has_the_harmonic_mean_of_both(tmp_path):
    folder = tmp_path / "runs"
    base, new = np.array([80.0, 82, 84]), np.array([70.0, 74, 72])
    for classes, accuracies in (("base", base), ("new", new)):
        write_seeds(folder, "coop", accuracies, classes=classes, shots=16)
    text = beside(folder, ["coop,dtd,16,75,new,", "coop,dtd,16,80,base,", "coop,dtd,16,60,,"])
    ours, theirs = 2 * 82 * 72 / 154, 2 * 80 * 75 / 155
    # The standard error by the derivative of the formula, with base and new of the same seeds.
    steps = np.array([2 * (72 / 154) ** 2, 2 * (82 / 154) ** 2])
    error = np.std(steps @ [base, new], ddof=1) / np.sqrt(3)
    found = rows_of(text)[2:]
    assert [row[2] for row in found] == ["base", "new", "harmonic mean"]
    gain = ours - theirs
    numbers = [f"{ours:.2f}", f"{theirs:.2f}", f"{gain:+.2f}", f"{gain / error:+.1f}", "3"]
    assert found[2][3:] == numbers
    assert "1 of 3 published numbers have no run here" in text


def test_the_shipped_averages_are_those_of_the_papers():
    """Their harmonic means are published too, so a figure that was mistyped shows."""
    found = read_published(as_path(SHIPPED))
    halves = found.pivot(index="method", columns="classes", values="accuracy")
    means = 2 / (1 / halves.base + 1 / halves.new)
    papers = {"zeroshot": 71.70, "coop": 71.66, "cocoop": 75.83, "kgcoop": 77.00}
    papers |= {"ivlp": 77.90, "maple": 78.55, "promptsrc": 79.97}
    assert means.round(2).to_dict() == papers
    assert {*found.dataset} == {AVERAGE} and all(found.source)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("method,dataset,shots\ncoop,dtd,1\n", "accuracy"),
        ("method,dataset,shots,clases,accuracy\ncoop,dtd,1,new,50\n", "clases"),
        ("coop,dtd,1\n", "coop,dtd,1"),
        ("coop,dtd,one,50\n", "one"),
        ("coop,dtd,1,50\n\ncoop,dtd,01,51\n", "coop,dtd,1,all,51"),
        ("coop,dtd,1,53,7\n", "coop,dtd,1,53,7"),  # a decimal comma
        ("coop,dtd,1,0.5\n", "percent"),
    ],
)
def test_a_wrong_file_is_named_with_the_row(text, row, tmp_path):
    file = tmp_path / "published.csv"
    header = "" if "method" in text[:8] else "# source\nmethod,dataset,shots,accuracy\n"
    file.write_text(header + text, encoding="utf-8")
    refused(f"published.csv.*{row}", read_published, as_path(file))


def test_the_command(runs):
    command_refused("no.csv", "report", runs, f"--beside={runs / 'no.csv'}")
    says = "--beside and --latex are for a folder of runs"
    command_refused(says, "report", runs / "d", f"--beside={SHIPPED}")
    text = in_process("report", runs, f"--beside={SHIPPED}").stdout
    assert "14 of 14 published numbers have no run here" in text


@pytest.mark.compiles
def test_one_page_per_run(trained, tmp_path):
    """Self-contained, with class names that are markup shown as text; and the figures alone."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    text, written = run_report.report_run(workdir)
    assert written == ["report.md", "report.csv", "report.png", "training.png", "reliability.png"]
    assert all((workdir / name).is_file() for name in written)
    assert "expected calibration error" in text
    results = results_of(workdir)
    results["of"]["settings"]["dataset.template"] = "this evaluation's {}"
    old, evil = next(iter(results["per_class"])), "<script>x</script>"
    text = json.dumps(results).replace(json.dumps(old), json.dumps(evil))
    (workdir / "results.json").write_text(text)
    done = in_process("report", "--html", workdir)
    assert f"written: {workdir / 'report.html'}" in done.stdout
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;x" in page
    asked = re.findall(r'(?:src|href)="(.{22})', page)
    assert {*asked} == {"data:image/png;base64,"}
    assert len(asked) >= 5
    parts = ["Training", "Correct where zero-shot CLIP is wrong", "Wrong, most confident first"]
    for part in (*parts, "Words near the context", "Calibration", "Settings", "train.visual_lr"):
        assert part in page
    assert "this evaluation&#39;s {}" in page
    (workdir / "metrics.jsonl").unlink()
    assert "training.png" not in run_report.report_run(workdir)[1]


@pytest.mark.compiles
def test_a_page_of_an_evaluation_elsewhere(trained, tmp_path):
    """WORKDIR/on/DATASET has no prompts of its own, and no training."""
    workdir = tmp_path / "on"
    flags = [f"--config.init_from={trained}", f"--config.dataset.root={IMAGES}"]
    in_process("main.py", "--config=dpt:folder", "--mode=eval", *flags, f"--workdir={workdir}")
    done = in_process("report", "--html", workdir)
    assert "report.html" in done.stdout
    assert "Training" not in (workdir / "report.html").read_text(encoding="utf-8")
    assert dpt_jax.load(workdir).classnames == dpt_jax.load(trained).classnames
