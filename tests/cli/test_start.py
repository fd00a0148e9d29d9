"""What a start costs: each program is compiled once, and only what is needed is imported."""

import json

import pytest

from tests.helpers.commands import command

pytestmark = pytest.mark.process

# Counts, at the end of a run of main.py, the programs that were compiled and those found compiled,
# and looks for modules that take seconds to import.
COUNTED = """
import collections, json, runpy, sys
import jax.monitoring
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rpartition("/")[2]]))
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **about: counts.update(
        [about["fun_name"]] if name.endswith("backend_compile_duration") else []
    )
)
try:
    runpy.run_path("main.py", run_name="__main__")
finally:
    wanted = ("torch", "tensorflow", "tensorflow_datasets", "matplotlib", "gcsfs")
    heavy = [name for name in wanted if name in sys.modules]
    print(json.dumps({"compiled": counts["cache_misses"], "found": counts["cache_hits"],
                      "pmapped": counts["jit(_fun)"], "heavy": heavy}))
"""


def counted(*arguments, cache):
    """What the script above prints; absl's app.run exits, so its line comes last."""
    # Neither the tests' own cache nor their threshold: what a user has.
    environment = {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": "."}
    options = ["--config=configs/coop.py:emoji", "--config.train.epochs=1", *arguments]
    done = command("-c", COUNTED, *options, without=("JAX_COMPILATION_CACHE_DIR",), **environment)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return cache, counted(f"--workdir={cache / 'cold'}", cache=cache)


def test_a_second_start_compiles_nothing(cold, tmp_path):
    cache, first = cold
    assert first["compiled"] > 0
    second = counted(f"--workdir={tmp_path}", cache=cache)
    assert second["compiled"] == 0
    assert second["found"] >= 5


def test_nothing_is_imported_that_is_not_asked_for(cold):
    assert cold[1]["heavy"] == []
