"""Hibernated containers, as a user meets them: nothing of them runs, and whoever wants something of one has it back.

What a keeper does of itself is in test_container_hibernation.py."""

import contextlib
import json
import shutil
import socket
import threading
import time

import pytest
from test_container import LIMIT_S, ContainerHost

SERVICE = "nc -ll -p 7 -e cat & i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done"
FILL = "head -c 8000000 /dev/urandom >/data; sha256sum /data"


@pytest.fixture(scope="module")
def host():
    with ContainerHost() as made:
        yield made


@pytest.fixture(name="web")
def _web(host):
    """It runs, and serves at a port."""
    host.cli("container", "run", "-d", "--name", "web", "-p", "127.0.0.1:0:7", "busybox:1", "sh", "-c", SERVICE,
             timeout_s=LIMIT_S)
    shown = host.inspect("web")
    ask_until_it_serves(shown["ports"][0]["host_port"])
    yield shown
    host.cli("container", "rm", "-f", "web", timeout_s=LIMIT_S)
    host.wait_for_no_trace("web")


def hibernate(host, name="web"):
    host.cli("container", "pause", "--level", "hibernated", name, timeout_s=LIMIT_S)
    shown = host.inspect(name)
    assert shown["state"] == shown["pause"]["level"] == "hibernated" and shown["pid"] is None and shown["attach"] is None
    places = tuple(str(place / "containers") for place in (host.state_dir, host.run_dir))
    assert [trace for trace in host.traces_of(name) if not trace.startswith(places)] == []
    return shown


def execute(host, script, name="web"):
    code, output, errors = host.berth("exec", name, "sh", "-c", script)
    assert code == 0, errors
    return output


def ask(port, words=b"words"):
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
        client.sendall(words)
        assert client.recv(100) == words


def ask_until_it_serves(port):
    deadline = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(OSError, AssertionError):
            return ask(port)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_from_its_making_to_its_end(host, web):
    before = execute(host, FILL)
    port = web["ports"][0]["host_port"]
    shown = hibernate(host)
    assert shown["ports"][0]["host_port"] == port and shown["started_at"] == web["started_at"]
    assert shown["pause"]["page_file_bytes"] > 8_000_000 and shown["pause"]["after"]["memory"] == 0
    assert "hibernated" in host.cli("container", "ps")
    hibernate(host)  # it is already
    for level in ("frozen", "parked"):
        assert "is hibernated already" in host.refused("container", "pause", "--level", level, "web").stderr
    assert "is hibernated: resume it" in host.refused("container", "start", "web").stderr
    assert "is hibernated: stop it first" in host.refused("container", "rm", "web").stderr
    assert "web" in host.refused("image", "delete", "busybox:1").stderr
    host.cli("container", "resume", "web", timeout_s=LIMIT_S)
    shown = host.inspect("web")
    assert (shown["state"], shown["pause"], shown["ports"]) == ("running", None, web["ports"])
    assert execute(host, "sha256sum /data") == before
    ask(port)


@pytest.mark.parametrize("restart", ["none", "daemon", "host"])
def test_a_connection_to_a_port_resumes_it(host, web, restart):
    before = execute(host, FILL)
    hibernate(host)
    if restart == "daemon":
        host.restart(kill=True)
    elif restart == "host":
        restart_host(host)
    assert host.inspect("web")["state"] == "hibernated"
    ask(web["ports"][0]["host_port"])
    assert host.inspect("web")["state"] == "running"
    assert execute(host, "sha256sum /data") == before


def restart_host(host):
    """What is in memory is gone."""
    host.daemon.kill()
    for place in (host.run_dir / "containers", host.run_dir / "microvms"):
        shutil.rmtree(place)
    for path in host.memory_dir.iterdir():
        shutil.rmtree(path)
    host.start()


def test_whoever_wants_something_of_it_resumes_it(host, web, tmp_path):
    hibernate(host)
    assert execute(host, "echo there") == "there\n"
    hibernate(host)
    (tmp_path / "file").write_text("copied")
    host.cli("container", "cp", tmp_path / "file", "web:/tmp/file", timeout_s=LIMIT_S)
    hibernate(host)
    host.cli("container", "kill", "-s", "CONT", "web", timeout_s=LIMIT_S)
    assert host.inspect("web")["state"] == "running"
    hibernate(host)
    # Looking on does not.
    assert host.lines_of("web") and host.inspect("web")["state"] == "hibernated"
    host.cli("container", "stop", "-t", "5", "web", timeout_s=LIMIT_S)
    assert host.inspect("web")["state"] == "exited"


