"""main.py with locks that lapse soon, and a patience with the store of PATIENCE seconds."""

import os
import runpy

from dpt_jax.runtime import store_errors
from dpt_jax.storage import bucket_lock

bucket_lock.REFRESH_SECONDS, bucket_lock.SILENT_SECONDS, bucket_lock.LOOK_SECONDS = 0.3, 2, 0.1
store_errors.PATIENCE_SECONDS = float(os.environ["PATIENCE"])
runpy.run_path("main.py", run_name="__main__")
