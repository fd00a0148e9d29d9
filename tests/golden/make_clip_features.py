"""Writes tests/data/clip_vit_*.npz: transformers' CLIPModel at full size on seeded random weights.

    python -m tests.golden.make_clip_features

Needs torch and transformers; the tests that read the files need neither torch
nor the 600 MB of weights, which both sides draw from the same seed.
"""

import json
import pathlib

import numpy as np

from tests.helpers import make_clip

DATA = pathlib.Path(__file__).parent
MODELS = {
    "clip_vit_b32": {
        "embed": 512,
        "res": 224,
        "vl": 12,
        "vw": 768,
        "patch": 32,
        "tw": 512,
        "th": 8,
        "tl": 12,
    },
    "clip_vit_b16": {
        "embed": 512,
        "res": 224,
        "vl": 12,
        "vw": 768,
        "patch": 16,
        "tw": 512,
        "th": 8,
        "tl": 12,
    },
}
SEED = 11


def weights(sizes):
    """Seeded weights under the names of transformers' CLIPModel."""
    shapes = make_clip.openai_shapes(**{k: v for k, v in sizes.items() if k != "th"})
    return make_clip.to_huggingface(make_clip.seeded(shapes, SEED))


def inputs():
    """Two normalised images (2, 224, 224, 3) and three texts as token ids, start and end
    included.
    """
    generator = np.random.default_rng(SEED)
    images = generator.standard_normal((2, 224, 224, 3), dtype=np.float32)
    texts = [[49406, *generator.integers(1000, 40000, n).tolist(), 49407] for n in (3, 6, 11)]
    return images, texts


def main():
    import torch
    import transformers

    images, texts = inputs()
    padded = np.full((len(texts), 77), 49407)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = text
    for name, sizes in MODELS.items():
        config = transformers.CLIPConfig.from_dict(make_clip.config(**sizes))
        model = transformers.CLIPModel(config).eval()
        model.load_state_dict({k: torch.tensor(v) for k, v in weights(sizes).items()})
        with torch.no_grad():
            pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy())
            out = model(input_ids=torch.tensor(padded), pixel_values=pixels)
            image = model.visual_projection(model.vision_model(pixels).pooler_output)
            text = model.text_projection(model.text_model(torch.tensor(padded)).pooler_output)
        meta = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "seed": SEED,
            **sizes,
        }
        np.savez(
            DATA / f"{name}.npz",
            meta=json.dumps(meta),
            image_features=image.numpy(),
            text_features=text.numpy(),
            logits=out.logits_per_image.numpy(),
        )
        print(name, out.logits_per_image.numpy())


if __name__ == "__main__":
    main()
