"""Times the step of train_step.py as it is usually written in PyTorch, on the same machine.

    python benchmarks/torch_step.py [--clip=vit-b-32] [--classes=100] [--batch=32]
        [--dtype=float32] [--steps=5]

The towers are transformers' CLIPModel with random weights. A step is a plain pass without
gradients, a pass with ten prompt tokens beside the patches, and all class texts of 77 tokens with a
learned context; forward, backward, SGD. The class-aware attention is left out. It needs torch, and
uses a GPU where torch finds one. Prints one JSON line.
"""

import datetime
import json
import platform
import resource
import statistics
import time
from typing import Any

import torch
import transformers
from absl import app, flags

CLIP = flags.DEFINE_enum(
    "clip", "vit-b-32", ["vit-b-32", "vit-b-16", "vit-l-14"], "The size of the backbone."
)
CLASSES = flags.DEFINE_integer("classes", 100, "Class texts.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 32, "Images a step.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
STEPS = flags.DEFINE_integer("steps", 5, "How many are timed.", lower_bound=1)
# patch, vision width, vision layers, text width, joint width
SIZES = {
    "vit-b-32": (32, 768, 12, 512, 512),
    "vit-b-16": (16, 768, 12, 512, 512),
    "vit-l-14": (14, 1024, 24, 768, 768),
}
CONTEXT, VISUAL, LENGTH = 16, 10, 77


def make_clip() -> transformers.CLIPModel:
    """Return a frozen CLIPModel."""
    patch, vision, layers, text, joint = SIZES[CLIP.value]
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            projection_dim=joint,
            vision_config={
                "hidden_size": vision,
                "intermediate_size": 4 * vision,
                "num_hidden_layers": layers,
                "num_attention_heads": vision // 64,
                "patch_size": patch,
            },
            text_config={
                "hidden_size": text,
                "intermediate_size": 4 * text,
                "num_attention_heads": text // 64,
            },
        )
    )
    return model.eval().requires_grad_(False)


def main(_: list[str]) -> None:
    """Time the step that the flags name and print the line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, DTYPE.value)
    torch.manual_seed(0)
    model: Any = make_clip()
    model = model.to(device, dtype)
    vision, text = model.vision_model, model.text_model
    images = torch.randn(BATCH.value, 3, 224, 224, device=device, dtype=dtype)
    labels = torch.randint(0, CLASSES.value, (BATCH.value,), device=device)
    names = text.embeddings(torch.randint(0, 49000, (CLASSES.value, LENGTH), device=device))
    context = torch.nn.Parameter(
        0.02 * torch.randn(CONTEXT, names.shape[-1], device=device, dtype=dtype)
    )
    visual = torch.nn.Parameter(
        0.02 * torch.randn(VISUAL, vision.config.hidden_size, device=device, dtype=dtype)
    )
    optimizer = torch.optim.SGD([context, visual], lr=0.01, momentum=0.9)

    def image_features(prompts: torch.Tensor | None) -> torch.Tensor:
        x = vision.pre_layrnorm(vision.embeddings(images))
        if prompts is not None:
            x = torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
        pooled = vision.post_layernorm(vision.encoder(inputs_embeds=x).last_hidden_state[:, 0])
        return torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)

    def step() -> None:
        with torch.no_grad():
            plain = image_features(None)
        shared = context.expand(CLASSES.value, -1, -1)
        x = torch.cat([names[:, :1], shared, names[:, 1 + CONTEXT :]], dim=1)
        last = text.encoder(inputs_embeds=x, attention_mask=None, is_causal=True).last_hidden_state[
            :, -1
        ]
        texts = torch.nn.functional.normalize(
            model.text_projection(text.final_layer_norm(last)), dim=-1
        )
        prompted = image_features(visual)
        losses = [
            torch.nn.functional.cross_entropy(100 * f @ texts.T, labels) for f in (plain, prompted)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    times = []
    for _step in range(STEPS.value):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    result: dict[str, Any] = {
        "clip": CLIP.value,
        "classes": CLASSES.value,
        "batch": BATCH.value,
        "dtype": DTYPE.value,
        "step_s": round(statistics.median(times), 4),
        "images_per_s": round(BATCH.value / statistics.median(times), 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    if device.type == "cuda":
        result["device_peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
