"""Make tables and figures of finished runs.

    dpt-jax report RUNS                    over all runs below a folder
    dpt-jax report RUNS --beside=FILE.csv also compared with published accuracies
    dpt-jax report W                       over the classes of one run
    dpt-jax report W --html                one page about one run

Over a folder: mean ± standard deviation of the seeds for each method and dataset, as Markdown
(printed, and report.md), CSV (report.csv) and with --latex LaTeX (report.tex); a row for each run
(runs.csv) and for each class of each run (classes.csv); accuracy against shots (report.png), and on
base and new classes (base_to_new.png). Tables are in percent, CSV files from 0 to 1. Over one run:
accuracy of each class (report.md, report.csv), the confusion matrix (report.png), the training
(training.png) and the calibration (reliability.png); the page (report.html) adds settings, words,
and answers with heat maps.

FILE.csv has the columns method,dataset,shots,accuracy and may have classes (all, base or new) and
source; accuracies are in percent, and a dataset may be "average".
dpt_jax/assets/published_vit_b16.csv has published averages of ViT-B/16.
"""

import argparse

from dpt_jax import cli
from dpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a workdir, or a folder of runs")
    cli.refuse_workdir(parser)
    parser.add_argument("--html", action="store_true", help="make one page of one run")
    parser.add_argument("--latex", action="store_true", help="write report.tex too")
    parser.add_argument("--beside", metavar="FILE", help="a CSV of published numbers, see above")


def run(flags: argparse.Namespace) -> None:
    from dpt_jax.evaluation.results import RESULTS_FILE
    from dpt_jax.io import as_path
    from dpt_jax.logging import say
    from dpt_jax.report.one_run import report_run, write_page
    from dpt_jax.report.runs import report_folder

    folder = as_path(flags.folder)
    whole_run = (folder / RESULTS_FILE).exists()
    if whole_run and (flags.beside or flags.latex):
        raise UserError("--beside and --latex are for a folder of runs, not for one run.")
    if flags.html:
        say(f"written: {write_page(folder)}")
        return
    if whole_run:
        text, written = report_run(folder)
    else:
        beside = None if flags.beside is None else as_path(flags.beside)
        text, written = report_folder(folder, beside, flags.latex)
    say(text)
    say(f"written to {folder}: {', '.join(written)}")
