"""What is asked for wrongly: each mistake is answered with one line that says what is wrong, with an exit code that says
of what kind it is (1 failed, 2 usage, 3 not found, 4 precondition), and changes nothing.

Names, sizes and files that will not do; reference points that are stale, foreign or made up; two who want one volume;
clients without a certificate."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import uuid

import nbd
import pytest
from berth_host import BerthHost, program
from volume_tools import LIMIT_S, certificates, child, connect, read_export

MIB = 1 << 20
NAMES = ["..", ".", "a/b", "/", "", "x" * 300, "a\nb", "a\x1b[2Jb", ".hidden", "a@b", "a b", "-" + "x", "ä"]


def one_line(done, code, *words):
    """The one line that a refusal is."""
    assert done.returncode == code, f"{done.args}: {done.returncode}\n{done.stdout}{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line != "Run with --help for more information."]
    assert len(lines) == 1 and lines[0].isprintable(), done.stderr
    assert done.stdout == ""
    for word in words:
        assert str(word) in lines[0], lines[0]
    return lines[0]


@pytest.fixture(scope="module", name="host")
def _host():
    """One host for all: whatever is refused here leaves it as it was."""
    with BerthHost() as host:
        host.create("disk", "4M")
        yield host
        assert [volume["name"] for volume in host.json("volume", "list")["volumes"]] == ["disk"]


# --- Usage.

@pytest.mark.parametrize("words", [
    ["nonsense"], ["volume", "nonsense"], ["volume", "list", "nonsense"], ["volume", "list", "--nonsense"],
    ["--nonsense"], ["checkpoint", "create", "disk", "--nonsense"], ["volume", "list", "-o", "nonsense"]])
def test_a_word_that_is_not_known_is_named(host, words):
    one_line(host.refused(*words), 2, "nonsense")


@pytest.mark.parametrize("words", [
    [], ["volume"], ["volume", "create"], ["volume", "create", "new", "--size"], ["changes", "disk"],
    ["checkpoint", "info", "disk"], ["checkpoint", "info", "@x"], ["checkpoint", "delete", "disk@"]])
def test_what_is_missing_is_a_mistake_of_usage(host, words):
    one_line(host.refused(*words), 2)


@pytest.mark.parametrize("size", ["0", "3", "513", "1000", "-1", "-4M", "1E", "1.3", "much", "0x10", "65T", "9" * 30])
def test_a_size_that_cannot_be_is_refused(host, size):
    one_line(host.refused("volume", "create", "new", f"--size={size}"), 2, "size")
    one_line(host.refused("volume", "resize", "disk", f"--size={size}"), 2, "size")
    assert host.json("volume", "info", "disk")["size"] == 4 * MIB


@pytest.mark.parametrize("block", ["0", "1K", "3K", "6000", "4M", "5G", "-4K", "small"])
def test_a_block_size_out_of_range_is_refused(host, block):
    one_line(host.refused("volume", "create", "new", "--size", "1M", f"--block={block}"), 2, "size")


def test_names_that_could_be_paths_or_confuse_people_are_refused(host):
    for name in NAMES:
        one_line(host.refused("volume", "create", "--size", "1M", "--", name), 2)
        if not name.startswith("-"):
            one_line(host.refused("volume", "info", name), 2)
            one_line(host.refused("volume", "delete", name), 2)
            one_line(host.refused("checkpoint", "create", "disk", "--name", name), 2)
            one_line(host.refused("checkpoint", "create", "disk", "--name", "good", "--refpoint", name), 2)
            one_line(host.refused("refpoint", "create", "disk", "--name", name), 2)
    assert host.json("checkpoint", "list") == {"checkpoints": []}
    assert host.json("refpoint", "list") == {"refpoints": []}
    assert sorted(path.name for path in (host.state_dir / "volumes").iterdir()) == ["disk"]


@pytest.mark.parametrize("option", ["--import", "--adopt", "--backing"])
def test_only_files_and_block_devices_are_taken(host, option):
    pipe = host.directory / f"pipe{option}"
    os.mkfifo(pipe)  # nobody writes to it: an open that waits would wait for ever
    image = host.directory / f"image{option}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True, timeout=30)
    with open(image, "r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 64)  # an image by its magic number alone
    for size in ([], ["--size", "1M"]):
        create = ["volume", "create", "new", *size, option]
        one_line(host.refused(*create, "/nonexistent/disk"), 3, "/nonexistent/disk", "No such")
        for path in (host.directory, pipe, "/dev/null"):
            one_line(host.refused(*create, path), 2, path, "neither a file nor a block device")
    assert str(image) in host.refused("volume", "create", "new", option, image).stderr
    if option != "--backing":
        empty = host.directory / f"empty{option}"
        empty.touch()
        one_line(host.refused("volume", "create", "new", option, empty), 2, "size")
    assert not (host.state_dir / "volumes" / "new").exists()


def test_two_origins_of_a_volume_are_one_too_many(host):
    one_line(host.refused("volume", "create", "new", "--import", "/dev/null", "--adopt", "/dev/null"), 2, "at most one")


@pytest.mark.parametrize("where", [
    ["--nbd", "nonsense"], ["--nbd", "127.0.0.1:99999"], ["--nbd-socket", "/" + "x" * 200],
    ["--nbd", "127.0.0.1:0", "--nbd-socket", "/tmp/x"]])
def test_an_address_that_is_none_is_refused(host, where):
    one_line(host.refused("volume", "serve", "disk", *where), 2)
    assert host.json("volume", "info", "disk")["listeners"] == []


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_other_machines_get_nothing_in_the_clear(host, address):
    one_line(host.refused("volume", "serve", "disk", "--nbd", address), 4, "TLS")
    assert host.json("volume", "info", "disk")["listeners"] == []


def test_a_port_and_a_socket_that_are_taken_are_refused(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_line(host.refused("volume", "serve", "disk", "--nbd", f"127.0.0.1:{port}"), 4, port, "in use")
    file = host.directory / "file"
    file.write_text("somebody's")
    one_line(host.refused("volume", "serve", "disk", "--nbd-socket", file), 4, file)
    assert file.read_text() == "somebody's"


# --- Reference points.

class Points:
    """Two volumes with reference points, one of them with changes since."""

    def __init__(self, host):
        self.host = host
        for name in ("one", "two"):
            host.create(name, "4M")
            host.cli("refpoint", "create", name, "--name", f"of-{name}")
        host.cli("checkpoint", "create", "one", "--name", "early")
        client = connect(host.serve("one"))
        client.pwrite(b"\1" * 65536, 0)
        client.shutdown()
        host.cli("refpoint", "create", "one", "--name", "late")
        self.record = self.exported("one@of-one")

    def exported(self, point):
        return json.loads(self.host.cli("refpoint", "export", point))

    def changes(self, *options):
        return self.host.refused("changes", "one", *options)

    def imported(self, text):
        path = self.host.directory / "record.json"
        path.write_text(text)
        return self.host.refused("refpoint", "import", "one", path)


@pytest.fixture(name="points")
def _points():
    with BerthHost() as host:
        points = Points(host)
        yield points
        assert host.changes("one", "of-one") == ([(0, 65536)], True)


def test_a_reference_point_that_is_not_this_volumes_asks_for_a_full_backup(points):
    host = points.host
    one_line(points.changes("--since", "of-two"), 4, "of-two", "full backup")
    one_line(points.changes("--since", "never"), 4, "never", "full backup")
    one_line(points.changes("--since", "of-one", "--nonce", str(uuid.uuid4())), 4, "of-one", "full backup")
    one_line(points.changes("--since", "of-one", "--nonce", "nonsense"), 2, "nonce")
    one_line(points.changes("--since", "late", "--until", "early"), 4, "early", "older", "late")
    one_line(points.changes("--since", "of-one", "--until", "never"), 3, "never")
    assert host.changes("one", "of-one", "--nonce", points.record["nonce"]) == ([(0, 65536)], True)


def test_a_name_that_was_given_to_another_reference_point_is_told_apart_by_its_nonce(points):
    host = points.host
    host.cli("refpoint", "create", "one", "--name", "daily")
    old = points.exported("one@daily")
    host.cli("refpoint", "delete", "one@daily")
    one_line(points.changes("--since", "daily"), 4, "daily", "full backup")
    host.cli("refpoint", "create", "one", "--name", "daily")
    one_line(points.changes("--since", "daily", "--nonce", old["nonce"]), 4, "daily", "full backup")
    assert host.changes("one", "daily") == ([], True)
    one_line(points.imported(json.dumps(old)), 4, "daily", "full backup")


def test_records_that_were_made_up_are_not_vouched_for(points):
    record = points.record
    for wrong in ({"nonce": str(uuid.uuid4())}, {"epoch": record["epoch"] + 100}, {"volume_id": str(uuid.uuid4())}):
        one_line(points.imported(json.dumps({**record, **wrong})), 4, "full backup")
    one_line(points.imported(json.dumps({**record, "version": 99})), 1, "99")
    for text in ("", "{", "[]", "null", '{"format": "else"}', json.dumps({**record, "nonce": 7}),
                 json.dumps(record)[:-20], "\0" * 100, "[" * 10000):
        one_line(points.imported(text), 2)
    one_line(points.host.refused("refpoint", "import", "one", "/nonexistent"), 3, "/nonexistent")


def test_a_volume_that_was_put_back_from_a_copy_vouches_for_nothing(points):
    """Neither for what was made before the copy (its data file is another one now) nor for what it never heard of."""
    host = points.host
    before = host.directory / "copy"
    host.cli("volume", "check", "two")  # ends its keeper: it is closed
    directory = host.state_dir / "volumes" / "two"
    shutil.copytree(directory, before)
    client = connect(host.serve("two"))
    client.pwrite(b"\2" * 65536, MIB)
    client.shutdown()
    host.cli("refpoint", "create", "two", "--name", "after-the-copy")
    host.cli("volume", "unserve", "two")
    host.cli("volume", "check", "two")
    shutil.rmtree(directory)
    before.rename(directory)
    for point in ("of-two", "after-the-copy"):
        one_line(host.refused("changes", "two", "--since", point), 4, point, "full backup")
    assert read_export(host.serve("two")) == bytes(4 * MIB)


# --- Two who want one volume.

def test_a_second_keeper_of_a_volume_is_refused(host):
    uri = host.serve("disk")
    pid = host.keeper_pid("disk")
    elsewhere = host.directory / "r2"  # as another daemon's, that shares nothing with this one but the volume
    commands = [["keeper", "--id", "disk", "--volume", "disk"], ["keeper", "--id", "another", "--volume", "disk"],
                ["--run-dir", elsewhere, "keeper", "--id", "disk", "--volume", "disk"],
                ["--run-dir", elsewhere, "volume", "check", host.state_dir / "volumes" / "disk"]]
    # At once: who finds a lock taken waits for a while, as its owner may be dying.
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(child(program(), *words, env=host.environment, text=True, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE)) for words in commands]
        ends = [(other.communicate(timeout=LIMIT_S)[1], other.returncode) for other in others]
    assert [code for _, code in ends] == [1, 1, 1, 4], ends
    for text, _ in ends[:3]:
        assert "in_use" in text.splitlines()[-1], text
    assert "disk" in ends[3][0] and len(ends[3][0].splitlines()) == 1, ends[3][0]
    assert host.keeper_pid("disk") == pid and read_export(uri) == bytes(4 * MIB)
    host.cli("volume", "unserve", "disk")


# --- TLS.

def tls_client(uri, directory):
    """What a client with these certificates reads; they are refused with the first answer at the latest."""
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri.replace("nbds://127.0.0.1", "nbds://localhost") + f"?tls-certificates={directory}")
    return handle.pread(512, 0)


def test_only_clients_of_the_authority_are_served(host, tmp_path):
    ours, others, nobody = certificates(tmp_path / "ours"), certificates(tmp_path / "others"), tmp_path / "nobody"
    nobody.mkdir()
    shutil.copy(ours / "ca-cert.pem", nobody)
    stranger = shutil.copytree(others, tmp_path / "stranger")
    shutil.copy(ours / "ca-cert.pem", stranger)
    uri = host.serve("disk", "--nbd", "0.0.0.0:0", "--tls-dir", ours).replace("0.0.0.0", "127.0.0.1")
    assert uri.startswith("nbds://")
    for directory in (nobody, stranger):
        with pytest.raises(nbd.Error):
            tls_client(uri, directory)
    with pytest.raises(nbd.Error):
        nbd.NBD().connect_uri(uri.replace("nbds", "nbd"))
    assert tls_client(uri, ours) == bytes(512)
    host.cli("volume", "unserve", "disk")


@pytest.mark.parametrize("missing", ["server-key.pem", "server-cert.pem", "ca-cert.pem"])
def test_tls_files_that_will_not_do_are_refused_before_anybody_is_served(host, tmp_path, missing):
    directory = certificates(tmp_path / "tls")
    whole = (directory / missing).read_bytes()
    for damage in (b"", b"no certificate", whole[:len(whole) // 2]):
        (directory / missing).write_bytes(damage)
        refused = host.refused("volume", "serve", "disk", "--nbd", "127.0.0.1:0", "--tls-dir", directory)
        assert one_line(refused, refused.returncode, directory) and refused.returncode in (1, 2, 4), refused.stderr
    (directory / missing).unlink()
    refused = host.refused("volume", "serve", "disk", "--nbd", "127.0.0.1:0", "--tls-dir", directory)
    one_line(refused, 3, directory / missing)
    assert host.json("volume", "info", "disk")["listeners"] == []
