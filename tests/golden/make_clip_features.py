"""Writes tests/golden/clip_vit_*.npz: transformers' CLIPModel at full size on random weights.

    python -m tests.golden.make_clip_features

Needs torch and transformers. Tests draw the 600 MB of weights from the same seed.
"""

import json
import pathlib
import tempfile

import numpy as np

from tests.helpers import make_clip

DATA = pathlib.Path(__file__).parent
SIZES = {"embed": 512, "res": 224, "vl": 12, "vw": 768, "tw": 512, "th": 8, "tl": 12}
MODELS = {f"clip_vit_b{patch}": {**SIZES, "patch": patch} for patch in (32, 16)}
SEED = 11


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
        with tempfile.TemporaryDirectory() as folder:
            make_clip.write(folder, SEED, **sizes)
            model = transformers.CLIPModel.from_pretrained(folder).eval()
        with torch.no_grad():
            pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy())
            out = model(input_ids=torch.tensor(padded), pixel_values=pixels)
            image = model.visual_projection(model.vision_model(pixels).pooler_output)
            text = model.text_projection(model.text_model(torch.tensor(padded)).pooler_output)
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        arrays = {"image_features": image.numpy(), "text_features": text.numpy()}
        arrays |= {"meta": json.dumps({**versions, "seed": SEED, **sizes})}
        np.savez(DATA / f"{name}.npz", logits=out.logits_per_image.numpy(), **arrays)
        print(name, out.logits_per_image.numpy())


if __name__ == "__main__":
    main()
