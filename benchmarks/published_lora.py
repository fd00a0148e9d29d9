"""Runs the training loop of CLIP-LoRA's published code, which has no trainer to call step by step.

The time between two requests of the loop for a batch is that of a step.
"""

import itertools
import statistics
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

# The defaults of its run_utils.py, and one of its lists of layers: it names all layers of any ViT.
SETTINGS = {
    **{"encoder": "both", "position": "all", "params": ["q", "k", "v"], "r": 2, "alpha": 1},
    **{"dropout_rate": 0.25, "lr": 2e-4, "backbone": "ViT-L/14"},
    **{"shots": 1, "eval_only": False, "save_path": None},
}


class Trained(NamedTuple):
    """Seconds of a step, the losses of all steps, and the number of learned values."""

    seconds: float
    losses: list[float]
    learned: int


def train(
    code: Any, clip: Any, names: list[str], batch: Mapping[str, Tensor], steps: int
) -> Trained:
    """Train the code's own CLIP (a module) by its loop, without float16.

    The changes of the weights start at zero, so dropout has no part in the first loss.
    """
    losses: list[float] = []
    learned: list[Tensor] = []
    began: list[float] = []
    cross_entropy, parameters = code.F.cross_entropy, code.get_lora_parameters

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began.append(time.perf_counter())
            yield batch["img"], batch["label"]

    def noted_loss(*arguments: Tensor) -> Tensor:
        loss = cross_entropy(*arguments)
        losses.append(loss.item())
        return loss

    def noted_parameters(model: nn.Module) -> list[Tensor]:
        learned.extend(parameters(model))
        return learned

    settings = types.SimpleNamespace(**SETTINGS, n_iters=steps + 2)
    dataset = types.SimpleNamespace(classnames=names, template=["a photo of a {}."])
    exact = torch.amp.autocast(device_type=batch["img"].device.type, enabled=False)
    scaler = torch.amp.GradScaler(enabled=False)
    one = [(batch["img"][:1], batch["label"][:1])]  # to validate and to test on
    with (
        mock.patch.object(torch.amp, "autocast", lambda **_: exact),
        mock.patch.object(torch.cuda.amp, "GradScaler", lambda: scaler),
        mock.patch.object(code.F, "cross_entropy", noted_loss),
        mock.patch.object(code, "get_lora_parameters", noted_parameters),
        mock.patch.object(code, "cls_acc", lambda *_: 0.0),  # it fails with NumPy 2.4
    ):
        code.run_lora(settings, clip, clip.logit_scale.exp().item(), dataset, batches(), one, one)
    seconds = [after - before for before, after in itertools.pairwise(began)][1:]
    return Trained(statistics.median(seconds), losses, sum(value.numel() for value in learned))
