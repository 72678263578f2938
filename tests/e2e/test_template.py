"""Templates and their clones, as a user meets them: `berth template` and `berth container clone`.

What a keeper does of itself is in test_container_clone.py."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import time

import pytest
from berth_host import BerthError, wait_for_exit
from oci_images import Image, directory, file, layer, symlink, write_layout
from test_container import LIMIT_S, ContainerHost, dial

SERVICE = "nc -ll -p 7 -e cat & i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done"
IDENTITY = ("hostname; cat /etc/machine-id; cat /sys/class/net/eth0/address; hostname -i; head -c 32 /dev/urandom | sha256sum; "
            "cat /proc/sys/kernel/random/uuid")


@pytest.fixture(scope="module")
def host():
    with ContainerHost() as made:
        yield made
        for each in made.json("container", "ps", "-a")["containers"]:
            remove(made, each["name"])
        for each in made.json("template", "list")["templates"]:
            made.cli("template", "delete", each["name"])


def create(host, name, *options, command=SERVICE, image="busybox:1", pool=0):
    """The template, as `template inspect` shows it."""
    made = host.cli("template", "create", name, "--image", image, "--pool", pool, *options, "--", "/bin/sh", "-c", command,
                    timeout_s=LIMIT_S)
    assert made == f"{name}\n"
    return host.json("template", "inspect", name)


def clone(host, *arguments):
    """Names of the clones."""
    return host.cli("container", "clone", *arguments, timeout_s=LIMIT_S).split()


def remove(host, *names):
    host.cli("container", "rm", "-f", *names, timeout_s=LIMIT_S)


def memory_of(host, shown):
    return host.memory_dir / shown["id"] / "ram"


def is_untouched(host, name):
    return host.json("template", "check", name)["untouched"]


@pytest.fixture(scope="module")
def web(host):
    return create(host, "web", "--ready", "tcp:7", "--warm", "echo warmed >/tmp/warm")


def test_a_template_is_ready_warm_and_no_container_any_more(host, web):
    assert web["ready"] == "tcp:7" and web["warm"] == ["echo warmed >/tmp/warm"]
    assert web["memory_bytes"] > 1 << 20 and web["device_bytes"] > 1000
    assert memory_of(host, web).stat().st_mode & 0o777 == 0o444
    assert host.json("container", "ps", "-a")["containers"] == []
    assert "web" in host.cli("template", "list") and is_untouched(host, "web")


def test_clones_run_on_each_as_itself(host, web):
    names = clone(host, "web", "--name", "w", "-n", "3", "-p", "7", "--label", "of=test")
    try:
        assert sorted(names) == ["w-1", "w-2", "w-3"]
        seen = []
        for name in sorted(names):
            shown = host.inspect(name)
            assert shown["state"] == "running" and shown["specification"]["template"] == "web"
            assert shown["specification"]["labels"] == {"of": "test"}
            with socket.create_connection(("127.0.0.1", shown["ports"][0]["host_port"]), timeout=20) as client:
                client.sendall(b"served")
                assert client.recv(100) == b"served"
            code, output, _ = host.berth("exec", name, "sh", "-c", IDENTITY + "; cat /tmp/warm")
            lines = output.splitlines()
            assert code == 0 and lines[0] == name and lines[-1] == "warmed"
            seen.append(lines[:-1])
        for values in zip(*seen):
            assert len(set(values)) == len(names), values
        # They go on where the template was, which had come to some line.
        first = [int(host.wait_for_lines(name, 1)[0].split()[1]) for name in names]
        assert len(set(first)) == 1 and first[0] > 1
        assert host.json("template", "inspect", "web")["clones"] == sorted(names)
        assert "is a clone of 'web'" in host.refused("template", "delete", "web").stderr
        assert is_untouched(host, "web")
    finally:
        remove(host, *names)


def test_a_clone_that_has_ended_is_a_clone_again(host, web):
    [name] = clone(host, "web", "--name", "again")
    try:
        first = host.wait_for_lines(name, 1)[0]
        host.cli("container", "exec", name, "sh", "-c", "echo mine >/tmp/warm")
        host.cli("container", "stop", "-t", "0", name)
        assert host.inspect(name)["exit_code"] == 137
        host.cli("container", "start", name)
        assert host.berth("exec", name, "cat", "/tmp/warm")[1] == "warmed\n"
        host.wait_for_lines(name, len(host.lines_of(name)) + 2)
        assert host.lines_of(name).count(first) == 2
    finally:
        remove(host, name)


def test_a_clone_is_a_container_like_others(host, web):
    [name] = clone(host, "web", "--rm", "--hostname", "other")
    assert re.fullmatch("c-[0-9a-f]{8}", name)
    assert host.berth("exec", name, "hostname", "-i")[1] == host.inspect(name)["address"] + "\n"
    assert host.berth("exec", name, "hostname")[1] == "other\n"
    host.cli("container", "pause", name)
    assert host.inspect(name)["state"] != "running"
    host.cli("container", "resume", name)
    before = len(host.wait_for_lines(name, 2))
    host.restart(kill=True)
    host.wait_for_state(name, "running")
    host.wait_for_lines(name, before + 2)
    host.cli("container", "kill", name)
    deadline = time.monotonic() + LIMIT_S
    while host.traces_of(name):
        assert time.monotonic() < deadline, host.traces_of(name)
        time.sleep(0.05)
    assert is_untouched(host, "web")


def test_a_template_outlives_the_memory_of_its_host(host, web):
    """A restart of the host leaves what is on disk."""
    host.stop()
    memory_of(host, web).unlink()
    memory_of(host, web).parent.rmdir()
    host.start()
    [name] = clone(host, "web")
    assert host.berth("exec", name, "cat", "/tmp/warm")[1] == "warmed\n"
    assert host.json("template", "inspect", "web")["id"] == web["id"] and is_untouched(host, "web")
    remove(host, name)


def test_a_damaged_image_of_its_memory_is_found(host):
    made = create(host, "damaged")
    image = host.state_dir / "templates" / "damaged" / made["id"] / "memory"
    memory_of(host, made).unlink()
    with open(image, "r+b") as stream:
        data = stream.read()
        at = next(i for i in range(8 << 20, len(data), 4096) if data[i:i + 4096].strip(b"\0"))
        stream.seek(at)
        stream.write(bytes(byte ^ 255 for byte in data[at:at + 4096]))
    assert "is not what was written to it" in host.refused("container", "clone", "damaged").stderr
    assert not memory_of(host, made).exists()
    assert host.json("container", "ps", "-a")["containers"] == []
    host.cli("template", "delete", "damaged")


@contextlib.contextmanager
def small(place, size):
    """So that a disk or the memory directory fills up."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_makes_no_template_and_leaves_nothing():
    with ContainerHost() as host, small(host.state_dir / "templates", "8m"):
        refused = host.refused("template", "create", "none", "--image", "busybox:1", "--pool", "0", "--ready", "tcp:7", "--",
                               "/bin/sh", "-c", SERVICE, timeout_s=LIMIT_S)
        assert "No space left on device" in refused.stderr and len(refused.stderr.splitlines()) <= 3, refused.stderr
        assert host.json("template", "list")["templates"] == [] and host.json("container", "ps", "-a")["containers"] == []
        assert list((host.state_dir / "templates").iterdir()) == [] and not list(host.memory_dir.glob("*/*"))
        # Of a container that runs it makes none either, and that runs on.
        host.cli("container", "run", "-d", "--name", "source", "busybox:1", "sh", "-c", SERVICE)
        count = len(host.wait_for_lines("source", 2))
        assert "No space left on device" in host.refused("template", "create", "none", "--from", "source").stderr
        host.wait_for_lines("source", count + 3)
        assert list((host.state_dir / "templates").iterdir()) == []
        remove(host, "source")


