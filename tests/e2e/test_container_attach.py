"""A container's attach connection through the daemon: `container.attach` of the API, by the daemon's socket and by TLS, and the
command line of somebody who may talk to the daemon and not to keepers.

What is said on such a connection is in test_container_keeper.py and test_container.py."""

import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time

import pytest
from berth_host import program
from container_keeper import SIGNAL, SIZE, Attached, KeeperError, connect
from test_api_openapi import make_certificates, tls_port
from test_container import FOREVER, LIMIT_S, ContainerHost

NOBODY = 65534


@pytest.fixture(scope="module", name="host")
def _host(tmp_path_factory):
    tls = make_certificates(tmp_path_factory.mktemp("tls"))
    with ContainerHost(daemon_options=["--listen", "127.0.0.1:0", "--tls-dir", tls]) as made:
        made.tls = tls
        yield made


@pytest.fixture(scope="module", name="shell")
def _shell(host):
    with host.container("--name", "shell", "--memory", "128M", "busybox:1", "sh", "-c", FOREVER) as name:
        yield name


def dial_unix(host):
    return connect(host.run_dir / "api.sock")


def dial_tls(host):
    context = ssl.create_default_context(cafile=host.tls / "ca-cert.pem")
    context.load_cert_chain(host.tls / "client-cert.pem", host.tls / "client-key.pem")
    return context.wrap_socket(socket.create_connection(("127.0.0.1", tls_port(host)), timeout=LIMIT_S),
                               server_hostname="127.0.0.1")


def ask(stream, name, headers=("Connection: keep-alive, Upgrade", "Upgrade: berth-attach"), then=b""):
    """(status, body) of the answer; what is said on a connection that is the container's then has not been read."""
    lines = [f"POST /v1/containers/{name}/attach HTTP/1.1", "Host: berth", *headers, "", ""]
    stream.sendall("\r\n".join(lines).encode() + then)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += stream.recv(1)
        assert len(head) < 4096, head
    status = int(head.split()[1])
    if status == 101:
        assert b"Upgrade: berth-attach\r\n" in head and b"Connection: Upgrade\r\n" in head
        return status, b""
    length = int(re.search(rb"Content-Length: (\d+)", head)[1])
    body = b""
    while len(body) < length:
        body += stream.recv(length - len(body))
    return status, body


def attached(host, name, request, dial=dial_unix):
    stream = dial(host)
    assert ask(stream, name) == (101, b"")
    return Attached(stream, request)


def execute(host, name, *arguments, dial=dial_unix, **wanted):
    return attached(host, name, {"exec": {"arguments": [*arguments], "environment": ["PATH=/bin"], **wanted}}, dial)


def kind_of(answer):
    return answer[0], json.loads(answer[1])["error"]["kind"]


@pytest.mark.parametrize("dial", [dial_unix, dial_tls])
def test_a_program_is_run_and_fed_to_its_end(host, shell, dial):
    data = os.urandom(3 << 20)
    client = execute(host, shell, "sh", "-c", "sha256sum; echo bad >&2; exit 7", input=True, dial=dial)
    client.write(data)
    client.write(b"")
    client.send(0)  # the end of the input
    assert client.rest() == (f"{hashlib.sha256(data).hexdigest()}  -\n".encode(), b"bad\n", 7)
    with pytest.raises(EOFError):
        client.frame()
    client.close()


@pytest.mark.parametrize("dial", [dial_unix, dial_tls])
def test_all_that_is_written_comes_however_slowly_it_is_read(host, shell, dial):
    client = execute(host, shell, "sh", "-c", "yes | head -c 6000000", dial=dial)
    time.sleep(0.5)
    output, errors, code = client.rest()
    assert (output == b"y\n" * 3000000, errors, code) == (True, b"", 0)
    client.close()


def test_a_client_that_talks_on_gets_what_came_last(host, shell):
    """Whatever it says is read, so that its end of the connection is not reset before it has read all."""
    client = execute(host, shell, "sh", "-c", "head -c 1 >/dev/null; yes | head -c 300000; exit 3", input=True, dial=dial_tls)

    def talk():
        try:
            while True:
                client.write(b"x" * 60000)
        except OSError:
            pass

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        time.sleep(1)
        output, _, code = client.rest()
        assert (len(output), code) == (300000, 3)
    finally:
        client.close()
        talker.join()


def test_a_terminal_has_its_size_and_signals(host, shell):
    client = execute(host, shell, "sh", "-c", "stty size; read word; stty size; sleep 100", terminal=True, input=True, rows=12,
                     columns=34)
    client.read_until(b"12 34\r\n")
    client.send(SIZE, (50).to_bytes(2, "little") + (60).to_bytes(2, "little"))
    client.write(b"word\n")
    client.read_until(b"50 60\r\n")
    client.send(SIGNAL, bytes([15]))
    assert client.rest()[2] in (143, (143, 15), (0, 15))
    client.close()


