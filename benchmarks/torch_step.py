"""Times the step of train_step.py as PyTorch code usually computes it.

    python benchmarks/torch_step.py [--clip=vit-b-32] [--classes=100] [--batch=32] [--method=dpt]
        [--dtype=float32] [--steps=5] [--compile=inductor]

The towers are transformers' CLIPModel with random weights; torch_twin.py has the loss. A step is
forward, backward and SGD, on a GPU if PyTorch finds one. --compile names a
backend of torch.compile. Prints one JSON line.
"""

import functools
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ["JAX_PLATFORMS"] = "cpu"  # JAX computes only shapes; the GPU is for PyTorch

import jax
import torch
import transformers
from absl import app, flags
from torch.nn.functional import normalize

from benchmarks.random_clip import SIZES, openai_tokenizer, published_settings
from benchmarks.timing import FLAGS, STEPPED, define_flags, print_line, torch_times
from benchmarks.torch_twin import Twin
from dpt_jax.clip.config import config_to_dict
from dpt_jax.config import prompt_config
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.methods import METHODS, WEIGHTS
from dpt_jax.model import PromptedCLIP, init_prompts
from dpt_jax.prompts.text import context_tokens

define_flags(methods=[name for name in STEPPED if WEIGHTS not in METHODS[name].parts])
flags.DEFINE_enum("compile", None, ["inductor", "aot_eager"], "Backend of torch.compile.")


def tokenized(names: list[str], words: int) -> torch.Tensor:
    """Return the tokens (C, 77) of "X … X NAME." with `words` times X."""
    tokenizer = openai_tokenizer()
    rows = torch.zeros(len(names), 77, dtype=torch.long)
    for row, name in zip(rows, names, strict=True):
        own = [tokenizer.start, *[tokenizer.encode("x")[0]] * words, *tokenizer.encode(f"{name}.")]
        row[: len(own) + 1] = torch.tensor([*own, tokenizer.end])
    return rows


def main(_: list[str]) -> None:
    """Time the step that the flags name and print the line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, FLAGS.dtype)
    torch.manual_seed(0)
    sizes = SIZES[FLAGS.clip]
    clip = transformers.CLIPModel(transformers.CLIPConfig.from_dict(config_to_dict(sizes)))
    clip = clip.eval().requires_grad_(False).to(device=device, dtype=dtype)
    config = published_settings(FLAGS.method, FLAGS.clip)
    words = len(context_tokens(config.text_prompt.init, openai_tokenizer()))
    prompted = prompt_config(config, FLAGS.classes, sizes.vision.layers, words)
    model = PromptedCLIP(sizes, prompted)
    shapes = jax.eval_shape(functools.partial(init_prompts, model), jax.random.key(0))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    prompts = jax.tree.map(lambda x: (0.02 * normal(*x.shape)).requires_grad_(), shapes)
    optimizer = torch.optim.SGD(jax.tree.leaves(prompts), lr=0.01, momentum=0.9, weight_decay=5e-4)
    texts = normalize(normal(FLAGS.classes, sizes.embed_dim), dim=-1)
    names = imagenet_classnames()[: FLAGS.classes]
    tokens = tokenized(names, max(words, prompted.text_length)).to(device)
    guided = config.loss.guidance_epochs > 0
    twin = Twin(clip, prompted, tokens, texts, texts, config.loss.alpha, guided)
    images = normal(FLAGS.batch, 3, sizes.image_size, sizes.image_size)
    labels = torch.randint(0, FLAGS.classes, (FLAGS.batch,), device=device)

    loss = torch.compile(twin.loss, backend=FLAGS.compile) if FLAGS.compile else twin.loss

    def step() -> None:
        optimizer.zero_grad()
        loss(prompts, images, labels).backward()
        optimizer.step()

    print_line({"compiled": FLAGS.compile} | torch_times(step), torch=torch.__version__)


if __name__ == "__main__":
    app.run(main)
