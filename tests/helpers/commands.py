"""Commands as a user runs them, in this process or in one of their own on simulated devices."""

import contextlib
import importlib.metadata
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import pytest

from dpt_jax import cli
from dpt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]

# Most of the tests' time is compilation, and none of them measures speed. The first two flags take
# a DPT step on the small CLIP from 10.7 to 6.2 s, the last one takes it to 2.7 s. A program in one
# part instead of 32 saves a seventh of the rest: the other processor runs other tests.
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICKLY_COMPILED += " --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")):  # 0.12 refuses the flag
    QUICKLY_COMPILED += " --xla_cpu_use_fusion_emitters=false"
# Once: a worker of pytest-xdist inherits them, and a program compiled with other flags is another.
if QUICKLY_COMPILED not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY_COMPILED}".strip()

# Programs compiled by one test serve the others, also in the processes that tests start.
if "TEST_COMPILATION_CACHE" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["TEST_COMPILATION_CACHE"] = COMPILED.name
COMPILATION = {
    "jax_compilation_cache_dir": os.environ["TEST_COMPILATION_CACHE"],
    "jax_persistent_cache_min_compile_time_secs": 0.05,
}
os.environ |= {name.upper(): str(value) for name, value in COMPILATION.items()}


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process with so many CPU devices."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{QUICKLY_COMPILED} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
    }


def start(*arguments: str, devices: int = 1, **environment: str) -> subprocess.Popen:
    """`python ARGUMENTS…` in a process group of its own, with stderr in its stdout."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**simulated(devices), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def command(
    *arguments: str,
    devices: int = 1,
    check: bool = True,
    without: Sequence[str] = (),
    cwd: pathlib.Path = ROOT,
    python: str | pathlib.Path = sys.executable,
    **environment: str,
) -> subprocess.CompletedProcess:
    """`python ARGUMENTS…` on simulated CPU devices, with the repository on its path.

    without: variables to leave out of its environment.
    """
    env = {**simulated(devices), **environment}
    done = subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env={name: value for name, value in env.items() if name not in without},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(
            f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return done


def in_process(
    *arguments: object, check: bool = True, cwd: pathlib.Path = ROOT
) -> subprocess.CompletedProcess:
    """`main.py ARGUMENTS…` or `dpt-jax ARGUMENTS…` without a process of its own.

    It starts at once, and shares the programs that this process has compiled. Tests of the process
    itself (signals, exit codes of bugs, devices, memory) need `command`.
    """
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    first, *rest = map(str, arguments)
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            cli.main_py(rest) if first == "main.py" else cli.main([first, *rest])
        except SystemExit as end:
            code = int(end.code or 0)
    done = subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())
    if check and code:
        raise AssertionError(f"{arguments} ended with {code}:\n{done.stdout}\n{done.stderr}")
    return done


def assert_refused(done: subprocess.CompletedProcess, says: object) -> None:
    """Assert that a command has ended as for wrong input, with one sentence that says this."""
    assert done.returncode == 2, done.stderr
    assert str(says) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def command_refused(says: object, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Assert that `in_process` refuses a command with one sentence that says this."""
    done = in_process(*arguments, check=False, **options)
    assert_refused(done, says)
    return done


def refused(named: str, call: Callable, *arguments, **options) -> None:
    """Assert that a call raises a UserError whose sentence matches `named`."""
    with pytest.raises(UserError, match=named):
        call(*arguments, **options)