def test_a_full_memory_directory_is_said_and_nothing_is_left():
    with ContainerHost() as host:
        create(host, "held", "-m", "128M", "--ready", "tcp:7")
        memory_of(host, host.json("template", "inspect", "held")).unlink()
        with small(host.memory_dir, "24m"):
            for command in (("container", "clone", "held"), ("container", "run", "-m", "128M", "busybox:1", "true")):
                refused = host.refused(*command, timeout_s=LIMIT_S)
                assert "memory" in refused.stderr and len(refused.stderr.splitlines()) <= 3, refused.stderr
                assert not list(host.memory_dir.glob("*/*"))
        [name] = clone(host, "held")
        assert host.berth("exec", name, "echo", "there")[1] == "there\n"
        remove(host, name)
        host.cli("template", "delete", "held")


def test_what_a_command_leaves_running_is_not_waited_for(host):
    began = time.monotonic()
    create(host, "leaves", "--ready", "exec:sleep 1001 & echo looked", "--warm", "sleep 1002 & echo warmed", "--timeout", "40",
           command="sleep 1000")
    assert time.monotonic() - began < 30
    [name] = clone(host, "leaves")
    running = host.berth("exec", name, "ps", "-o", "args")[1]
    assert "sleep 1001" in running and "sleep 1002" in running
    remove(host, name)
    host.cli("template", "delete", "leaves")


