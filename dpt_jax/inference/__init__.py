"""Prompts on their CLIP: what both training and evaluation start from, and what answers.

Import `experiment`, `evaluation`, `results`, `predictor`, `program`, `attention` and `words`.
"""
