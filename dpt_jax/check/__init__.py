"""The table of `dpt-jax check`: this machine, its hosts and storage, its numbers and its speed."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import math
import os
import pathlib
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tabulate
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from dpt_jax import distributed
from dpt_jax.check import measure
from dpt_jax.clip.blocks import Params
from dpt_jax.clip.config import CLIPConfig, TransformerConfig
from dpt_jax.clip.files import OPENAI, params_of, tensors_of
from dpt_jax.clip.model import param_shapes
from dpt_jax.clip.packing import pack
from dpt_jax.clip.pretrained import Pretrained, load_clip
from dpt_jax.clip.tokenizer import openai_tokenizer
from dpt_jax.config import method_config
from dpt_jax.convert.reference import prompts_from_published
from dpt_jax.data import loader
from dpt_jax.data.catalogue import imagenet_classnames
from dpt_jax.data.folder import find_images
from dpt_jax.data.records import Dataset, Files, free_memory
from dpt_jax.io import ASSETS, as_path, entries, file_system, is_remote, make_folder, short
from dpt_jax.logging import say
from dpt_jax.model import PromptedCLIP, Texts, apply
from dpt_jax.prompts import PromptConfig, Prompts
from dpt_jax.prompts.text import plain_layout, prompted_texts
from dpt_jax.training.checkpoints import Checkpoints, digest, load_newest
from dpt_jax.training.loop import train
from dpt_jax.training.metrics import count_operations, peak_rate
from dpt_jax.training.setup import assemble, compute_dtype, prepare
from dpt_jax.training.state import Stopped
from dpt_jax.training.step import StepConfig, accumulate_gradients
from dpt_jax.training.workdir import is_locked, locked

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "dpt-jax")
DRIVER = pathlib.Path("/proc/driver/nvidia/version")
# Variables and options of JAX that change what a step computes.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision")
GB = 1e9
# A case computed by DPT's published code in float32: logits, loss and gradients.
GOLDEN_CLIP = CLIPConfig(
    64, 32, 8, TransformerConfig(128, 4, 2, 512), TransformerConfig(128, 3, 2, 512)
)
GOLDEN_CLASSES = ("airplane", "sea horse", "dollar bill", "grand piano", "water lilly", "yin yang")
GOLDEN_PROMPTS = PromptConfig(
    len(GOLDEN_CLASSES), text_length=4, visual_length=3, top_k=3, first_layer=4
)
# Errors relative to the largest logit, the loss, and each gradient's norm.
BOUNDS = {
    "float32": {"logits": 1e-4, "loss": 1e-5, "gradient": 1e-3},
    "bfloat16": {"logits": 5e-2, "loss": 5e-2, "gradient": 1e-1},
}


@dataclasses.dataclass
class Row:
    """One line: what was measured, its value and unit, a bound, and whether the bound holds."""

    group: str
    name: str
    figure: str
    bound: str = ""
    ok: bool | None = None  # None without a bound


@contextlib.contextmanager
def timed(rows: list[Row], group: str, name: str, bound: str) -> Iterator[Row]:
    """Add a row with the seconds of the body, which may set `ok`; not ok if the body raises."""
    row, began = Row(group, name, "", bound, True), time.perf_counter()
    rows.append(row)
    try:
        yield row
        row.figure = f"{time.perf_counter() - began:.2f} s"
    except Exception as reason:  # of any library
        row.figure, row.ok = f"{type(reason).__name__}: {short(reason)}", False


def table(rows: Sequence[Row]) -> str:
    """Return the lines in columns, with a last line that counts the failures."""
    status = {True: "ok", False: "NOT OK", None: "-"}
    cells = [(row.group, row.name, row.figure, row.bound, status[row.ok]) for row in rows]
    headers = ("", "", "figure", "bound", "")
    lines = tabulate.tabulate(cells, headers, tablefmt="plain", disable_numparse=True)
    failed = [f"{row.group}: {row.name}" for row in rows if row.ok is False]
    end = f"{len(failed)} not ok: {'; '.join(failed)}" if failed else "all ok"
    return f"{lines}\n\n{end}"


def check(workdir: epath.Path, clip: str, data: str = "", quick: bool = False) -> list[Row]:
    """Return all lines of the table, see `dpt-jax check --help`.  All hosts call this together.

    clip: One of measure.SIZES with random weights, or a `clip.weights`. data: "" for generated
    JPEGs.
    """
    # First, since a wrong name is not a fault of the machine.
    dtype = compute_dtype(method_config("dpt"))
    random_weights = clip in measure.SIZES
    pretrained = measure.random_clip(clip, dtype) if random_weights else load_clip(clip, dtype)
    rows = machine()
    parts = {
        "hosts": lambda: hosts({"--clip": clip, "--quick": str(quick)}),
        "storage": lambda: storage(workdir),
        "numbers": numbers,
        "same bits": same_bits,
        "speed": lambda: speed(clip, pretrained, data, quick),
    }
    for group, part in parts.items():
        say(f"checking {group} …", file=sys.stderr)
        with timed(rows, group, "in all", "no error"):
            rows += part()
    return rows


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that is installed."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> list[Row]:
    """Return the first lines of the table: devices, hosts, memory and versions."""
    device = jax.local_devices()[0]
    facts = {
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "hosts": str(jax.process_count()),
        "cores": str(os.cpu_count()),
        "memory": f"{free_memory() / GB:.1f} GB free",
    }
    if stats := device.memory_stats():
        facts["memory of a device"] = f"{stats['bytes_limit'] / GB:.1f} GB"
    if DRIVER.exists():
        facts["driver"] = DRIVER.read_text().split("  ")[1]
    return [Row("machine", name, figure) for name, figure in (facts | versions()).items()]


def hosts(settings: Mapping[str, str]) -> list[Row]:
    """Compare versions and settings of all hosts and of their command; sum over devices."""
    rows: list[Row] = []
    own = {**versions(), **settings}
    own |= {name: os.environ.get(name, "") for name in VARIABLES}
    own |= {name: str(jax.config.values[name]) for name in OPTIONS}
    with timed(rows, "hosts", f"{len(own)} versions and settings", "the same"):
        distributed.check_same(lambda: own)
    with timed(rows, "hosts", "sum over devices", str(jax.device_count())) as row:
        add = jax.pmap(lambda x: jax.lax.psum(x, distributed.AXIS), distributed.AXIS)
        found = distributed.to_host(add(jnp.ones(jax.local_device_count())))
        row.ok = int(found) == jax.device_count()
    return rows


def storage(workdir: epath.Path) -> list[Row]:
    """Write, read, list, lock, save and delete in a new folder of a workdir, with times.

    All hosts use host 0's folder, with separate files.
    """
    number = distributed.sum_over_hosts(random.getrandbits(30) if distributed.is_first() else 0)
    folder, rows = workdir / f"check-{number:08x}", list[Row]()
    step = functools.partial(timed, rows, "storage")
    with step("write and read 1 MB", f"in {workdir}") as row:
        make_folder(folder, "--workdir")
        file, content = folder / f"file-{jax.process_index()}", os.urandom(2**20)
        file.write_bytes(content)
        row.ok = file.read_bytes() == content
    if not distributed.on_all_hosts(bool(row.ok)):  # nothing else can work
        return rows
    with step("list", "the files of all hosts") as row:
        every = {f"file-{i}" for i in range(jax.process_count())}
        row.ok = {name for name, _ in entries(folder)} >= every
    shared = distributed.on_all_hosts(bool(row.ok))
    if shared:  # as hosts lock, save and restore together
        with step("lock", "held once") as row, locked(folder):
            # Host 0 holds the lock until all have looked.
            row.ok = distributed.on_all_hosts(is_remote(folder) or is_locked(folder))
        with step("checkpoint", "the same bits") as row:
            tree = {"prompts": np.arange(1000, dtype=np.float32)}
            with Checkpoints(folder) as checkpoints:
                checkpoints.save(1, tree, {})
                checkpoints.wait()
                row.ok = load_newest(folder).digest == digest(tree)
        distributed.on_all_hosts(True)  # all have read it
    if distributed.is_first() or not shared:
        with step("delete", "nothing left") as row:
            if is_remote(folder):
                file_system(folder).rm(os.fspath(folder), recursive=True)
            else:
                shutil.rmtree(folder)
            row.ok = not folder.exists()
    return rows


def numbers() -> Iterator[Row]:
    """Compare the numbers of a batch on all devices of this host with the published code's."""
    devices = jax.local_devices()
    where = f"{len(devices)} devices" if len(devices) > 1 else str(devices[0])
    for dtype, bounds in BOUNDS.items():
        for name, error in golden_errors(dtype).items():
            bound = bounds[name.partition(" ")[0]]
            ok = bool(error <= bound)  # NaN is not ok
            yield Row("numbers", f"{name}, {dtype}, {where}", f"{error:.1e}", f"<= {bound:.0e}", ok)


