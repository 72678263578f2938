"""The keeper of a container, with a real microVM: its processes, its log, and the deaths of everybody."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest
from berth_host import program
from container_keeper import SIGNAL, SIZE, Image, KeeperError, KeptContainer, dial

MIB = 1 << 20
COUNTING = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.02; done"


@pytest.fixture(scope="module")
def image():
    with Image() as made:
        yield made


@pytest.fixture(scope="module")
def shell(image):
    """A container that runs on, for tests of other processes in it."""
    with KeptContainer(image, arguments=["/bin/sh", "-c", "while true; do sleep 1; done"]) as container:
        container.start()
        yield container
        container.call("stop", timeout_ms=0)
        assert container.ended()["exit_code"] == 137
        assert container.leftovers() == []


def counted(container):
    """How many lines were counted, all of them there, once, and in order."""
    lines = [text for _, text in container.log()]
    assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
    return len(lines)


# --- The main process.

def test_what_it_writes_and_how_it_ends_is_told_and_kept(image):
    script = "echo out; echo err >&2; printf unfinished; exit 3"
    with KeptContainer(image, arguments=["/bin/sh", "-c", script]) as container:
        container.start(hold=True)
        assert container.call("info")["state"] == "starting"
        assert container.attach().rest() == (b"out\nunfinished", b"err\n", 3)
        state = container.ended()
        assert (state["running"], state["ended"], state["exit_code"], state["error"]) == (False, True, 3, "")
        assert sorted(container.log()) == [("stderr", "err"), ("stdout", "out")]
        assert container.leftovers() == []


def test_a_program_that_is_not_there_or_cannot_be_run_is_said_and_nothing_stays(image):
    for word, code in (("/bin/nowhere", 127), ("/bin/no-program", 126)):
        with KeptContainer(image, arguments=[word]) as container:
            with pytest.raises(KeeperError, match=word):
                container.start()
            state = container.ended()
            assert (state["exit_code"], state["running"]) == (code, False)
            assert word in state["error"]
            assert container.leftovers() == []


def test_a_held_program_that_cannot_be_run_is_told_to_who_attaches(image):
    with KeptContainer(image, arguments=["/bin/nowhere"]) as container:
        container.start(hold=True)
        with pytest.raises(KeeperError) as refused:
            container.attach()
        assert (refused.value.kind, refused.value.shell_status) == ("not_found", 127)
        assert container.ended()["exit_code"] == 127


def test_its_input_and_terminal_are_those_of_who_attaches(image):
    script = "tty >/dev/null && stty size; read line; echo \"<$line>\"; exit 4"
    with KeptContainer(image, arguments=["/bin/sh", "-c", script], terminal=True, input=True) as container:
        container.start(hold=True)
        client = container.attach(input=True, rows=33, columns=101)
        assert client.has_terminal
        client.read_until(b"33 101")
        with pytest.raises(KeeperError, match="input already"):
            container.attach(input=True)
        client.write(b"typed\n")
        output, _, end = client.rest()
        assert b"<typed>" in output and end == 4
        assert container.ended()["exit_code"] == 4


def test_who_detaches_changes_nothing_and_who_attaches_sees_all_from_the_start(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", COUNTING]) as container:
        container.start()
        container.attach().read_until(b"line 10\n")
        late = container.attach(start="now")
        first = late.read_until(b"\n").split(b"\n")[0]
        assert int(first.split()[1]) > 9
        assert container.attach().read_until(b"line 20\n").startswith(b"line 1\nline 2\n")
        container.call("kill", signal=signal.SIGKILL)
        assert late.rest()[2] == (137, 9)
        assert container.ended()["exit_signal"] == 9
        counted(container)


def test_the_stop_signal_comes_first_and_then_force(image):
    polite = ["/bin/sh", "-c", "trap 'echo bye; exit 7' USR1; echo ready; while true; do sleep 0.05; done"]
    with KeptContainer(image, arguments=polite, stop_signal="SIGUSR1") as container:
        container.start()
        container.attach().read_until(b"ready")
        container.call("stop", timeout_ms=20_000)
        assert container.ended()["exit_code"] == 7
        assert container.log()[-1] == ("stdout", "bye")
    deaf = ["/bin/sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.05; done"]
    with KeptContainer(image, arguments=deaf) as container:
        container.start()
        container.attach().read_until(b"ready")
        begun = time.monotonic()
        container.call("stop", timeout_ms=1000)
        assert 1 <= time.monotonic() - begun < 10
        assert container.ended()["exit_code"] == 137


def test_a_stop_in_the_middle_of_the_start_ends_it(image):
    with KeptContainer(image, arguments=["/bin/sleep", "1000"]) as container:
        failures = []

        def start():
            try:
                container.start()
            except KeeperError as error:
                failures.append(error)

        starting = threading.Thread(target=start)
        starting.start()
        deadline = time.monotonic() + 30
        while not list(container.run.glob("microvms/*/qmp.sock")) and time.monotonic() < deadline:
            time.sleep(0.01)
        second = container.new_control()
        second.call("container.stop", timeout_ms=0)
        second.close()
        starting.join()
        assert len(failures) == 1
        assert container.ended()["exit_code"] == 137
        assert container.leftovers() == []


def test_a_log_is_bounded_and_who_follows_it_misses_nothing(image):
    script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done"
    with KeptContainer(image, arguments=["/bin/sh", "-c", script], log_bytes=64 << 10) as container:
        container.start(hold=True)
        output, _, end = container.attach().rest()
        assert end == 0
        lines = output.decode().splitlines()
        assert lines[-1] == "line 3000"
        kept = [text for _, text in container.log()]
        assert 500 < len(kept) < 3000 and kept == [f"line {number}" for number in range(3001 - len(kept), 3001)]
        assert sum(path.stat().st_size for path in container.place.glob("log*")) <= 64 << 10
        assert container.ended()["exit_code"] == 0


# --- Other processes in it.

def test_exit_codes_signals_and_streams_of_another_process(shell):
    assert shell.execute("/bin/sh", "-c", "echo out; echo err >&2; exit 5").rest() == (b"out\n", b"err\n", 5)
    assert shell.execute("/bin/sh", "-c", "kill -9 $$").rest()[2] == (137, 9)
    for word, status in (("/bin/nowhere", 127), ("/bin/no-program", 126)):
        with pytest.raises(KeeperError) as refused:
            shell.execute(word)
        assert refused.value.shell_status == status


def test_what_goes_through_a_process_comes_back_whole(shell):
    data = os.urandom(3 * MIB)
    client = shell.execute("/bin/cat", input=True)

    def feed():
        client.write(data)
        client.send(0)

    feeding = threading.Thread(target=feed)
    feeding.start()
    output, errors, end = client.rest()
    feeding.join()
    assert output == data and errors == b"" and end == 0


def test_another_process_has_a_terminal_of_its_own(shell):
    client = shell.execute("/bin/sh", "-c", "stty size; read x; stty size; cat", terminal=True, input=True, rows=11, columns=22)
    client.read_until(b"11 22")
    client.send(SIZE, b"\x21\x00\x2c\x00")
    time.sleep(0.3)
    client.write(b"\n")
    client.read_until(b"33 44")
    client.write(b"\x03")  # ^C
    assert client.rest()[2] == (130, signal.SIGINT)


def test_its_user_directory_and_environment_are_what_was_asked_for(shell):
    output, _, end = shell.execute("/bin/sh", "-c", "id -un; pwd; echo $WORD", user="web", working_directory="/var/www",
                                   environment=["WORD=a b"]).rest()
    assert (output, end) == (b"web\n/var/www\na b\n", 0)


def test_signals_are_passed_on(shell):
    client = shell.execute("/bin/sh", "-c", "trap 'echo got; exit 9' USR2; echo ready; while true; do sleep 0.05; done")
    client.read_until(b"ready")
    client.send(SIGNAL, bytes([signal.SIGUSR2]))
    output, _, end = client.rest()
    assert (output, end) == (b"got\n", 9)


def test_a_client_that_goes_takes_its_process_along(shell):
    client = shell.execute("/bin/sh", "-c", "echo $$; exec sleep 4321")
    pid = int(client.read_until(b"\n"))
    client.close()
    deadline = time.monotonic() + 20
    while shell.execute("/bin/sh", "-c", f"kill -0 {pid}").rest()[2] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_that_does_not_read_stops_nobody_else(shell):
    slow = shell.execute("/bin/sh", "-c", "while true; do echo much; done")
    slow.read_until(b"much")
    for _ in range(5):
        assert shell.execute("/bin/echo", "quick").rest() == (b"quick\n", b"", 0)
    slow.close()


def test_many_clients_at_once(shell):
    results = [None] * 20

    def one(index):
        results[index] = shell.execute("/bin/sh", "-c", f"sleep 0.2; echo {index}; exit {index}").rest()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(f"{index}\n".encode(), b"", index) for index in range(len(results))]


def test_requests_that_make_no_sense_are_refused(shell):
    for method, params in (("kill", {"signal": 0}), ("kill", {}), ("stop", {"timeout_ms": -1}), ("resume", {}),
                           ("start", {"image": "/x", "kernel": "/x"})):
        with pytest.raises(KeeperError):
            shell.call(method, **params)
    for request in ({}, {"dance": {}}, {"attach": {}}, {"exec": {"arguments": []}}):
        with pytest.raises(KeeperError):
            shell.attach().__class__(shell.run / "containers" / "c" / "attach", request)
    assert shell.call("info")["state"] == "running"


def test_the_guest_knows_who_it_is(shell):
    output, _, _ = shell.execute("/bin/sh", "-c", "hostname; cat /etc/hosts; cat /etc/machine-id; date +%s").rest()
    name, *hosts, machine_id, now = output.decode().splitlines()
    assert name == "c" and any(line.endswith("\tc") for line in hosts)
    assert len(machine_id) == 32 and abs(int(now) - time.time()) < 5


# --- Published ports.

PORT = {"host_address": "127.0.0.1", "guest_port": 7}


@pytest.fixture(scope="module")
def echo(image):
    """A container with a service that says what it is told, at a port of the host's; the port."""
    server = ["/bin/nc", "-ll", "-p", "7", "-e", "/bin/cat"]
    with KeptContainer(image, arguments=server, network="none", ports=[PORT]) as container:
        container.start()
        yield container, container.call("info")["ports"][0]["host_port"]
        container.call("stop", timeout_ms=0)
        container.ended()


