"""What a start costs: each program is compiled once, and only what is needed is imported."""

import json

import pytest

from tests.helpers.commands import command
from tests.helpers.golden import SMALL

pytestmark = pytest.mark.process

# Counts, at the end of a run of main.py, the programs that were compiled and those found compiled,
# and looks for modules that take seconds to import.
COUNTED = """
import collections, json, runpy, sys
import jax.monitoring
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rpartition("/")[2]]))
try:
    runpy.run_path("main.py", run_name="__main__")
finally:
    wanted = ("torch", "tensorflow", "tensorflow_datasets", "matplotlib", "gcsfs")
    heavy = [name for name in wanted if name in sys.modules]
    print(json.dumps({"compiled": counts["cache_misses"], "found": counts["cache_hits"],
                      "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def counts(tiny_clip_dir, tmp_path_factory):
    """What the script prints of a first and of a second start."""
    folder = tmp_path_factory.mktemp("start")
    options = ["--config=configs/coop.py:folder", f"--config.dataset.root={SMALL / 'images'}",
               f"--config.clip.weights={tiny_clip_dir}", "--config.train.epochs=1"]  # fmt: skip
    # Neither the tests' own cache nor their threshold: what a user has.
    environment = {"XDG_CACHE_HOME": str(folder), "PYTHONPATH": "."}
    without = ("JAX_COMPILATION_CACHE_DIR",)
    printed = [
        command(
            "-c", COUNTED, *options, f"--workdir={folder / run}", without=without, **environment
        )
        for run in ("first", "second")
    ]
    # absl's app.run exits, so the script's line comes last.
    return [json.loads(done.stdout.splitlines()[-1]) for done in printed]


def test_a_second_start_compiles_nothing(counts):
    first, second = counts
    assert first["compiled"] > 0 == second["compiled"]
    assert second["found"] >= 5


def test_nothing_is_imported_that_is_not_asked_for(counts):
    assert counts[0]["heavy"] == []
