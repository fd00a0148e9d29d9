"""The part of the package dassl that a training step of the published trainers calls.

Written from those calls. An epoch never ends here: no learning rate changes, nothing is averaged or
saved.
"""

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

Registered = TypeVar("Registered")
# Imported by a trainer or its clip/, but not called in a step. Python 3.13 has no audioop.
UNUSED = {
    "torchvision.transforms": ("Compose", "Resize", "CenterCrop", "ToTensor", "Normalize"),
    "turtle": ("forward",),
    "audioop": ("tomono",),
}
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # dassl's defaults, which no published configuration changes


class TrainerX:
    """What the trainers inherit from: the models and optimizers that `build_model` registers."""

    cfg: Any
    model: nn.Module

    def __init__(self, cfg: Any, classnames: list[str], device: torch.device) -> None:
        """Build the trainer's model and set it to training."""
        self.cfg, self.device = cfg, device
        self.num_classes = len(classnames)
        self.dm = types.SimpleNamespace(dataset=types.SimpleNamespace(classnames=classnames))
        self.epoch, self.batch_idx, self.num_batches = 0, 0, sys.maxsize
        self.models: dict[str, nn.Module] = {}
        self.optimizers: list[torch.optim.Optimizer] = []
        self.check_cfg(cfg)
        self.build_model()
        for model in self.models.values():
            model.train()

    def check_cfg(self, cfg: Any) -> None:
        """Accept a configuration."""

    def build_model(self) -> None:
        """Build the model: overridden."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Take a step and return its loss: overridden."""
        raise NotImplementedError

    def register_model(
        self, name: str, model: nn.Module, optim: torch.optim.Optimizer, sched: object
    ) -> None:
        """Register a trained model and its optimizer."""
        self.models[name] = model
        self.optimizers.append(optim)

    def model_backward_and_update(self, loss: Tensor, names: None = None) -> None:
        """Take a step of all optimizers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def model_zero_grad(self, names: None = None) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Compute the gradients.  Raise FloatingPointError for a loss that is not finite."""
        if not torch.isfinite(loss).all():
            raise FloatingPointError(f"the loss is {loss.item()}")
        loss.backward()

    def model_update(self, names: None = None) -> None:
        """Move what is learned."""
        for optimizer in self.optimizers:
            optimizer.step()

    def learned(self) -> int:
        """Return how many values the optimizers change."""
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        every = {id(value): value for group in groups for value in group["params"]}
        return sum(value.numel() for value in every.values() if value.requires_grad)


def build_optimizer(model: nn.Module, cfg: Any) -> torch.optim.Optimizer:
    """Return SGD of all parameters of a model; those without a gradient stay as they are."""
    return torch.optim.SGD(
        model.parameters(), lr=cfg.LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )


def build_lr_scheduler(optimizer: torch.optim.Optimizer, cfg: Any) -> LambdaLR:
    """Return a schedule that stays at its first rate."""
    return LambdaLR(optimizer, lambda epoch: 1.0)


def compute_accuracy(output: Tensor, target: Tensor) -> list[Tensor]:
    """Return a list of one: the percentage of logits (B, C) whose largest is the label's."""
    return [100 * (output.argmax(1) == target).float().mean()]


def _register() -> Callable[[Registered], Registered]:
    return lambda trainer: trainer


def _never(*_: object) -> None:
    raise NotImplementedError("no step calls this")


def install() -> None:
    """Let the published code import this as dassl, and empty modules that it does not use."""
    registry = types.SimpleNamespace(register=_register)
    _put("dassl")
    _put("dassl.engine", TrainerX=TrainerX, TRAINER_REGISTRY=registry)
    _put("dassl.metrics", compute_accuracy=compute_accuracy)
    _put("dassl.optim", build_optimizer=build_optimizer, build_lr_scheduler=build_lr_scheduler)
    _put("dassl.utils", load_pretrained_weights=_never, load_checkpoint=_never)
    for name, contents in UNUSED.items():
        try:
            importlib.import_module(name)
        except ImportError:
            parent, _, child = name.partition(".")
            if child and parent not in sys.modules:
                _put(parent)
            _put(name, **dict.fromkeys(contents, _never))


def _put(name: str, **contents: object) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)
