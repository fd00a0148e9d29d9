"""Results of runs that were never made, and the tables that are made of them."""

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
    **more,
):
    """A results.json; accuracy in percent."""
    trained_on = (
        None if method == "zeroshot" else dict(zip(("dataset", "classes"), trained, strict=True))
    )
    results = {
        "method": method,
        "dataset": dataset,
        "classes": classes,
        "shots": shots,
        "seed": seed,
        "n": 50,
        "accuracy": accuracy / 100,
        "macro_f1": accuracy / 200,
        "trained_on": trained_on,
        "per_class": {},
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))


def rows_of(text):
    """The cells of every table row."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