def other_layout(path, says):
    """An image called busybox:other that says something of its own."""
    members = [directory("bin"), directory("tmp", mode=0o1777), file("says", says.encode())]
    members.append(file("bin/busybox", pathlib.Path("/usr/bin/busybox").read_bytes(), mode=0o755))
    members += [symlink(f"bin/{name}", "busybox") for name in ("sh", "cat", "sleep", "echo", "nc")]
    return write_layout(path, [("busybox:other", Image([layer(members)], config={"Env": ["PATH=/bin"]}))])


def test_a_template_is_made_again_when_its_image_changes(host):
    script = "while true; do cat /says; sleep 0.2; done"
    host.cli("image", "import", f"oci:{other_layout(host.directory / 'one', 'one')}")
    first = create(host, "changing", "--ready", "log:one", "--timeout", "5", image="busybox:other", command=script)
    [old] = clone(host, "changing", "--name", "old")
    host.cli("image", "import", f"oci:{other_layout(host.directory / 'two', 'two')}")
    # Its probe waits for what it will never say again.
    refused = host.refused("container", "clone", "changing", "--name", "none", timeout_s=LIMIT_S)
    assert "cannot be made again" in refused.stderr and "it is not ready after" in refused.stderr
    path = host.state_dir / "templates" / "changing" / "template.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "ready": "log:two"}))
    since = host.last_event()
    [new] = clone(host, "changing", "--name", "new")
    host.wait_for_event("template_rebuilt", since=since)
    assert host.berth("exec", new, "cat", "/says")[1] == "two"
    # Who runs goes on with what it has.
    assert host.berth("exec", old, "cat", "/says")[1] == "one"
    second = host.json("template", "inspect", "changing")
    assert second["id"] != first["id"] and second["stamp"]["image"] != first["stamp"]["image"]
    assert memory_of(host, first).exists()
    remove(host, old, new)
    host.restart()
    assert not memory_of(host, first).exists() and memory_of(host, second).exists()
    host.cli("template", "delete", "changing")
    assert not memory_of(host, second).exists()


def test_a_template_of_another_qemu_is_made_again(host):
    first = create(host, "upgraded")
    path = host.state_dir / "templates" / "upgraded" / "template.json"
    record = json.loads(path.read_text())
    record["stamp"]["qemu"] = "QEMU emulator version 7.0.0"
    path.write_text(json.dumps(record))
    [name] = clone(host, "upgraded")
    second = host.json("template", "inspect", "upgraded")
    assert second["id"] != first["id"] and second["stamp"] == first["stamp"]
    assert not memory_of(host, first).exists()
    remove(host, name)
    host.cli("template", "delete", "upgraded")


