"""Random views of the drawings: what differs between two hands that draw the same thing.

Shapes: B images, S their side in pixels, C channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dpt_jax.clip.preprocessing import MEAN, STD


def augment(key: jax.Array, drawings: jax.Array) -> jax.Array:
    """Return random views of drawings (B, S, S, 4) uint8, as normalised pixels (B, S, S, 3).

    Each is placed, turned, flipped, recoloured and blurred at random, and put on white or
    on a colour.
    """
    place, recolour, soften, ground = jax.random.split(key, 4)
    x = random_placement(place, drawings.astype(jnp.float32) / 255)
    rgb, alpha = random_colours(recolour, x[..., :3], x[..., 3:]), x[..., 3:]

    on_white, colour = jax.random.split(ground)
    coloured = jax.random.bernoulli(on_white, 0.25, (len(x), 1, 1, 1))
    background = jnp.where(coloured, jax.random.uniform(colour, (len(x), 1, 1, 3)), 1.0)
    pixels = rgb + (1 - alpha) * background

    amount = jnp.maximum(jax.random.uniform(soften, (len(x), 1, 1, 1), minval=-1.0), 0.0)
    padded = jnp.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = (
        jax.lax.reduce_window(padded, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "VALID") / 9
    )
    pixels = pixels + amount * (blurred - pixels)
    return (pixels - jnp.array(MEAN)) / jnp.array(STD)


def random_placement(key: jax.Array, x: jax.Array) -> jax.Array:
    """Crop or shrink, move, turn and mirror each of x (B, S, S, C); transparent outside."""
    count, size = x.shape[:2]
    zoom, aspect, turn, mirror, move = jax.random.split(key, 5)
    # Side of the view in units of the drawing's, and its shape.
    side = jnp.exp(jax.random.uniform(zoom, (count,), minval=np.log(0.55), maxval=np.log(1.2)))
    stretch = jnp.exp(jax.random.uniform(aspect, (count,), minval=-0.15, maxval=0.15))
    angle = jax.random.uniform(turn, (count,), minval=-0.3, maxval=0.3)
    flip = jnp.where(jax.random.bernoulli(mirror, shape=(count,)), 1.0, -1.0)
    # A view may leave the drawing by a tenth, or end anywhere inside it.
    reach = jnp.abs(1 - side) + 0.1
    offset = reach[:, None] * jax.random.uniform(move, (count, 2), minval=-1.0)

    steps = (jnp.arange(size) + 0.5) / size * 2 - 1
    v, u = jnp.meshgrid(steps, steps, indexing="ij")

    def view(drawing: jax.Array, *draw: jax.Array) -> jax.Array:
        side, stretch, angle, flip, offset = draw
        across, down = u * side * stretch * flip, v * side / stretch
        column = across * jnp.cos(angle) - down * jnp.sin(angle) + offset[0]
        row = across * jnp.sin(angle) + down * jnp.cos(angle) + offset[1]
        return bilinear(drawing, (row + 1) * size / 2 - 0.5, (column + 1) * size / 2 - 0.5)

    return jax.vmap(view)(x, side, stretch, angle, flip, offset)


def bilinear(x: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Return x (H, W, C) at fractional positions (h, w), zero outside: (h, w, C)."""
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    row, column = (
        jnp.clip(p + 1, 0, n + 0.999) for p, n in ((row, x.shape[0]), (column, x.shape[1]))
    )
    top, left = (jnp.floor(p).astype(jnp.int32) for p in (row, column))
    y, z = (row - top)[..., None], (column - left)[..., None]
    upper = padded[top, left] * (1 - z) + padded[top, left + 1] * z
    lower = padded[top + 1, left] * (1 - z) + padded[top + 1, left + 1] * z
    return upper * (1 - y) + lower * y


def random_colours(key: jax.Array, rgb: jax.Array, alpha: jax.Array) -> jax.Array:
    """Change hue, saturation, contrast, brightness of rgb (B, S, S, 3), multiplied by alpha."""
    count = len(rgb)
    hue, colourful, grey, contrast, brightness = jax.random.split(key, 5)
    angle = 2 * np.pi * jax.random.uniform(hue, (count,), minval=-0.08, maxval=0.08)
    saturation = jax.random.uniform(colourful, (count,), minval=0.5, maxval=1.6)
    saturation = jnp.where(jax.random.bernoulli(grey, 0.05, (count,)), 0.0, saturation)
    # In YIQ, hue is the angle and saturation the length of the two colour axes.
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cos, sin = saturation * jnp.cos(angle), saturation * jnp.sin(angle)
    zero, one = jnp.zeros(count), jnp.ones(count)
    change = jnp.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=-1).reshape(
        count, 3, 3
    )
    matrix = jnp.asarray(np.linalg.inv(to_yiq)) @ change @ jnp.asarray(to_yiq)
    gain = jax.random.uniform(contrast, (count, 1, 1, 1), minval=0.65, maxval=1.35)
    shift = jax.random.uniform(brightness, (count, 1, 1, 1), minval=-0.2, maxval=0.2)
    changed = jnp.einsum("bhwc,bdc->bhwd", rgb, matrix)
    return jnp.clip(gain * changed + (0.5 * (1 - gain) + shift) * alpha, 0.0, alpha)
