"""The published codes whose steps are timed: where they are, and the stand-in for dassl."""

import importlib
import sys

import pytest
import torch

from benchmarks import dassl_stand_in
from benchmarks.published import PUBLISHED, Branch, find
from dpt_jax.errors import UserError
from tests.helpers.commands import ROOT

STAND_INS = ["dassl", *(f"dassl.{part}" for part in ("engine", "metrics", "optim", "utils"))]
STAND_INS += ["torchvision", *dassl_stand_in.UNUSED]
TRAINER = """
import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights


@TRAINER_REGISTRY.register()
class Fake(TrainerX):
    def build_model(self):
        self.model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, len(self.dm.dataset.classnames)))
        self.model[0].requires_grad_(False)
        optimizer = self.cfg.OPTIM.clone()
        optimizer.LR = 1.0
        self.optim = build_optimizer(self.model, optimizer)
        self.sched = build_lr_scheduler(self.optim, optimizer)
        self.register_model("model", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        logits = self.model(batch["img"])
        loss = nn.functional.cross_entropy(logits, batch["label"])
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, batch["label"])[0].item()}
"""


def test_a_trainer_steps_as_in_dassl(tmp_path, monkeypatch):
    """What is frozen stays, is not counted, and what is learned brings the loss down."""
    (tmp_path / "fake_trainer.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("fake_trainer", *STAND_INS):  # they go when the test ends
        monkeypatch.setitem(sys.modules, name, None)
    dassl_stand_in.install()
    del sys.modules["fake_trainer"]
    cfg = Branch(OPTIM=Branch(LR=0.0))
    torch.manual_seed(0)
    made = importlib.import_module("fake_trainer").Fake(cfg, ["a", "b"], torch.device("cpu"))
    frozen, learned = (layer.weight.clone() for layer in made.model)
    batch = {"img": torch.eye(3), "label": torch.tensor([0, 1, 1])}
    steps = [made.forward_backward(batch) for _ in range(20)]
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert steps[-1]["acc"] == 100
    assert made.learned() == 2 * 3 + 2
    assert torch.equal(made.model[0].weight, frozen)
    assert not torch.equal(made.model[1].weight, learned)
    assert cfg.OPTIM.LR == 0.0


@pytest.mark.parametrize(
    ("method", "clip", "batch", "says"),
    [
        ("coop", "vit-b-16", 4, r"trainers/coop\.py.*github.com/KaiyangZhou/CoOp"),
        ("vlp", "vit-b-16", 4, r"trainers/VLP\.py.*github.com/fanrena/DPT"),
        ("maple", "vit-l-14", 4, "--clip=vit-l-14"),
        ("dpt", "vit-b-16", 1, "--batch=1"),
    ],
)
def test_a_step_that_the_code_cannot_take_is_one_sentence(method, clip, batch, says, tmp_path):
    for code in PUBLISHED.values():
        if code.clone != "CoOp":
            file = tmp_path / code.clone / code.folder / f"{code.module.replace('.', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"class {code.trainer}(TrainerX):" if code.trainer != "VLP" else "")
    with pytest.raises(UserError, match=says):
        find(tmp_path / PUBLISHED[method].clone, method, clip, batch)


def test_the_page_clones_what_was_tried():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for code in PUBLISHED.values():
        assert f"git clone https://github.com/{code.repository}\n" in page
        assert f"git -C {code.clone} checkout {code.commit}\n" in page
