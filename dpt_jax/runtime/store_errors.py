"""What a request to an object store may end in: again in a moment, or one sentence."""

import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from dpt_jax.errors import UserError

# How long requests are repeated: to a bucket that has answered before, and to one that has not.
PATIENCE_SECONDS = 180.0
FIRST_PATIENCE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 20.0
ROLE = "the role Storage Object User (roles/storage.objectUser)"

T = TypeVar("T")
_answered: set[str] = set()  # buckets that have answered this process
_failing: set[str] = set()  # buckets of which it has been told that they fail


class StoreError(UserError, OSError):
    """What a store refuses, or does not answer; also an OSError, as a disk would raise."""


def has_answered(bucket: str) -> bool:
    """Return whether a bucket is known to be there."""
    return bucket in _answered


def patiently(
    request: Callable[[], T], bucket: str, path: str, of_bucket: bool, patience: float | None
) -> T:
    """Return what a request returns, repeated with growing pauses while the store fails.

    path: names the request in sentences. of_bucket: whether a 404 says that there is no such
    bucket, and not that there is no such object. patience: seconds for which it is repeated, None
    for the usual time. Raise StoreError, FileNotFoundError for an object that is not there, and
    FileExistsError for one that is of another generation than wanted.
    """
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            answer = request()
            _answered.add(bucket)
            _failing.discard(bucket)
            return answer
        except FileExistsError:  # how gcsfs says 412
            raise
        except FileNotFoundError as reason:
            if of_bucket:
                raise StoreError(
                    f"{path}: there is no bucket gs://{bucket}: make it with `gcloud storage "
                    f"buckets create gs://{bucket}`, or name another."
                ) from reason
            raise FileNotFoundError(f"{path} is not there") from reason
        except Exception as reason:
            if patience is None:
                patience = PATIENCE_SECONDS if bucket in _answered else FIRST_PATIENCE_SECONDS
            waited = time.monotonic() - began
            if not _may_pass(reason):
                raise StoreError(_refusal(reason, bucket, path)) from reason
            if waited + pause > patience:
                raise StoreError(
                    f"{path} cannot be reached ({_short(reason)}), tried for {waited:.0f} s: check "
                    "the network and the store."
                ) from reason
            if patience == PATIENCE_SECONDS and bucket not in _failing:
                _failing.add(bucket)
                print(
                    f"{path}: the store fails ({_short(reason)}); trying again for up to "
                    f"{patience:.0f} s.",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(pause * random.uniform(0.7, 1.3))  # hosts that failed together part
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _may_pass(reason: Exception) -> bool:
    """Return whether the same request may succeed later."""
    from gcsfs.retry import is_retriable

    return is_retriable(reason) or isinstance(reason, TimeoutError | ConnectionError)


def _refusal(reason: Exception, bucket: str, path: str) -> str:
    """Return the sentence for a request that would be refused again."""
    if getattr(reason, "code", None) in (401, "401"):
        return (
            f"{path}: the store asks for credentials ({_short(reason)}): run `gcloud auth "
            "application-default login`, or start the machine with a service account that has "
            f"{ROLE} on gs://{bucket}."
        )
    if isinstance(reason, OSError) and str(reason).startswith("Forbidden"):
        return (
            f"{path}: no permission ({_short(reason).removeprefix('Forbidden: ')}): give this "
            f"account {ROLE} on gs://{bucket}."
        )
    return f"{path}: the store refuses the request ({type(reason).__name__}: {_short(reason)})."


def _short(reason: Exception) -> str:
    if isinstance(reason, TimeoutError):  # of which fsspec keeps no words
        return "it does not answer"
    return " ".join(str(reason).split())[:200] or type(reason).__name__