def golden_errors(dtype: str) -> dict[str, float]:
    """Return the relative errors of logits, loss and gradients, with all images on each device."""
    golden, tokenizer = golden_arrays(), openai_tokenizer()
    model = PromptedCLIP(GOLDEN_CLIP, GOLDEN_PROMPTS, jnp.dtype(dtype))
    encoder = PromptedCLIP(GOLDEN_CLIP, PromptConfig(classes=1), jnp.dtype(dtype))
    packed = pack(prompted_texts(GOLDEN_CLASSES, tokenizer, GOLDEN_PROMPTS.text_length))
    plain = plain_layout([f"a photo of a {name}." for name in GOLDEN_CLASSES], tokenizer)

    def step(clip: Params, prompts: Prompts, batch: loader.Batch) -> Any:
        texts = Texts(packed, apply(encoder, clip, {}, plain, method="encode_text"))
        encoded = apply(model, clip, prompts, texts, method="texts")
        logits = apply(model, clip, prompts, batch["image"], encoded).logits
        sums = accumulate_gradients(
            model, StepConfig(alpha=0.3), prompts, clip, texts, batch, guided=True
        )
        return logits, *jax.lax.psum(sums, distributed.AXIS)

    labels = golden["label"].astype(np.int32)
    images = golden["image"].transpose(0, 2, 3, 1)
    batch = {"image": images, "label": labels, "weight": np.ones(len(labels), np.float32)}
    given = distributed.replicate((golden_params(), prompts_from_published(golden["param"]), batch))
    logits, *sums = jax.pmap(step, axis_name=distributed.AXIS)(*given)
    logits = np.asarray(logits)  # of each device
    gradient, totals = distributed.to_host(sums)
    loss = sum(x for name, x in totals.items() if name.startswith("loss_"))
    loss /= len(labels) * jax.device_count()
    gradients = flatten_dict(gradient, sep=".")
    expected = flatten_dict(prompts_from_published(golden["grad"]), sep=".")
    return {
        "logits": np.abs(logits - golden["logits"]).max() / np.abs(golden["logits"]).max(),
        "loss": abs(loss - golden["loss"]) / golden["loss"],
        **{
            f"gradient {name}": np.linalg.norm(gradients[name] - x) / np.linalg.norm(x)
            for name, x in expected.items()
        },
    }


