"""The installed package: a wheel, in an environment with only its requirements."""

import importlib.metadata
import pathlib
import shutil
import venv

import pytest
from packaging.requirements import Requirement

from tests.helpers.commands import ROOT, command

pytestmark = pytest.mark.process


def needed_distributions() -> set[str]:
    """Return the names of all direct and indirect requirements of requirements.txt."""
    found = set()

    def add(requirement: Requirement, of_extra: str = "") -> None:
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            return
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) not in found:
                found.add((requirement.name, extra))
                for text in importlib.metadata.requires(requirement.name) or []:
                    add(Requirement(text), extra)

    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            add(Requirement(line))
    return {name for name, _ in found}


def link_distributions(names: set[str], packages: pathlib.Path) -> None:
    """Link the top-level files and folders of installed distributions into another environment."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            top = file.parts[0]
            target = pathlib.Path(str(distribution.locate_file(top)))
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(target)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder outside of the repository that has the environment."""
    folder = tmp_path_factory.mktemp("installed")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    shutil.copytree(ROOT / "dpt_jax", source / "dpt_jax")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command("-c", build, str(folder), cwd=source)
    shutil.rmtree(source)
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    link_distributions(needed_distributions(), packages)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, packages, "zip")
    return folder


COMMANDS = """
import importlib.util
from dpt_jax.cli import main
for extra in ("torch", "tensorflow", "pytest", "gcsfs"):
    assert importlib.util.find_spec(extra) is None, extra
main(["train", "--config=coop", "--config.train.epochs=1", "--config.dataset.shots=1",
      "--workdir=run"])
main(["convert", "export", "run", "run.safetensors"])
main(["predict", "run.safetensors", "scan.png", "--top=50"])
main(["convert", "serve", "run", "served"])
"""


def test_train_predict_export_and_serve_without_the_repository(installed):
    (digits,) = installed.glob("environment/lib/python*/site-packages/dpt_jax/assets/digits")
    shutil.copy(next((digits / "test" / "three").iterdir()), installed / "scan.png")
    for kind in (digits / "test").iterdir():  # a few of them tell whether they are found
        for file in sorted(kind.iterdir())[2:]:
            file.unlink()
    python = installed / "environment" / "bin" / "python"
    printed = command("-c", COMMANDS, cwd=installed, python=python, without=["PYTHONPATH"]).stdout
    assert "zero-shot" in printed
    assert "three" in printed
    assert (installed / "served" / "classify.py").is_file()
