"""Recipes that make the bundled assets and the pictures of the docs, and what runs the notebook."""
