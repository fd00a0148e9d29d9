"""Recipes that make the bundled datasets and the tiny CLIP."""
