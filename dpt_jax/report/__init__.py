"""Tables, figures and pages of finished runs.

Import `runs` (over many), `one_run`, `page`, `tables` and `heat_maps`.
"""