def read_all(client):
    got = b""
    while piece := client.recv(65536):
        got += piece
    return got


def test_a_published_port_carries_everything_both_ways(echo):
    _, port = echo
    data = os.urandom(4 * MIB)
    client = dial(port)
    feeding = threading.Thread(target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
    feeding.start()
    assert read_all(client) == data
    feeding.join()
    client.close()


def test_many_connections_at_once_and_one_that_does_not_read(echo):
    _, port = echo
    slow = dial(port)
    slow.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            slow.sendall(bytes(65536))
    clients = [dial(port) for _ in range(20)]
    for number, client in enumerate(clients):
        client.sendall(f"{number}".encode())
        client.shutdown(socket.SHUT_WR)
    assert [read_all(client) for client in clients] == [f"{number}".encode() for number in range(20)]
    for client in [slow, *clients]:
        client.close()


def test_connections_that_are_over_leave_nothing_in_the_guest(echo):
    container, port = echo
    for _ in range(30):
        dial(port).close()
    deadline = time.monotonic() + 20
    while container.execute("/bin/sh", "-c", "pgrep cat || exit 1").rest()[2] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_port_without_a_service_hangs_up_and_one_that_is_taken_is_refused(image):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [{**PORT, "host_port": taken.getsockname()[1]}]
        with KeptContainer(image, arguments=["/bin/true"], ports=ports) as container:
            with pytest.raises(KeeperError, match="cannot publish port 7 at 127.0.0.1"):
                container.start()
            assert container.call("info")["state"] == "stopped"
            assert container.leftovers() == []
    with KeptContainer(image, arguments=["/bin/sleep", "1000"], ports=[PORT]) as container:
        port = container.start()["ports"][0]["host_port"]
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            assert read_all(client) == b""
        container.kill_keeper()
        container.start_keeper()
        container.wait_for_state("running")
        assert container.call("info")["ports"][0]["host_port"] == port
        container.call("stop", timeout_ms=0)
        container.ended()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=20)


