"""main.py with locks that lapse soon, and a patience with the store of PATIENCE seconds.

One attempt takes as long as in main.py, or ATTEMPT seconds.
"""

import os
import runpy

from dpt_jax.runtime import object_store, store_errors
from dpt_jax.storage import bucket_lock

bucket_lock.REFRESH_SECONDS, bucket_lock.SILENT_SECONDS, bucket_lock.LOOK_SECONDS = 0.3, 2, 0.1
store_errors.PATIENCE_SECONDS = float(os.environ["PATIENCE"])
if "ATTEMPT" in os.environ:
    object_store.ATTEMPT_SECONDS = float(os.environ["ATTEMPT"])
runpy.run_path("main.py", run_name="__main__")
