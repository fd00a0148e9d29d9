"""What a host knows of its devices and its memory."""

import pytest

from dpt_jax import distributed

UNLIMITED_V1 = 9223372036854771712


def machine(root, cgroup, **limits):
    """A file system with the control group of this process, and the limits of groups by path."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [
        ("0::/\n", {"memory.max": 1 << 20}),
        ("0::/job/step\n", {"job/memory.max": 1 << 20, "job/step/memory.max": "max"}),
        # The group as the machine sees it, of which the container has only the top.
        ("0::/docker/0123\n", {"memory.max": 1 << 20}),
        (
            "5:cpu,cpuacct:/job\n4:memory:/job\n",
            {
                "memory/memory.limit_in_bytes": UNLIMITED_V1,
                "memory/job/memory.limit_in_bytes": 1 << 20,
            },
        ),
    ],
)
def test_the_limit_of_a_container_is_its_memory(cgroup, limits, tmp_path):
    assert distributed.host_memory(machine(tmp_path, cgroup, **limits)) == 1 << 20


@pytest.mark.parametrize("cgroup", ["0::/\n", "4:memory:/\n"])
def test_without_a_limit_it_is_the_memory_of_the_machine(cgroup, tmp_path):
    root = machine(
        tmp_path,
        cgroup,
        **{"memory.max": "max", "memory/memory.limit_in_bytes": UNLIMITED_V1},
    )
    assert (
        distributed.host_memory(root)
        == distributed.host_memory(tmp_path / "nothing here")
        > 1 << 27
    )
