"""Checkpoints as the published PyTorch codes write them."""

import pathlib
from collections.abc import Mapping

import numpy as np
import torch


def write_module(
    directory: pathlib.Path, module: str, tensors: Mapping[str, np.ndarray], epoch: int
) -> pathlib.Path:
    """Writes the state dict of a module after an epoch; the directory."""
    (directory / module).mkdir(parents=True)
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
    file = directory / module / f"model.pth.tar-{epoch}"
    torch.save({"state_dict": state, "epoch": epoch}, file)
    return directory
