"""Tables and figures of finished runs.

    python -m dpt_jax.report RUNS_DIR           over all runs below a folder
    python -m dpt_jax.report WORKDIR            over the classes of one run
    python -m dpt_jax.report --html WORKDIR     one page with all there is to see of a run

Over a folder: mean ± standard deviation of the seeds for each method and
dataset, as Markdown (printed, and report.md) and CSV (report.csv), and accuracy
against shots (report.png). Over one run: accuracy of each class (report.md,
report.csv), the confusion matrix (report.png), the training (training.png) and
how sure the answers are (reliability.png). The page (report.html) has these,
the settings, the features before and after, and answers with heat maps. All
are written there.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from dpt_jax.commands import flags as cli
from dpt_jax.errors import UserError
from dpt_jax.inference.results import RESULTS_FILE
from dpt_jax.report.one_run import report_run
from dpt_jax.report.runs import report_folder
from dpt_jax.runtime.console import say


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise UserError("give one folder: python -m dpt_jax.report RUNS_DIR.")
    folder = pathlib.Path(argv[1])
    if flags.FLAGS.html:
        from dpt_jax.report.page import write_page

        say(f"written: {write_page(folder)}")
        return
    if (folder / RESULTS_FILE).exists():
        text, written = report_run(folder)
    else:
        text, written = report_folder(folder)
    say(text)
    say(f"written to {folder}: {', '.join(written)}")


if __name__ == "__main__":
    flags.DEFINE_bool("html", False, "One page with all there is to see of one run.")
    cli.run(main)
