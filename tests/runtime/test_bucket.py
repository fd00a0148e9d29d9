"""Paths in a bucket, asked of a real object store; and what is said where it does not answer."""

import http.server
import pathlib
import pickle
import sys
import threading

import pytest

from dpt_jax.errors import UserError
from dpt_jax.io import as_path, entries, listed_once, write_whole
from dpt_jax.runtime import object_store, store_errors
from dpt_jax.runtime.bucket import Entry


@pytest.fixture
def folder(bucket):
    """A folder of a bucket with two files in it and one below."""
    path = as_path(f"{bucket}/data")
    for name in ("a.txt", "b/c.csv", "ab.txt"):
        (path / name).write_bytes(name.encode())
    return path


def requests_of(store, do):
    """How many requests it takes, and what it returns."""
    before = len(store.requests())
    done = do()
    return len(store.requests()) - before, done


def test_a_path_is_used_as_a_local_one(folder, bucket):
    assert str(folder / "a.txt") == f"{bucket}/data/a.txt"
    assert pickle.loads(pickle.dumps(folder / "b")) == as_path(f"{bucket}/data/b/")
    assert (folder / "b" / "c.csv").relative_to(folder).as_posix() == "b/c.csv"
    assert [(folder / name).exists() for name in ("a.txt", "b", "a", "b/c", "")] == [
        *(True, True, False, False, True)
    ]
    assert [(folder / name).is_dir() for name in ("a.txt", "b", "a")] == [False, True, False]
    assert sorted(entries(folder)) == [Entry("a.txt", False), Entry("ab.txt", False),
                                       Entry("b", True)]  # fmt: skip
    assert list(folder.glob("a*.txt")) == [folder / "a.txt", folder / "ab.txt"]
    assert list(folder.glob("*/*.csv")) == list(folder.rglob("*.csv")) == [folder / "b/c.csv"]
    with (folder / "new.csv").open("w", newline="", errors="backslashreplace") as file:
        file.write("ä\r\n\udcff")
    assert (folder / "new.csv").read_bytes() == "ä\r\n\\udcff".encode()
    with (folder / "new.csv").open("rb") as file:
        assert file.read(2) == "ä".encode()
    (folder / "new.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"data/new\.csv is not there"):
        (folder / "new.csv").read_text()
    with pytest.raises(ValueError, match="mode 'a'"):
        (folder / "a.txt").open("a")


def test_names_that_a_bucket_may_have(bucket):
    for name in ("ü ?#%.txt", "[a]*.txt", "a+b&c=d.txt"):
        (as_path(bucket) / name).write_text(name)
        assert (as_path(bucket) / name).read_text() == name
    assert {name for name, _ in entries(as_path(bucket))} == {
        "ü ?#%.txt", "[a]*.txt", "a+b&c=d.txt"
    }  # fmt: skip


def test_what_a_question_costs(folder, store):
    assert requests_of(store, (folder / "a.txt").read_bytes) == (1, b"a.txt")
    assert requests_of(store, lambda: write_whole(folder / "a.txt", b"new"))[0] == 1
    assert requests_of(store, (folder / "a.txt").is_file) == (1, True)
    assert requests_of(store, (folder / "b").is_dir) == (1, True)
    assert requests_of(store, (folder / "b").exists) == (2, True)
    with listed_once(folder):
        questions = [
            (folder / name).exists() for name in ("a.txt", "b", "b/c.csv", "none", "b/none")
        ]
        asked, listed = requests_of(store, lambda: [*entries(folder), *entries(folder / "b")])
    assert questions == [True, True, True, False, False]
    assert (asked, len(listed)) == (0, 4)


def test_an_object_of_several_parts(bucket, monkeypatch):
    """What is larger than 16 MiB is written and read in parts."""
    content = bytes(range(256)) * 80_000
    (as_path(bucket) / "large").write_bytes(content)
    assert (as_path(bucket) / "large").read_bytes() == content


@pytest.mark.parametrize("text", ["gs://", "gs:///x"])
def test_a_name_without_a_bucket(text):
    with pytest.raises(UserError, match="names no bucket"):
        as_path(text)


@pytest.mark.parametrize("text", ["gs:/bucket/x", "gs:bucket/x", pathlib.Path("gs://bucket/x")])
def test_a_slash_less_names_no_folder_of_this_disk(text):
    """Where a run would be lost with its machine."""
    with pytest.raises(UserError, match="two slashes: write gs://bucket/x"):
        as_path(text)


def test_a_bucket_that_is_not_there(store):
    for do in (as_path("gs://nobody-has-this/x").exists,
               lambda: as_path("gs://nobody-has-this/x").write_bytes(b"")):  # fmt: skip
        with pytest.raises(UserError, match="there is no bucket gs://nobody-has-this: make it"):
            do()


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives the answers of its list, one after the other, and then the last one."""

    answers: list[tuple[int, str]]

    def do_GET(self):
        code, message = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        content = b"content" if code == 200 else b'{"error": {"code": %d, "message": "%s"}}' % (
            code, message.encode()
        )  # fmt: skip
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def answering(monkeypatch):
    """A server that gives these answers takes the store's place."""
    servers = []

    def start(*answers):
        handler = type("Handler", (Answers,), {"answers": list(answers)})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "message", "says"),
    [
        (401, "Anonymous caller does not have storage.objects.get access", "asks for credentials"),
        (403, "robot@x does not have storage.objects.get access", "no permission"),
        (400, "The project is gone", "refuses the request"),
    ],
)
def test_a_refusal_is_one_sentence(answering, code, message, says):
    answering((code, message))
    with pytest.raises(UserError, match=says) as found:
        as_path("gs://bucket/x").read_bytes()
    assert "gs://bucket" in str(found.value)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