def seeded(config: CLIPConfig, seed: int) -> dict[str, np.ndarray]:
    """Return OpenAI's tensors drawn from PCG64(seed) in order of name, scaled by kind."""
    generator = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        x = generator.standard_normal(shape, np.float32)
        if name == "logit_scale":
            x = np.float32(math.log(100.0)) + 0 * x
        elif "ln_" in name and name.endswith("weight"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.05 * x
        elif name == "token_embedding.weight":
            x = 0.3 * x
        elif name.endswith("_embedding"):
            x = 0.2 * x
        elif name == "visual.conv1.weight":
            x = x * math.prod(shape[1:]) ** -0.5
        else:
            x = x * shape[0 if name in ("text_projection", "visual.proj") else -1] ** -0.5
        return np.asarray(x, np.float32)

    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), param_shapes(config))
    tensors = tensors_of(zeros, config, OPENAI)
    return {name: draw(name, tensors[name].shape) for name in sorted(tensors)}


def golden_arrays() -> dict[str, Any]:
    """Return the published arrays: param and grad by module; image, label, logits and loss."""
    with (ASSETS / "golden_dpt.npz").open("rb") as opened:
        return unflatten_dict(dict(np.load(opened)), sep="/")


def golden_params() -> Params:
    """Return the weights of the CLIP that the arrays were computed with."""
    return params_of(seeded(GOLDEN_CLIP, seed=0), GOLDEN_CLIP, pathlib.Path("the golden CLIP"))


