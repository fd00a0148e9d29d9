"""A notebook's cells without a kernel: its commands run in this process."""

import ast
import contextlib
import io
import pathlib
import shlex
import subprocess

from tests.helpers.commands import in_process

OWN = ("python main.py ", "python -m dpt_jax ")


def run_cells(notebook) -> list[tuple[str, bool]]:
    """Run the code cells of a notebook in the current folder, as one kernel would.

    Return for each what it prints, and whether it shows a picture. Commands of this package run as
    `in_process` runs them, all others of a `%%bash` cell in bash.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (bash(source), False) if source.startswith("%%bash\n") else python(source, names)
        for source in sources
    ]


def bash(source: str) -> str:
    """Run the lines of a %%bash cell; return what they print."""
    lines = source.removeprefix("%%bash\n").replace("\\\n", " ").splitlines()
    return "".join(map(line, lines))


def line(command: str) -> str:
    """Run one line, which may go through a pipe; return what it prints."""
    first, *piped = command.split("|", maxsplit=1)
    if not first.startswith(OWN):
        return shell(command)
    printed = in_process(*shlex.split(first)[1:], cwd=pathlib.Path.cwd()).stdout
    return shell(*piped, given=printed) if piped else printed


def shell(command: str, given: str = "") -> str:
    done = subprocess.run(
        ["bash", "-c", command], input=given, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def python(source: str, names: dict[str, object]) -> tuple[str, bool]:
    """Run a cell of Python; return what it prints, and whether its last line is a picture."""
    parsed, printed = ast.parse(source), io.StringIO()
    last = parsed.body.pop() if isinstance(parsed.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(parsed, "<cell>", "exec"), names)
        shown = last and eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return printed.getvalue(), hasattr(shown, "_repr_png_")
