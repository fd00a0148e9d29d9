"""Our accuracies beside published ones."""

import numpy as np
import pytest

from dpt_jax.data.catalogue import PAPER_DATASETS
from dpt_jax.io import as_path
from dpt_jax.report.runs import AVERAGE, read_published, report_folder
from tests.helpers.commands import ROOT, command_refused, in_process, refused
from tests.helpers.run_results import rows_of, write, write_seeds

SHIPPED = ROOT / "dpt_jax" / "assets" / "published_vit_b16.csv"


def beside(folder, lines, header="method,dataset,shots,accuracy,classes,source"):
    """The report's text after the tables of runs only."""
    file = folder.parent / "published.csv"
    file.write_text("\n".join([header, *lines]), encoding="utf-8")
    return report_folder(folder, as_path(file))[0].partition(": beside published numbers")[2]


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
    assert means.round(2).to_dict() == {
        "zeroshot": 71.70,
        "coop": 71.66,
        "cocoop": 75.83,
        "kgcoop": 77.00,
        "ivlp": 77.90,
        "maple": 78.55,
        "promptsrc": 79.97,
    }
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