@pytest.mark.parametrize("options, command, says", [
    (("--ready", "log:never", "--timeout", "2"), "echo started; sleep 100",
     "it is not ready after 2 s: it has not written 'never'. It has written: started"),
    (("--ready", "tcp:99", "--timeout", "2"), "sleep 100", "it is not ready after 2 s: port 99: "),
    (("--ready", "http:7", "--timeout", "2"), "nc -ll -p 7 -e echo no; sleep 100", "it answers 'no'"),
    (("--ready", "exec:false", "--timeout", "2"), "sleep 100", "'false' ends with 1"),
    (("--ready", "tcp:7",), "echo broken; exit 3", "it ended with exit code 3 before it was ready. It has written: broken"),
    (("--warm", "echo why; exit 5"), "sleep 100", "'echo why; exit 5' ended with 5: why"),
    (("--warm", "sleep 100", "--timeout", "2"), "sleep 100", "'sleep 100': it did not end in time"),
    (("-m", "900G"), "sleep 100", "too little"),
    (("--ready", "udp:7"), "sleep 100", "'udp:7' is no tcp:PORT"),
])
def test_one_that_cannot_be_made_says_why_and_leaves_nothing(host, options, command, says):
    refused = host.refused("template", "create", "bad", "--image", "busybox:1", *options, "--", "/bin/sh", "-c", command,
                           timeout_s=LIMIT_S)
    assert says in refused.stderr, refused.stderr
    assert host.refused("template", "inspect", "bad").returncode == 3
    assert host.json("container", "ps", "-a")["containers"] == []
    assert not (host.state_dir / "templates" / "bad").exists()


def test_what_a_clone_cannot_be_is_refused(host, web):
    for arguments, says in [(("web", "-n", "2", "-p", "8080:7"), "several clones cannot have the port 8080"),
                            (("web", "-n", "2", "--hostname", "x"), "several clones cannot have the same"),
                            (("web", "-n", "0"), "--count"), (("none",), "there is no template 'none'")]:
        assert says in host.refused("container", "clone", *arguments).stderr
    status, answer = host.api("POST", "/v1/templates/web/clones", {"specification": {"memory": 1 << 30}})
    assert status == 400 and "a clone has that of its template" in answer["error"]["message"]
    assert "already" in host.refused("template", "create", "web", "--image", "busybox:1").stderr
    assert "is that of the template" in host.refused("image", "delete", "busybox:1").stderr
    assert host.json("container", "ps", "-a")["containers"] == []


def test_a_clone_whose_port_is_taken_is_not_there(host, web):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = host.refused("container", "clone", "web", "--name", "late", "-p", f"127.0.0.1:{taken.getsockname()[1]}:7")
        assert "cannot publish port 7" in refused.stderr
    assert host.traces_of("late") == []