def test_a_store_that_fails_for_a_moment(answering, monkeypatch, capsys):
    """The answers of a store that is overloaded are waited out, and told."""
    monkeypatch.setattr(store_errors.time, "sleep", lambda seconds: None)
    answering((200, ""), (503, "busy"), (429, "too many"), (500, "broken"), (200, ""))
    path = as_path("gs://bucket-of-moments/x")
    assert path.read_bytes() == b"content"
    assert path.read_bytes() == b"content"
    told = capsys.readouterr().err
    assert told.count("the store fails") == 1
    assert "trying again for up to 180 s" in told


def test_a_store_that_is_gone(monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setattr(store_errors, "FIRST_PATIENCE_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"gs://gone/x cannot be reached .* the network"):
        as_path("gs://gone/x").is_file()


@pytest.fixture
def impatient(monkeypatch):
    """Attempts that are given up soon."""
    for name, seconds in {"SILENCE": 0.3, "ATTEMPT": 0.6}.items():
        monkeypatch.setattr(object_store, f"{name}_SECONDS", seconds)
    object_store._store.cache_clear()
    yield
    object_store._store.cache_clear()


LARGE = bytes(10 * 2**20)  # more than the system takes from a process before the store reads it


def test_a_store_that_hangs_for_good(store, folder, impatient, monkeypatch):
    """It takes connections and answers nothing, also in the middle of an upload: one sentence."""
    monkeypatch.setattr(store_errors, "PATIENCE_SECONDS", 0.2)
    asked = (
        (folder / "a.txt").read_bytes,
        lambda: (folder / "a.txt").write_bytes(b""),
        lambda: (folder / "a.txt").write_bytes(LARGE),
        lambda: list(entries(folder)),
    )
    with store.hanging():
        for ask in asked:
            with pytest.raises(UserError, match=r"cannot be reached \(it does not answer\), tried"):
                ask()


def test_a_store_that_hangs_for_a_while(store, folder, impatient, capsys):
    with store.hanging() as go_on:
        threading.Timer(1.0, go_on).start()
        (folder / "a.txt").write_bytes(LARGE)
    assert (folder / "a.txt").read_bytes() == LARGE
    assert "the store fails (it does not answer); trying again" in capsys.readouterr().err


def test_without_gcsfs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    object_store._store.cache_clear()
    with pytest.raises(UserError, match="gs:// paths need gcsfs"):
        as_path("gs://bucket/x").is_file()
