"""Lists that come with datasets, damaged: refused in one sentence with the path, or read."""

import pytest

from dpt_jax.data.catalogue import CATALOGUE
from dpt_jax.data.coop import read_coop
from dpt_jax.errors import UserError
from tests.helpers import coop_trees

FILES = {
    "stanford_cars": ["devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"],
    "oxford_flowers": ["imagelabels.mat", "cat_to_name.json"],
    "sun397": ["ClassName.txt", "Training_01.txt"],
    "ucf101": ["ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt"],
    "oxford_pets": ["annotations/trainval.txt"],
    "fgvc_aircraft": ["variants.txt", "images_variant_train.txt"],
    "imagenet": ["classnames.txt"],
}


def damages(whole):
    """What a download, an editor or a copy makes of a file."""
    yield from (whole[: len(whole) * part // 12] for part in range(12))
    yield b"<!DOCTYPE html><html><body>404</body></html>"
    yield b"caf\xe9 1 1 1\n" + whole
    yield b"\xff\xfe" + whole
    yield b"[1, 2]"
    yield b"null"


@pytest.mark.parametrize(
    ("name", "list_file"), [(name, file) for name, files in FILES.items() for file in files]
)
def test_a_damaged_list_is_one_sentence_with_its_path(name, list_file, tmp_path):
    """A file that is cut between two lines is still read, or lacks a class."""
    coop_trees.make(name, tmp_path)
    file = tmp_path / CATALOGUE[name].directory / list_file
    refused = 0
    for damaged in damages(file.read_bytes()):
        file.write_bytes(damaged)
        try:
            read_coop(name, tmp_path)
        except UserError as reason:
            assert str(tmp_path) in str(reason)
            refused += 1
    assert refused >= 5


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path):
    coop_trees.make("fgvc_aircraft", tmp_path)
    file = tmp_path / "fgvc_aircraft" / "variants.txt"
    before = read_coop("fgvc_aircraft", tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_coop("fgvc_aircraft", tmp_path).classnames == before.classnames