def same_bits() -> list[Row]:
    """Train twice on the bundled CLIP and digits, once stopped by SIGTERM and resumed."""
    if jax.process_count() > 1:  # the hosts would need a shared workdir
        return []
    config = method_config("dpt", "digits")
    config.clip.weights, config.dataset.shots, config.dtype = "tiny-clip", 1, "float32"
    config.train.epochs, config.train.batch_size = 3, 8

    def stop(values: dict[str, float]) -> None:
        if values["epoch"] == 1:
            signal.raise_signal(signal.SIGTERM)

    silent = io.StringIO()
    with (
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
        tempfile.TemporaryDirectory() as folder,
    ):
        experiment = prepare(config)
        whole, stopped = as_path(folder) / "whole", as_path(folder) / "stopped"
        train(experiment, whole)
        with contextlib.suppress(Stopped):
            train(experiment, stopped, callbacks=[stop])
        before, steps = load_newest(stopped).step, load_newest(whole).step
        train(experiment, stopped)
        same = load_newest(whole).digest == load_newest(stopped).digest and before < steps
    name = f"a run of {steps} steps, and one stopped at step {before} and resumed"
    return [Row("same bits", name, "identical" if same else "different", "identical", same)]


def speed(clip: str, pretrained: Pretrained, data: str, quick: bool) -> list[Row]:
    """Time a step of DPT on a CLIP, and the loading of the images that it needs."""
    classes, each = (10, 8) if quick else (100, 32)
    config = method_config("dpt", "imagenet")
    config.text_prompt.init = ""
    dtype = compute_dtype(config)
    names = tuple(imagenet_classnames()[:classes])
    dataset = Dataset(Files(as_path(".")), names, train=[], val=[], test=[])
    with contextlib.redirect_stdout(io.StringIO()):
        experiment = assemble(config, dataset, pretrained)
    devices = jax.local_device_count()
    batch = measure.random_batch(each, classes, pretrained.config.image_size)
    work = measure.training(experiment, batch)
    seconds_to_compile, memory = measure.compiled(work)
    _, seconds = measure.times(work.run, 2 if quick else 10)
    rate = devices * count_operations(work.program, *work.arguments) / seconds
    product = measure.product_rate(dtype, 2048 if quick else 8192)
    images = each * devices / seconds
    figures = {
        "compiling": f"{seconds_to_compile:.1f} s",
        "memory, by the compiler": f"{memory['together'] / GB:.2f} GB",
        "step": f"{1e3 * seconds:.1f} ms",
        "images/s": f"{images:.1f}",
        "TFLOP/s": f"{rate / 1e12:.3g}",
        "share of a matrix product": f"{rate / product:.0%} of {product / 1e12:.3g} TFLOP/s",
    }
    if peak := peak_rate(jax.devices()[0].device_kind):
        figures["share of chip peak"] = f"{rate / peak / devices:.0%} of {peak / 1e12:.0f} TFLOP/s"
    if stats := jax.local_devices()[0].memory_stats():
        figures["peak memory of a device"] = f"{stats['peak_bytes_in_use'] / GB:.2f} GB"
    if not quick:
        has = stats["bytes_limit"] if stats else free_memory()
        twice = measure.random_batch(2 * each, classes, pretrained.config.image_size)
        _, more = measure.compiled(measure.training(experiment, twice))
        each_takes = (more["together"] - memory["together"]) / each
        largest = each + int((has - memory["together"]) / each_takes)
        figures["largest batch of a device, by the compiler"] = f"{largest} images"
    what = f"DPT, {clip}, {classes} classes, {each} images per device, {jnp.dtype(dtype).name}"
    rows = [Row("speed", what, ""), *(Row("speed", *one) for one in figures.items())]
    return rows + _loading(data, images, quick)


def _loading(data: str, needed: float, quick: bool) -> list[Row]:
    """Load images from files and from memory, and compare their rate with that of a step."""
    with tempfile.TemporaryDirectory() as made:
        count = 4 * measure.BATCH if quick else 16 * measure.BATCH
        if not data:
            measure.write_jpegs(pathlib.Path(made), count)
        first, *later = measure.loading_rates(find_images([data or made])[:count], epochs=4)
    again, bound = statistics.median(later), f">= {needed:.0f} (the step)"
    return [
        Row("input", f"first epoch, {loader.threads()} threads", f"{first:.0f} images/s"),
        Row("input", "later epochs", f"{again:.0f} images/s", bound, again >= needed),
    ]