def test_one_that_is_ended_by_force_is_not_woken_for_that(host, web):
    hibernate(host)
    host.cli("container", "stop", "-t", "0", "web")
    shown = host.inspect("web")
    assert (shown["state"], shown["exit_code"], shown["pause"]) == ("exited", 137, None)
    place = host.state_dir / "containers" / "web"
    assert sorted(path.name for path in place.iterdir()) == ["container.json", "log", "state.json"]
    with pytest.raises(ConnectionRefusedError):
        ask(web["ports"][0]["host_port"])
    host.cli("container", "start", "web", timeout_s=LIMIT_S)


def test_one_that_cannot_be_woken_hangs_up_and_says_why(host, web):
    hibernate(host)
    path = host.state_dir / "containers" / "web" / "hibernation.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "qemu": "6.2.0"}))
    assert "was saved by QEMU 6.2.0" in host.refused("container", "resume", "web", timeout_s=LIMIT_S).stderr
    with pytest.raises((AssertionError, ConnectionError)):
        ask(web["ports"][0]["host_port"])
    assert host.inspect("web")["state"] == "hibernated"
    path.write_text(whole)
    # Whoever comes while the others are hung up on may be hung up on, too.
    ask_until_it_serves(web["ports"][0]["host_port"])


def test_volumes_stay_its_own_and_have_what_it_wrote(host):
    host.cli("volume", "create", "tree", "--size", "64M", "--file-system", "ext4")
    run = ("container", "run", "-d", "--name", "keeps", "-v", "tree:/tree", "busybox:1", "sh", "-c")
    try:
        host.cli(*run, "while true; do sleep 0.1; done", timeout_s=LIMIT_S)
        execute(host, "echo one >/tree/a", "keeps")
        hibernate(host, "keeps")
        taken = host.refused("container", "run", "--name", "other", "-v", "tree:/tree", "busybox:1", "true", timeout_s=LIMIT_S)
        assert "in use by the container 'keeps'" in taken.stderr
        host.restart(kill=True)
        assert execute(host, "echo two >>/tree/a; cat /tree/a", "keeps") == "one\ntwo\n"
        hibernate(host, "keeps")
        host.cli("container", "stop", "-t", "0", "keeps", timeout_s=LIMIT_S)
        host.cli("container", "start", "keeps", timeout_s=LIMIT_S)
        assert execute(host, "cat /tree/a", "keeps") == "one\ntwo\n"
    finally:
        for name in ("keeps", "other"):
            host.run("container", "rm", "-f", name, timeout_s=LIMIT_S)
        host.cli("volume", "delete", "tree")


def test_a_clone_goes_on_from_its_own_making_of_the_template(host):
    def make():
        host.cli("template", "create", "base", "--image", "busybox:1", "--ready", "tcp:7", "--pool", "0", "--", "sh", "-c", SERVICE,
                 timeout_s=LIMIT_S)
    make()
    try:
        host.cli("container", "clone", "base", "--name", "web", "-p", "127.0.0.1:0:7", timeout_s=LIMIT_S)
        before = execute(host, FILL)
        hibernate(host)
        first = host.json("template", "inspect", "base")["id"]
        # It is made again, since what it was made with has changed; the host goes down, and its memory with it.
        record = host.state_dir / "templates" / "base" / "template.json"
        changed = json.loads(record.read_text())
        changed["stamp"]["agent"] = "0" * 16
        record.write_text(json.dumps(changed))
        host.cli("container", "clone", "base", "--name", "second", timeout_s=LIMIT_S)
        assert host.json("template", "inspect", "base")["id"] != first
        host.cli("container", "rm", "-f", "second", timeout_s=LIMIT_S)
        restart_host(host)
        assert "'web' is a clone of" in host.refused("template", "delete", "base").stderr
        ask(host.inspect("web")["ports"][0]["host_port"])
        assert execute(host, "sha256sum /data") == before
        assert host.json("template", "check", "base")["untouched"]
    finally:
        host.run("container", "rm", "-f", "web", timeout_s=LIMIT_S)
        host.cli("template", "delete", "base")


def test_many_who_want_it_at_once_wake_it_once(host, web):
    hibernate(host)
    port = web["ports"][0]["host_port"]
    failed = []

    def one(number):
        try:
            execute(host, "true") if number % 4 == 0 else ask(port)
        except (OSError, AssertionError) as error:
            failed.append(error)
    several = [threading.Thread(target=one, args=[number]) for number in range(12)]
    for each in several:
        each.start()
    for each in several:
        each.join(LIMIT_S)
    assert failed == [] and host.inspect("web")["state"] == "running"
    assert len(list((host.run_dir / "microvms").iterdir())) == 1
