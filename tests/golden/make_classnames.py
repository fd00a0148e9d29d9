"""Write tests/golden/classnames.json, the published class names to compare TFDS's labels with.

    python tests/golden/make_classnames.py CAFO SPLIT_ZHOU_CALTECH101

CAFO is a checkout of github.com/OpenGVLab/CaFo, which works on CoOp's splits and
whose files gpt_file/*_prompt.json have their class names as keys;
SPLIT_ZHOU_CALTECH101 is the published split file. Most of these keys are in
label order; where they are not, names are compared regardless of order.
"""

import json
import pathlib
import sys

ORDERED = ("oxford_pets", "food101", "sun397", "dtd", "eurosat", "ucf101")
UNORDERED = ("stanford_cars", "oxford_flowers")


def main(cafo: str, split: str) -> None:
    golden = {}
    for name in (*ORDERED, *UNORDERED):
        keys = json.loads((pathlib.Path(cafo) / "gpt_file" / f"{name}_prompt.json").read_text())
        classnames = [key.replace("_", " ") for key in keys]
        golden[name] = {"ordered": name in ORDERED, "classnames": classnames}
    lists = json.loads(pathlib.Path(split).read_text())
    name_of = {label: classname for part in lists.values() for _, label, classname in part}
    classnames = [name_of[label].replace("_", " ") for label in range(len(name_of))]
    golden["caltech101"] = {"ordered": True, "classnames": classnames}
    target = pathlib.Path(__file__).parent / "classnames.json"
    target.write_text(json.dumps(golden, indent=0) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
