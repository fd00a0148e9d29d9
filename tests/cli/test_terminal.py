"""How a command ends after each kind of error."""

import errno

import pytest
from aiohttp import ClientOSError
from gcsfs.retry import HttpError

from dpt_jax.cli import ending
from dpt_jax.errors import BUG, INTERRUPTED, USER_ERROR, UserError
from tests.helpers.commands import assert_refused, command, command_refused, in_process


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("two\nlines"), USER_ERROR, "two lines"),
        (KeyboardInterrupt(), INTERRUPTED, "stopped"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), USER_ERROR, "/a/b"),
        (PermissionError(errno.EROFS, "Read-only file system", "/a/b"), USER_ERROR, "/a/b"),
        (HttpError({"code": 503, "message": "try later"}), USER_ERROR, "bucket"),
        (ClientOSError(errno.ENOENT, "Name or service not known"), USER_ERROR, "bucket"),
        (KeyError("x"), BUG, "KeyError"),
        (RuntimeError("x"), BUG, "RuntimeError"),
    ],
)
def test_exit_codes_and_sentences(error, code, says):
    found, sentence = ending(error)
    assert found == code
    assert says in sentence
    assert "\n" not in sentence


@pytest.mark.process
def test_a_backend_that_is_not_there(tmp_path):
    done = command("main.py", f"--workdir={tmp_path}", check=False, JAX_PLATFORMS="cuda")
    assert_refused(done, "JAX_PLATFORMS='cuda'")
    assert "pip install" in done.stderr


def test_debug_keeps_the_traceback(tmp_path):
    with pytest.raises(UserError, match=r"train\.epochs"):
        in_process("main.py", "--config.train.epochs=0", f"--workdir={tmp_path}", "--debug")


@pytest.mark.parametrize("key", ["workdir", "config.clip.weights"])
def test_a_bucket_that_is_not_there(key, store, tmp_path):
    arguments = [f"--workdir={tmp_path / 'run'}", f"--{key}=gs://nobody-has-this/run"]
    done = command_refused("nobody-has-this", "main.py", *arguments)
    assert len(done.stderr.strip().splitlines()) == 1
