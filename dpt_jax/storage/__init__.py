"""Files of a run: checkpoints, prompt files, the published code's; and CLIP's weights in a bucket.

Import `checkpoints`, `prompt_file`, `published` and `weights`; nothing here knows of settings.
"""
