"""The datasets of the paper, each described once, beside the function that reads its raw download.

The catalogue puts them in the paper's order; nothing else needs to import from here.
"""
