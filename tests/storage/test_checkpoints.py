"""What a checkpoint says of itself: damage, other errors, and paths of any characters."""

import errno
import shutil

import jax
import numpy as np
import pytest

from dpt_jax.errors import UserError
from dpt_jax.training import manifest
from dpt_jax.training.checkpoints import DAMAGED, Checkpoints, load_newest
from dpt_jax.training.manifest import MANIFEST, DamagedError

PROMPTS = {"text": {"context": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}}
TRAINING = {"opt/trace": np.ones(3, np.float32), "opt/count": np.int32(2)}
META = {"method": "coop", "classnames": ["dog"]}


def written(workdir, steps=(1, 2)):
    with Checkpoints(workdir, create=True) as checkpoints:
        for step in steps:
            checkpoints.save(step, PROMPTS, META, TRAINING)
        checkpoints.wait()
    return workdir


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return written(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def there(workdir):
    return sorted(path.relative_to(workdir) for path in workdir.rglob("*"))


@pytest.mark.parametrize("name", ["lr[0.01]", "a\\b", "what?*"])
def test_a_path_of_any_characters(tmp_path, name):
    """Orbax takes such a path for a pattern, and loses what it writes there."""
    workdir = written(tmp_path / name / "run", steps=(1,))
    jax.tree.map(np.testing.assert_array_equal, load_newest(workdir).prompts, PROMPTS)
    with Checkpoints(workdir, create=True) as checkpoints:
        saved, training = checkpoints.resume(PROMPTS, TRAINING)
    assert saved.step == 1
    jax.tree.map(np.testing.assert_array_equal, training, TRAINING)


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be read .*Permission denied"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read .*Input/output error"),
        (MemoryError(), "too little memory"),
        (RuntimeError("a library's"), "cannot be restored .*its files are whole"),
    ],
)
def test_what_is_no_damage_stops_and_moves_nothing(copied, monkeypatch, failure, says):
    def fail(*_, **__):
        raise failure

    before = there(copied)
    with Checkpoints(copied, create=True) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(UserError, match=says):
            checkpoints.resume(PROMPTS, TRAINING)
        with pytest.raises(UserError, match=says):
            checkpoints.load(2)
    if isinstance(failure, OSError):
        monkeypatch.setattr(manifest, "_describe", fail)
        with pytest.raises(UserError, match=says):
            load_newest(copied)
    assert there(copied) == before


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({**TRAINING, "opt/more": np.zeros(2, np.float32)}, "training state of another version"),
        ({"opt/trace": TRAINING["opt/trace"]}, "training state of another version"),
        ({**TRAINING, "opt/trace": np.zeros(4, np.float32)}, "cannot be restored .*are whole"),
    ],
)
def test_another_optimizer_state_is_no_damage(copied, other, says):
    before = there(copied)
    with (
        Checkpoints(copied, create=True) as checkpoints,
        pytest.raises(UserError, match=says),
    ):
        checkpoints.resume(PROMPTS, other)
    assert there(copied) == before


def test_a_folder_copied_in_part_is_damage(copied):
    shutil.rmtree(copied / "checkpoints" / "2" / "prompts")
    with Checkpoints(copied, create=True) as checkpoints:
        with pytest.raises(DamagedError, match=r"checkpoints/2 is damaged \(prompts/.* is missing"):
            checkpoints.load(2)
        saved, _ = checkpoints.resume(PROMPTS, TRAINING)
    assert saved.step == 1
    assert (copied / DAMAGED / "2").is_dir()


def test_no_whole_checkpoint_is_a_stop_and_nothing_is_moved(copied):
    for step in ("1", "2"):
        (copied / "checkpoints" / step / "training" / "_METADATA").unlink()
    before = there(copied)
    with Checkpoints(copied, create=True) as checkpoints:
        for _ in range(2):
            with pytest.raises(UserError, match=r"none of the 2 .* is whole: .*To start over"):
                checkpoints.resume(PROMPTS, TRAINING)
    assert there(copied) == before


def test_checkpoints_of_older_versions_have_no_manifest(copied):
    for step in ("1", "2"):
        (copied / "checkpoints" / step / MANIFEST).unlink()
    with Checkpoints(copied, create=True) as checkpoints:
        assert checkpoints.resume(PROMPTS, TRAINING)[0].step == 2


def test_the_first_checkpoint_of_a_run_is_read_back(tmp_path, monkeypatch):
    reads = []

    def fail(_, step):
        reads.append(step)
        raise DamagedError("it is gone.")

    monkeypatch.setattr(Checkpoints, "_read", fail)
    with Checkpoints(tmp_path, create=True) as checkpoints:
        with pytest.raises(UserError, match=r"cannot be read back \(it is gone\)"):
            checkpoints.save(1, PROMPTS, META, TRAINING)
        checkpoints.save(2, PROMPTS, META, TRAINING)
        checkpoints.wait()
    assert reads == [1]


def test_a_workdir_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used for checkpoints"):
        Checkpoints(tmp_path / "file", create=True)
