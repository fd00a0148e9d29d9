"""Files of a run: checkpoints, prompt files, and the published code's checkpoints.

Import `checkpoints`, `prompt_file` and `published`; nothing here knows of settings.
"""