def test_connections_of_a_keeper_that_died_go_and_new_ones_come(echo):
    container, port = echo
    old = dial(port)
    container.kill_keeper()
    container.start_keeper()
    container.wait_for_state("running")
    with contextlib.suppress(OSError):
        assert old.recv(1) == b""
    old.close()
    client = dial(port)
    client.sendall(b"new")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"new"
    client.close()


# --- Pausing.

def test_a_frozen_container_does_nothing_and_goes_on_with_the_right_time(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", COUNTING]) as container:
        container.start()
        container.attach().read_until(b"line 5\n")
        container.call("pause")
        assert container.call("info")["state"] == "frozen"
        time.sleep(0.3)  # what was on its way
        before, ticks = counted(container), cpu_ticks(container.qemu())
        time.sleep(2)
        assert counted(container) == before
        assert cpu_ticks(container.qemu()) - ticks <= 2
        container.call("resume")
        container.attach(start="now").read_until(b"line")
        output, _, _ = container.execute("/bin/date", "+%s").rest()
        assert abs(int(output) - time.time()) < 2
        container.call("pause")
        container.call("stop", timeout_ms=0)
        assert container.ended()["exit_code"] == 137
        counted(container)


def test_a_frozen_container_whose_keeper_dies_goes_on_when_it_is_told_to(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", COUNTING]) as container:
        container.start()
        container.attach().read_until(b"line 5\n")
        container.call("pause")
        container.kill_keeper()
        container.start_keeper()
        assert container.call("info")["state"] == "frozen"
        lines = counted(container)
        container.call("resume")
        assert container.execute("/bin/echo", "back").rest() == (b"back\n", b"", 0)
        container.attach(start="now").read_until(b"line")
        assert counted(container) > lines
        container.call("pause")
        container.kill_keeper()
        container.start_keeper()
        container.call("stop", timeout_ms=20_000)
        assert container.ended()["exit_code"] == 143, "it was not asked, but ended by force"
        counted(container)


def cpu_ticks(pid):
    """Of user and system, in hundredths of a second."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


# --- Deaths.

def test_no_line_is_lost_or_doubled_whoever_dies(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", COUNTING.replace("0.02", "0.005")]) as container:
        container.start()
        for number in range(8):
            container.attach(start="now").read_until(b"line")
            time.sleep(0.05 * number)
            if number % 4 == 3:
                container.end_keeper()
            else:
                container.kill_keeper()
            container.start_keeper()
            container.wait_for_state("running")
        lines = counted(container)
        assert lines > 50
        assert container.execute("/bin/echo", "still there").rest() == (b"still there\n", b"", 0)
        container.call("stop", timeout_ms=0)
        assert container.ended()["exit_code"] == 137
        assert counted(container) >= lines


def test_a_process_whose_keeper_dies_goes(image):
    with KeptContainer(image, arguments=["/bin/sleep", "1000"]) as container:
        container.start()
        client = container.execute("/bin/sh", "-c", "echo $$; exec sleep 4321")
        pid = int(client.read_until(b"\n"))
        container.kill_keeper()
        container.start_keeper()
        container.wait_for_state("running")
        deadline = time.monotonic() + 20
        while container.execute("/bin/sh", "-c", f"kill -0 {pid}").rest()[2] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        container.call("stop", timeout_ms=0)
        container.ended()


def test_an_end_that_no_keeper_saw_is_found_out(image):
    script = "echo ready; sleep 1; echo last words; exit 6"
    with KeptContainer(image, arguments=["/bin/sh", "-c", script]) as container:
        container.start()
        container.attach().read_until(b"ready")
        container.kill_keeper()
        time.sleep(2)
        container.start_keeper()
        state = container.ended()
        assert (state["exit_code"], state["error"]) == (6, "")
        assert [text for _, text in container.log()] == ["ready", "last words"]
        assert container.leftovers() == []


def test_a_keeper_that_dies_while_the_guest_boots_is_no_harm(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", "echo done; exit 2"]) as container:
        failures = []

        def start():
            try:
                container.start()
            except (KeeperError, OSError) as error:
                failures.append(error)

        starting = threading.Thread(target=start)
        starting.start()
        deadline = time.monotonic() + 30
        while not list(container.run.glob("microvms/*/qmp.sock")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
        container.kill_keeper()
        starting.join()
        container.start_keeper()
        assert container.ended()["exit_code"] == 2
        assert container.log() == [("stdout", "done")]
        assert container.leftovers() == []


def test_a_qemu_that_is_killed_is_an_end_with_a_reason(image):
    with KeptContainer(image, arguments=["/bin/sleep", "1000"]) as container:
        container.start()
        client = container.attach()
        os.kill(container.qemu(), signal.SIGKILL)
        _, _, end = client.rest()
        assert "signal 9" in end
        state = container.ended()
        assert state["exit_code"] == 255 and "signal 9" in state["error"]
        assert container.leftovers() == []


def test_both_die_at_once(image):
    with KeptContainer(image, arguments=["/bin/sleep", "1000"]) as container:
        container.start()
        container.kill_keeper()
        os.kill(container.qemu(), signal.SIGKILL)
        container.start_keeper()
        assert container.hello["over"] or container.control.call("hello")["over"]
        state = container.ended()
        assert (state["running"], state["exit_code"]) == (False, 255)
        assert container.leftovers() == []


def test_a_guest_whose_kernel_panics_is_an_end_with_a_reason(image):
    script = "echo ready; echo c >/proc/sysrq-trigger; sleep 1000"
    with KeptContainer(image, arguments=["/bin/sh", "-c", script]) as container:
        container.start()
        state = container.ended()
        assert state["exit_code"] == 255 and "ended by itself" in state["error"]
        assert container.leftovers() == []


def test_a_second_keeper_is_refused(image):
    with KeptContainer(image, arguments=["/bin/sleep", "1000"]) as container:
        container.start()
        first = container._keeper
        with open(container.directory / "second.log", "wb") as log:
            second = subprocess.run([program(), "keeper", "--state-dir", container.state, "--run-dir", container.run,
                                     "--memory-dir", container.memory, "--container", "c"], stderr=log, timeout=20)
        assert second.returncode == 1
        assert "another keeper" in (container.directory / "second.log").read_text()
        assert first.poll() is None and container.call("info")["state"] == "running"
        container.call("stop", timeout_ms=0)
        container.ended()