def test_the_main_process_is_shown_and_fed(host):
    with host.container("-i", "busybox:1", "sh", "-c", "echo up; read word; echo got $word; exit 4") as name:
        client = attached(host, name, {"attach": {"from": "start", "input": True}})
        client.read_until(b"up\n")
        client.write(b"it\n")
        assert client.rest() == (b"got it\n", b"", 4)
        client.close()
        host.wait_for_state(name, "exited")
        assert kind_of(ask(dial_unix(host), name)) == (412, "precondition")


def test_what_comes_with_the_request_is_the_container_s(host, shell):
    stream = dial_unix(host)
    request = {"exec": {"arguments": ["/bin/echo", "at once"]}}
    assert ask(stream, shell, then=json.dumps(request).encode() + b"\n")[0] == 101
    client = Attached(stream, None)
    assert client.rest() == (b"at once\n", b"", 0)
    client.close()


@pytest.mark.parametrize("level", ["frozen", "parked", "hibernated"])
def test_one_that_is_paused_goes_on(host, shell, level):
    host.cli("container", "pause", shell, "--level", level, timeout_s=LIMIT_S)
    client = execute(host, shell, "echo", "awake")
    assert client.rest() == (b"awake\n", b"", 0)
    client.close()
    assert host.inspect(shell)["state"] == "running"


@pytest.mark.parametrize("dial", [dial_unix, dial_tls])
def test_when_the_client_goes_its_program_goes(host, shell, dial):
    client = execute(host, shell, "sh", "-c", "echo up; exec sleep 987", dial=dial)
    client.read_until(b"up\n")
    client.close()
    deadline = time.monotonic() + LIMIT_S
    while "987" in host.cli("container", "exec", shell, "ps", "-o", "args").split():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_cannot_be_is_said(host, shell):
    stream = dial_unix(host)
    # One connection, which stays one of HTTP.
    assert kind_of(ask(stream, "missing")) == (404, "not_found")
    assert kind_of(ask(stream, shell, headers=())) == (400, "invalid_argument")
    assert kind_of(ask(stream, shell, headers=("Upgrade: berth-attach",))) == (400, "invalid_argument")
    assert kind_of(ask(stream, shell, headers=("Connection: Upgrade", "Upgrade: websocket"))) == (400, "invalid_argument")
    assert ask(stream, shell)[0] == 101
    with pytest.raises(KeeperError) as refused:
        Attached(stream, {"exec": {"arguments": ["/no/such"]}})
    assert refused.value.shell_status == 127
    with host.container("busybox:1", "true") as name:
        host.wait_for_state(name, "exited")
        assert kind_of(ask(dial_unix(host), name)) == (412, "precondition")


def test_the_daemon_s_end_is_the_connection_s_and_not_the_container_s(host, shell):
    client = execute(host, shell, "sh", "-c", "echo up; exec sleep 986")
    client.read_until(b"up\n")
    began = time.monotonic()
    host.restart()
    assert time.monotonic() - began < 10
    with pytest.raises((EOFError, ConnectionError)):
        client.frame()
    client.close()
    assert host.inspect(shell)["state"] == "running"
    assert execute(host, shell, "echo", "still").rest()[0] == b"still\n"


def test_who_may_talk_to_the_daemon_alone_has_all_of_it(host, shell):
    (host.run_dir / "api.sock").chmod(0o666)  # the group berth is not everywhere

    def as_nobody(*words, data=""):
        return subprocess.run(words, env=host.environment, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", input=data,
                              capture_output=True, text=True, timeout=LIMIT_S, check=False)

    def berth(*arguments, data=""):
        return as_nobody(program(), "container", *arguments, data=data)

    # The test would show nothing otherwise.
    connecting = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    refused = as_nobody("/usr/bin/python3", "-c", connecting, host.run_dir / "containers" / shell / "attach")
    assert refused.returncode != 0 and "PermissionError" in refused.stderr
    done = berth("exec", "-i", shell, "sh", "-c", "cat; exit 9", data="words")
    assert (done.returncode, done.stdout, done.stderr) == (9, "words", "")
    done = berth("run", "--rm", "busybox:1", "echo", "run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")
    done = berth("cp", f"{shell}:/etc/passwd", "-")
    assert done.returncode == 0 and "root:x:0:0" in done.stdout
    done = berth("exec", shell, "no-such-program")
    assert done.returncode == 127


def test_a_connection_that_is_joined_is_one_of_those_that_there_may_be(host, shell):
    """None is lost: what was joined, and has ended, makes room."""
    for _ in range(300):
        stream = dial_unix(host)
        assert ask(stream, shell)[0] == 101
        stream.close()
    assert host.api("GET", "/v1/host")[0] == 200
