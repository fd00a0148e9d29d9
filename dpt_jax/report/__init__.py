"""Tables, figures and pages of finished runs.

`frame` reads results into a DataFrame. `runs` reports on a folder of runs, `one_run` on a single
run.
"""
