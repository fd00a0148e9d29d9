"""Pre-trains the bundled tiny CLIP on Noto emoji and their names.

    npm install emoji-datasource-google
    python tools/pretrain_tiny_clip.py node_modules/emoji-datasource-google dpt_jax/assets/tiny-clip

It sees no other drawings than Noto's, so that Twemoji stays a style that it does not know.
"""

import argparse
import pathlib
import sys

# Started as a script, whose import path begins in this folder and not at the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from etils import epath

from dpt_jax.clip.tokenizer import load_tokenizer
from dpt_jax.errors import UserError
from tools.emoji_names import read_emoji
from tools.tiny_clip.corpus import make_corpus
from tools.tiny_clip.model_folder import model_card, write_model, write_vocabulary
from tools.tiny_clip.training import Params, Recipe, tiny_config, train


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Recipe()
    parser.add_argument("package", help="the unpacked npm package emoji-datasource-google")
    parser.add_argument("target", type=pathlib.Path, help="the model directory to write")
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    options = parser.parse_args(arguments)
    recipe = Recipe(options.epochs, options.batch_size, options.learning_rate, options.seed)
    try:
        pretrain(options.package, options.target, recipe)
    except UserError as reason:
        print(reason, file=sys.stderr)
        raise SystemExit(2) from None


def pretrain(package: str, target: pathlib.Path, recipe: Recipe) -> None:
    """Train by the recipe and write the model directory `target`.

    package: the unpacked npm package emoji-datasource-google. Raises UserError for a value or a
    folder that cannot be used.
    """
    if recipe.epochs < 1 or not recipe.learning_rate > 0:
        raise UserError("--epochs and --learning-rate must be positive.")
    emoji = read_emoji(package, "google")
    if not 2 <= recipe.batch_size <= len(emoji):
        raise UserError(
            f"--batch-size must lie between 2 and the number of drawings, {len(emoji)}."
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise UserError(f"{target} cannot be made ({reason}).") from reason

    config = tiny_config(write_vocabulary(target))
    tokenizer = load_tokenizer(epath.Path(target), config.vocab_size)
    corpus = make_corpus(emoji, tokenizer)
    print(f"{len(emoji)} drawings, {corpus.fits.shape[1]} phrases, {config.vocab_size} tokens")

    def write(params: Params, epoch: int, loss: float) -> None:
        card = model_card(config, len(emoji), recipe, epoch, loss)
        write_model(target, params, config, card)
        print(f"wrote {target}", flush=True)

    train(corpus, config, tokenizer.start, recipe, write)


if __name__ == "__main__":
    main()
