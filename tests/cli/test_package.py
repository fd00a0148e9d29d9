"""The installed package: a wheel, in an environment with only its requirements."""

import importlib.metadata
import pathlib
import re
import shutil
import venv

import pytest
from packaging.requirements import Requirement

from tests.helpers.commands import ROOT, command

pytestmark = pytest.mark.process


def needed_distributions() -> set[str]:
    """Return the names of all direct and indirect requirements of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    waiting = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        for extra in ("", *wanted.extras):
            if (key := f"{name}[{extra}]") in found:
                continue
            found.add(key)
            for text in importlib.metadata.requires(name) or []:
                asked = Requirement(text)
                if asked.marker is None or asked.marker.evaluate({"extra": extra}):
                    asked.marker = None
                    waiting.append(asked)
    return {key.partition("[")[0] for key in found}


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
