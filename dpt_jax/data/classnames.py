"""From the names that datasets come with to the class names of the published work.

Zero-shot accuracy is off by points with others.
"""

import re

CALTECH101_IGNORED = ("BACKGROUND_Google", "Faces_easy")
CALTECH101_RENAMED = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}

EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}


def cars(name: str) -> str:
    """The year first: "Audi TTS Coupe 2012" -> "2012 Audi TTS Coupe"."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}" if model else year


def sun397(path: str) -> str:
    """Without the first letter's folder, reversed: "c/church/outdoor" -> "outdoor church"."""
    return " ".join(reversed(path.strip("/").split("/")[1:]))


def ucf101(action: str) -> str:
    """A word for each capital: "ApplyEyeMakeup" -> "Apply_Eye_Makeup"."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))
