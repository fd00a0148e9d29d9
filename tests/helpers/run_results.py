"""Results of imaginary runs, and the tables made of them."""

import json


def write(
    folder,
    method,
    accuracy,
    *,
    dataset="dtd",
    shots=1,
    seed=1,
    classes="all",
    trained=("dtd", "all"),
    of=None,
    **more,
):
    """A results.json; accuracy in percent."""
    trained_on = dict(zip(("dataset", "classes"), trained, strict=True))
    calibration = {"ece": 0.1, "bins": [{"images": 50, "confidence": 0.6, "accuracy": 0.5}]}
    results = {
        "method": method,
        "dataset": dataset,
        "classes": classes,
        "shots": shots,
        "seed": seed,
        "selection": "none",
        "task": "",
        "parameters": None,
        "n": 50,
        "unreadable": 0,
        "accuracy": accuracy / 100,
        "balanced_accuracy": accuracy / 100,
        "macro_f1": accuracy / 200,
        "zero_shot_accuracy": 0.3,
        "calibration": calibration,
        "zero_shot_calibration": calibration,
        "trained_on": None if method == "zeroshot" else trained_on,
        "per_class": {},
        "of": of or origin(dataset, None if method == "zeroshot" else trained[0]),
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))


def origin(name, trained_on, **more):
    """The origin that results record. A dataset has its name as digest."""
    return {
        "step": 1,
        "epoch": None,
        "epochs": None,
        "prompts": "p",
        "backbone": "b" * 16,
        "template": "a photo of a {}.",
        "test_list": name,
        "data": {"name": name, "digest": name},
        "trained_on": trained_on and {"name": trained_on, "digest": trained_on},
        "train_list": "t",
        "init_from": False,
        "settings": {},
        **more,
    }


def rows_of(text):
    """The cells of every table row."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