@pytest.mark.parametrize("pause", [0.3, 2.0, 3.0])
def test_a_daemon_that_dies_while_it_makes_one_leaves_nothing(host, pause):
    command = ["/bin/sh", "-c", "sleep 1; echo ready now; sleep 100"]
    status, job = host.api("POST", "/v1/templates", {"name": "lost", "image": "busybox:1", "ready": "log:ready now", "pool": 0,
                                                     "specification": {"command": command}})
    assert status == 202, job
    time.sleep(pause)
    host.restart(kill=True)
    deadline = time.monotonic() + LIMIT_S
    while host.json("container", "ps", "-a")["containers"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    made = host.run("template", "inspect", "lost", "-o", "json")
    if made.returncode == 0:
        # It was done, but for saying so.
        [name] = clone(host, "lost")
        remove(host, name)
        host.cli("template", "delete", "lost")
    assert not (host.state_dir / "templates" / "lost").exists()
    known = {host.json("template", "inspect", each["name"])["id"] for each in host.json("template", "list")["templates"]}
    assert {path.name for path in host.memory_dir.iterdir()} == known


def test_a_job_that_is_cancelled_leaves_nothing(host):
    _, job = host.api("POST", "/v1/templates", {"name": "given-up", "image": "busybox:1", "ready": "log:never",
                                                "specification": {"command": ["/bin/sh", "-c", "sleep 100"]}})
    time.sleep(1)
    host.cli("job", "cancel", job["id"])
    assert host.wait_for_job(job["id"])["state"] == "cancelled"
    assert host.json("container", "ps", "-a")["containers"] == []
    assert not (host.state_dir / "templates" / "given-up").exists()


def test_the_last_answer_of_a_keeper_counts_though_it_has_ended(host):
    specification = {"command": ["/bin/sh", "-c", "sleep 100"]}
    _, job = host.api("POST", "/v1/templates", {"name": "last", "image": "busybox:1", "pool": 0, "specification": specification})
    deadline = time.monotonic() + LIMIT_S
    keeper = None
    while not list(host.state_dir.glob("templates/last/*/*")):
        if keeper is None and (host.run_dir / "containers" / "template-last" / "launch.json").exists():
            keeper = next(pid for pid, words in host.processes().items() if " keeper " in words and "template-last" in words)
        assert time.monotonic() < deadline, host.log()[-3000:]
    # Its devices are being written: the answer and the end of its keeper come at once for the daemon.
    os.kill(host.daemon.pid, signal.SIGSTOP)
    try:
        wait_for_exit(keeper)
    finally:
        os.kill(host.daemon.pid, signal.SIGCONT)
    assert host.wait_for_job(job["id"])["state"] == "done"
    host.cli("template", "delete", "last")
# --- Of a container that runs.


def numbers_of(host, name):
    return [int(line.split()[1]) for line in host.lines_of(name)]


def test_a_container_that_runs_becomes_a_template_and_runs_on(host):
    writing = "while true; do head -c 300000 /dev/urandom >/tmp/noise; done & " + SERVICE
    with host.container("--name", "origin", "-p", "7", "busybox:1", "/bin/sh", "-c", writing) as name:
        host.berth("exec", name, "sh", "-c", "echo mine >/tmp/own")
        port = host.inspect(name)["ports"][0]["host_port"]
        with dial(port) as client:
            host.cli("template", "create", "taken", "--from", name, "--pool", "0", timeout_s=LIMIT_S)
            client.sendall(b"after")
            assert client.recv(100) == b"after"
        stood = int(re.search("template_created origin: taken: it stood for ([0-9]+) us", host.log())[1])
        print(f"it stood for {stood / 1000:.1f} ms")
        assert stood < 1_000_000
        host.wait_for_lines(name, len(host.lines_of(name)) + 5)
        numbers = numbers_of(host, name)
        assert numbers == list(range(1, len(numbers) + 1))
        [copy] = clone(host, "taken", "--name", "copy", "-p", "7")
        seen = [host.berth("exec", each, "sh", "-c", IDENTITY + "; cat /tmp/own")[1].splitlines() for each in (name, copy)]
        assert [lines[0] for lines in seen] == ["origin", "copy"] and [lines[-1] for lines in seen] == ["mine", "mine"]
        assert all(one != other for one, other in zip(seen[0][:-1], seen[1][:-1]))
        with socket.create_connection(("127.0.0.1", host.inspect(copy)["ports"][0]["host_port"]), timeout=20) as client:
            client.sendall(b"served")
            assert client.recv(100) == b"served"
        assert "it is a clone" not in host.log()
        assert "is a clone: make a template of what" in host.refused("template", "create", "no", "--from", copy).stderr
        # It ran on, and can become another one.
        host.cli("template", "create", "taken-again", "--from", name, "--pool", "0", timeout_s=LIMIT_S)
        remove(host, copy)
    for made in ("taken", "taken-again"):
        assert is_untouched(host, made)
        host.cli("template", "delete", made)


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_keeper_that_dies_while_its_container_is_copied_is_no_harm(host, pause):
    with host.container("busybox:1", "/bin/sh", "-c", SERVICE) as name:
        _, job = host.api("POST", "/v1/templates", {"name": "half", "container": name, "pool": 0})
        time.sleep(pause)
        os.kill(host.keeper_of(name), signal.SIGKILL)
        ended = host.wait_for_job(job["id"])
        host.wait_for_state(name, "running")
        before = len(host.lines_of(name))
        host.wait_for_lines(name, before + 5)
        numbers = numbers_of(host, name)
        assert numbers == list(range(1, len(numbers) + 1))
        assert (host.state_dir / "templates" / "half").exists() == (ended["state"] == "done"), ended
        if ended["state"] == "done":
            host.cli("template", "delete", "half")


def test_what_cannot_become_a_template_says_why(host):
    host.cli("volume", "create", "tree", "--size", "64M", "--file-system", "ext4", timeout_s=LIMIT_S)
    with host.container("-v", "tree:/data", "busybox:1", "/bin/sh", "-c", "sleep 1000") as name:
        assert "neither ports nor volumes" in host.refused("template", "create", "no", "--from", name).stderr
    host.cli("volume", "delete", "tree")
    with host.container("-t", "busybox:1", "/bin/sh", "-c", "sleep 1000") as name:
        assert "neither a terminal nor an input" in host.refused("template", "create", "no", "--from", name).stderr
    with host.container("--name", "over", "busybox:1", "/bin/sh", "-c", "sleep 1000") as name:
        for options, says in [(("--ready", "tcp:7"), "is what it is"), (("-m", "1G"), "is what it is"),
                              (("--image", "busybox:1"), "give an image, or a container")]:
            assert says in host.refused("template", "create", "no", "--from", name, *options).stderr
        host.cli("container", "stop", "-t", "0", name)
        assert "does not run" in host.refused("template", "create", "no", "--from", name).stderr
    assert "there is no container" in host.refused("template", "create", "no", "--from", "nobody").stderr
    assert not (host.state_dir / "templates" / "no").exists()


# --- The pool.


def wait_until_full(host, name, count):
    deadline = time.monotonic() + LIMIT_S
    while host.json("template", "inspect", name)["waiting"] != count:
        assert time.monotonic() < deadline, host.log()[-3000:]
        time.sleep(0.05)
    return sorted(host.run_dir.glob("containers/pool-*"))


def waiting_processes(host):
    """Keepers and QEMUs of clones that wait: (pid, words)."""
    places = [path.name for path in host.run_dir.glob("containers/pool-*")]
    return [(pid, words) for pid, words in host.processes().items() if any(place in words for place in places)]


def ticks_of(pid):
    return sum(map(int, pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


@pytest.fixture(scope="module")
def pooled(host):
    return create(host, "pooled", "--ready", "tcp:7", pool=2)


def test_who_comes_at_once_need_not_wait_until_it_stands(host):
    """A clone can be had before its kernel has done all that it does later, and stands after that."""
    name = "early"
    create(host, name, "--ready", "tcp:7", pool=1)
    try:
        for pause in (0, 0.1, 0.25, 0.3, 0.35, 1):
            wait_until_full(host, name, 1)
            time.sleep(pause)
            made = clone(host, name)[0]
            host.wait_for_lines(made, 3)
            assert host.berth("exec", made, "cat", "/sys/fs/cgroup/clone-rehearsal/cgroup.procs") == (0, "", "")
            host.cli("container", "rm", "-f", made)
        wait_until_full(host, name, 1)
        pids = [pid for pid, words in waiting_processes(host) if "qemu" in words]
        deadline, before = time.monotonic() + LIMIT_S, None
        while before != (now := [ticks_of(pid) for pid in pids]):
            assert time.monotonic() < deadline
            before = now
            time.sleep(1)
        time.sleep(2)
        assert pids and [ticks_of(pid) for pid in pids] == before
    finally:
        host.cli("template", "delete", name)


def test_who_comes_gets_what_waits_and_another_one_waits_then(host, pooled):
    places = wait_until_full(host, "pooled", 2)
    assert host.json("container", "ps", "-a")["containers"] == []
    seen = []
    names = [clone(host, "pooled", "--name", name, "-p", "7")[0] for name in ("first", "second", "third")]
    try:
        # Two of them are those that waited.
        assert len(set(places) & set(host.run_dir.glob("containers/pool-*"))) == 0
        for name in names:
            shown = host.inspect(name)
            with socket.create_connection(("127.0.0.1", shown["ports"][0]["host_port"]), timeout=20) as client:
                client.sendall(b"served")
                assert client.recv(100) == b"served"
            seen.append(host.berth("exec", name, "sh", "-c", IDENTITY)[1].splitlines())
            assert seen[-1][:2] == [name, shown["id"].replace("-", "")]
            assert abs(int(host.berth("exec", name, "date", "+%s")[1]) - time.time()) < 2
        for values in zip(*seen):
            assert len(set(values)) == len(names), values
        assert "pool_failed" not in host.log()
        wait_until_full(host, "pooled", 2)
        # What waits costs next to no CPU time, in ticks of 10 ms.
        pids = [pid for pid, words in waiting_processes(host) if "qemu-system" in words]
        assert len(pids) == 2
        before = sum(ticks_of(pid) for pid in pids)
        time.sleep(2)
        assert sum(ticks_of(pid) for pid in pids) - before <= 6
    finally:
        remove(host, *names)


def test_a_clone_of_the_pool_outlives_its_keeper_and_the_daemon(host, pooled):
    wait_until_full(host, "pooled", 2)
    [name] = clone(host, "pooled", "--name", "lives")
    try:
        shown = host.inspect(name)
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(host.run_dir / "containers" / name / "control"))
            keeper = struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        os.kill(keeper, signal.SIGKILL)
        host.wait_for_state(name, "running")
        host.restart(kill=True)
        host.wait_for_state(name, "running")
        assert host.inspect(name)["pid"] == shown["pid"]
        assert host.berth("exec", name, "hostname")[1] == f"{name}\n"
    finally:
        remove(host, name)
    assert not list(pathlib.Path("/sys/fs/cgroup").glob(f"**/berth/container-{shown['id'][:8]}-*"))


@pytest.mark.parametrize("which", ["keeper", "qemu"])
def test_one_that_dies_while_it_waits_is_no_harm(host, pooled, which):
    wait_until_full(host, "pooled", 2)
    for pid, words in waiting_processes(host):
        if ("qemu-system" in words) == (which == "qemu"):
            os.kill(pid, signal.SIGKILL)
    names = clone(host, "pooled", "-n", "2")
    try:
        for name in names:
            assert host.berth("exec", name, "hostname")[1] == f"{name}\n"
        wait_until_full(host, "pooled", 2)
    finally:
        remove(host, *names)


def test_one_that_does_not_answer_is_given_up(host, pooled):
    places = wait_until_full(host, "pooled", 2)
    for pid, words in waiting_processes(host):
        if " keeper " in words:
            os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    [name] = clone(host, "pooled")
    assert time.monotonic() - began < LIMIT_S / 2
    assert host.berth("exec", name, "hostname")[1] == f"{name}\n"
    remove(host, name)
    [name] = clone(host, "pooled")  # the other one
    remove(host, name)
    assert not set(places) & set(wait_until_full(host, "pooled", 2))


@pytest.mark.parametrize("kill", [False, True])
def test_what_waits_ends_with_the_daemon_or_is_found_by_the_next(host, pooled, kill):
    before = wait_until_full(host, "pooled", 2)
    if kill:
        host.daemon.kill()
    else:
        host.stop()
        assert waiting_processes(host) == []
    host.start()
    after = wait_until_full(host, "pooled", 2)
    assert not set(before) & set(after) and len(waiting_processes(host)) == 4
    [name] = clone(host, "pooled")
    assert host.berth("exec", name, "hostname")[1] == f"{name}\n"
    remove(host, name)


def test_the_pool_is_given_up_for_who_needs_its_memory(host, pooled):
    wait_until_full(host, "pooled", 2)
    since = host.last_event()
    # More than there is: it is refused, and the pool has been tried.
    assert "too little" in host.refused("container", "run", "-d", "--name", "huge", "-m", "900G", "busybox:1").stderr
    host.run("container", "rm", "-f", "huge")
    assert host.json("template", "inspect", "pooled")["waiting"] == 0, since
    [name] = clone(host, "pooled")  # which fills it again
    remove(host, name)
    wait_until_full(host, "pooled", 2)
    host.cli("template", "delete", "pooled")
    assert waiting_processes(host) == []


def test_those_that_wait_count_as_clones(host):
    """More of them than the host has memory for, if each had all of its own."""
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in pathlib.Path("/proc/meminfo").read_text().splitlines()}
    size = 4 << 30
    count = (sizes["MemTotal"] + sizes["SwapTotal"]) // size + 1
    create(host, "large", "-m", size, command="sleep 1000", pool=count)
    wait_until_full(host, "large", count)
    host.cli("template", "delete", "large")
    assert waiting_processes(host) == []


def test_no_two_clones_that_wait_have_a_uid_in_common(host):
    names = ["one", "two", "three"]
    for name in names:
        create(host, name, command="sleep 1000", pool=1)
    host.restart()  # their pools are filled at the same time
    for name in names:
        wait_until_full(host, name, 1)
    launches = [json.loads(path.read_text()) for path in host.run_dir.glob("containers/pool-*/launch.json")]
    uids = [launch["waiting"]["uid"] for launch in launches]
    assert len(set(uids)) == len(uids) >= len(names), uids
    for name in names:
        host.cli("template", "delete", name)


def test_a_keeper_that_dies_before_its_clone_waits_leaves_nothing(host):
    create(host, "early", command="sleep 1000")
    path = host.state_dir / "templates" / "early" / "template.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pool": 1}))
    # One that has come to wait before its keeper was killed is another matter: then once more.
    for _ in range(5):
        since = host.last_event()
        host.restart()
        deadline = time.monotonic() + LIMIT_S
        while not any("qemu-system" in words for _, words in waiting_processes(host)):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for pid, words in waiting_processes(host):
            if " keeper " in words:
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError, BerthError):
            host.wait_for_event("pool_not_filled", since=since, timeout_s=10)
            break
    else:
        pytest.fail("no keeper was killed early enough")
    deadline = time.monotonic() + LIMIT_S
    microvms = host.run_dir / "microvms"
    known = {host.json("template", "inspect", each["name"])["id"] for each in host.json("template", "list")["templates"]}
    while list(host.run_dir.glob("containers/pool-*")) or list(microvms.iterdir()) or \
            {path.name for path in host.memory_dir.iterdir()} != known:
        assert time.monotonic() < deadline, (host.processes(), host.log()[-3000:])
        time.sleep(0.05)
    assert not [words for words in host.processes().values() if "qemu-system" in words or " keeper " in words]
    host.cli("template", "delete", "early")


def test_nothing_is_left_of_all_of_it(host, web):
    host.cli("template", "delete", "web")
    assert list(host.memory_dir.iterdir()) == []
    assert list((host.state_dir / "templates").iterdir()) == []
    assert not [words for words in host.processes().values() if "qemu-system" in words or " keeper " in words]
