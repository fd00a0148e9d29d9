"""Results of imaginary runs, and the tables made of them."""

import json

CALIBRATION = {"ece": 0.1, "bins": [{"images": 50, "confidence": 0.6, "accuracy": 0.5}]}
RESULTS = {"classes": "all", "shots": 1, "seed": 1, "selection": "none", "task": "", "n": 50,
           "unreadable": 0, "parameters": None, "per_class": {}, "zero_shot_accuracy": 0.3,
           "calibration": CALIBRATION, "zero_shot_calibration": CALIBRATION}  # fmt: skip


def write(folder, method, accuracy, *, dataset="dtd", trained="", of=None, **more):
    """A results.json of prompts of this dataset, or of `trained`; accuracy in percent."""
    trained = None if method == "zeroshot" else trained or dataset
    half = "all" if more.get("classes", "all") == "all" else "base"
    results = {
        **RESULTS,
        "method": method,
        "dataset": dataset,
        **dict.fromkeys(("accuracy", "balanced_accuracy"), accuracy / 100),
        "macro_f1": accuracy / 200,
        "trained_on": trained and {"dataset": trained, "classes": half},
        "of": of or origin(dataset, trained),
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))


def write_seeds(folder, method, accuracies, dataset="dtd", **more):
    """The same for seeds 1, 2 and so on."""
    for seed, accuracy in enumerate(accuracies, 1):
        name = f"{method}-{dataset}-{more.get('classes')}-{seed}"
        write(folder / name, method, accuracy, dataset=dataset, seed=seed, **more)


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
