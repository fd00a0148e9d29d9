"""Each file of a checkpoint, damaged: it is recognised, and the one before is used."""

import shutil

import jax
import numpy as np
import pytest

from dpt_jax.errors import UserError
from dpt_jax.training.checkpoints import DAMAGED, Checkpoints, load_newest
from tests.helpers.faults import damaged, write

pytestmark = pytest.mark.compiles


PROMPTS = {
    "text": {"context": np.arange(6, dtype=np.float32).reshape(1, 2, 3)},
    "visual": {"tokens": np.ones((2, 2))},
}


def training_of(step):
    return {
        "opt_state": {"trace": np.full((3,), step, np.float32)},
        "totals": np.zeros(3, np.float32),
    }


def prompts_of(step):
    return jax.tree.map(lambda x: x + step, PROMPTS)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    with Checkpoints(workdir, create=True) as checkpoints:
        for step in (1, 2):
            checkpoints.save(
                step, prompts_of(step), {"classnames": ["dog"], "epoch": step}, training_of(step)
            )
        checkpoints.wait()
    return workdir


def test_every_damage_to_the_newest_checkpoint(two_steps, tmp_path):
    """Each file in five ways: it is recognised, and the one before used, or it changes nothing."""
    generator, recognised, harmless = np.random.default_rng(0), 0, 0
    files = sorted(
        file.relative_to(two_steps)
        for file in (two_steps / "checkpoints" / "2").rglob("*")
        if file.is_file()
    )
    assert len(files) > 5
    for file in files:
        for _, content in damaged((two_steps / file).read_bytes(), generator):
            workdir = tmp_path / f"{recognised + harmless}"
            shutil.copytree(two_steps, workdir)
            write(workdir / file, content)
            saved = load_newest(workdir)
            assert saved.meta == {"classnames": ["dog"], "epoch": saved.step}
            jax.tree.map(np.testing.assert_array_equal, saved.prompts, prompts_of(saved.step))
            with Checkpoints(workdir, create=True) as checkpoints:
                saved, training = checkpoints.resume(PROMPTS, training_of(0))
            jax.tree.map(np.testing.assert_array_equal, saved.prompts, prompts_of(saved.step))
            jax.tree.map(np.testing.assert_array_equal, training, training_of(saved.step))
            assert (workdir / DAMAGED / "2").exists() == (saved.step == 1)
            recognised, harmless = recognised + (saved.step == 1), harmless + (saved.step == 2)
            shutil.rmtree(workdir)
    print(
        f"{recognised} of {recognised + harmless} damages recognised, "
        f"{harmless} changed nothing that is read"
    )
    assert recognised >= len(files)


def test_no_whole_checkpoint_at_all(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    for step in (1, 2):
        (tmp_path / "run" / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
    with pytest.raises(UserError, match="holds no checkpoint that is whole"):
        load_newest(tmp_path / "run")
