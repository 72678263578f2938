"""The command line, with a real daemon and real keepers: volumes, checkpoints, reference points, changes."""

import json
import os
import pathlib
import subprocess

import pytest


def write(uri, offset, length, pattern):
    """Writes a pattern through NBD."""
    subprocess.run(["qemu-io", "-f", "raw", "-c", f"write -P {pattern} {offset} {length}", uri],
                   check=True, timeout=30, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_volume_is_made_listed_shown_resized_and_deleted(host):
    made = host.create("disk1", "64M", "--block", "128K")
    assert made["size"] == 64 << 20 and made["block_size"] == 128 << 10 and made["state"] == "closed"
    table = host.cli("volume", "list").splitlines()
    assert table[0].split() == ["NAME", "SIZE", "BLOCK", "STATE", "BACKING"]
    assert table[1].split()[:4] == ["disk1", "64.0", "MiB", "128.0"]
    assert host.json("volume", "info", "disk1")["id"] == made["id"]
    assert host.json("volume", "resize", "disk1", "--size", "128M") == {"name": "disk1", "size": 128 << 20}
    assert host.json("volume", "info", "disk1")["size"] == 128 << 20
    assert host.cli("volume", "delete", "disk1") == ""
    assert host.json("volume", "list") == {"volumes": []}
    assert not (host.state_dir / "volumes" / "disk1").exists()


def test_exit_codes_say_what_kind_of_failure_it_was(shared_host):
    host = shared_host
    host.create("codes")
    assert host.refused("volume", "create", "other", "--size", "banana").returncode == 2
    assert host.refused("volume", "frobnicate").returncode == 2
    assert host.refused("volume", "create", "other").returncode == 2
    assert host.refused("volume", "info", "missing").returncode == 3
    assert host.refused("checkpoint", "info", "codes@missing").returncode == 3
    assert host.refused("volume", "create", "codes", "--size", "1M").returncode == 4
    host.serve("codes")
    refused = host.refused("volume", "delete", "codes")
    assert refused.returncode == 4 and "unserve it first" in refused.stderr
    assert host.refused("job", "info", "nonesuch").returncode == 3


def test_a_checkpoint_keeps_its_bytes_and_changes_list_what_was_written(host):
    host.create("disk1")
    uri = host.serve("disk1")
    write(uri, "1M", "64k", 1)
    cut = host.json("checkpoint", "create", "disk1", "--name", "one", "--refpoint", "since-one")
    assert cut["group"] is None
    assert cut["volumes"][0]["checkpoint"]["name"] == "one"
    assert cut["volumes"][0]["refpoint"]["name"] == "since-one"
    write(uri, "1M", "64k", 2)
    write(uri, "8M", "128k", 3)
    assert host.changes("disk1", "since-one") == ([(1 << 20, 64 << 10), (8 << 20, 128 << 10)], True)
    host.cli("checkpoint", "create", "disk1", "--name", "two")

    full = host.directory / "full.raw"
    wrote = host.json("checkpoint", "export", "disk1@one", full)
    assert wrote["path"] == str(full) and wrote["since"] is None
    assert full.read_bytes()[1 << 20:(1 << 20) + (64 << 10)] == b"\1" * (64 << 10)

    patched = host.json("checkpoint", "export", "disk1@two", full, "--since", "since-one")
    assert patched["bytes"] == 192 << 10 and patched["extents"] == 2 and patched["exact"] is True
    data = full.read_bytes()
    assert len(data) == 64 << 20
    assert data[1 << 20:(1 << 20) + (64 << 10)] == b"\2" * (64 << 10)
    assert data[8 << 20:(8 << 20) + (128 << 10)] == b"\3" * (128 << 10)

    host.cli("checkpoint", "revert", "disk1@one")
    again = host.directory / "again.raw"
    host.cli("checkpoint", "create", "disk1", "--name", "three")
    host.cli("checkpoint", "export", "disk1@three", again)
    assert again.read_bytes()[1 << 20:(1 << 20) + (64 << 10)] == b"\1" * (64 << 10)


def test_changes_can_be_asked_for_a_part_of_the_disk_and_until_a_checkpoint(host):
    host.create("disk1")
    uri = host.serve("disk1")
    host.cli("refpoint", "create", "disk1", "--name", "start")
    write(uri, "1M", "64k", 1)
    write(uri, "9M", "64k", 1)
    host.cli("checkpoint", "create", "disk1", "--name", "until")
    write(uri, "17M", "64k", 1)
    assert host.changes("disk1", "start", "--until", "until")[0] == [(1 << 20, 64 << 10), (9 << 20, 64 << 10)]
    assert host.changes("disk1", "start", "--offset", "8M", "--length", "8M")[0] == [(9 << 20, 64 << 10)]
    text = host.cli("changes", "disk1", "--since", "start")
    assert text.splitlines()[0].split() == ["OFFSET", "LENGTH"]
    assert text.splitlines()[-1] == "192.0 KiB in 3 extents"


def test_more_extents_than_fit_into_a_page_come_together(host):
    host.create("disk1", "256M", "--block", "4K")
    uri = host.serve("disk1")
    host.cli("refpoint", "create", "disk1", "--name", "start")
    commands = [argument for i in range(20000) for argument in ("-c", f"write -q -P 7 {i * 8192} 4096")]
    for begin in range(0, len(commands), 8000):
        subprocess.run(["qemu-io", "-f", "raw", *commands[begin:begin + 8000], uri], check=True, timeout=120)
    extents, exact = host.changes("disk1", "start")
    assert exact and extents == [(i * 8192, 4096) for i in range(20000)]


def test_a_checkpoint_becomes_a_reference_point(host):
    host.create("disk1")
    uri = host.serve("disk1")
    host.cli("checkpoint", "create", "disk1", "--name", "sunday")
    write(uri, 0, "64k", 1)
    assert host.json("refpoint", "convert", "disk1@sunday")["name"] == "sunday"
    assert host.json("checkpoint", "list", "disk1") == {"checkpoints": []}
    assert [point["name"] for point in host.json("refpoint", "list")["refpoints"]] == ["sunday"]
    assert host.changes("disk1", "sunday") == ([(0, 64 << 10)], True)
    host.cli("refpoint", "delete", "disk1@sunday")
    refused = host.refused("changes", "disk1", "--since", "sunday")
    assert refused.returncode in (3, 4), refused.stderr


def test_an_exported_reference_point_comes_back_while_the_volume_knows_it(host):
    host.create("disk1")
    host.cli("refpoint", "create", "disk1", "--name", "sunday")
    record = host.directory / "sunday.json"
    host.cli("refpoint", "export", "disk1@sunday", record)
    exported = json.loads(record.read_text())
    assert exported["format"] == "berth-refpoint" and exported["version"] == 1
    assert json.loads(host.cli("refpoint", "export", "disk1@sunday")) == exported
    assert host.json("refpoint", "import", "disk1", record)["nonce"] == exported["nonce"]

    host.create("disk2")
    refused = host.refused("refpoint", "import", "disk2", record)
    assert refused.returncode == 4 and "another volume" in refused.stderr
    host.cli("refpoint", "delete", "disk1@sunday")
    refused = host.refused("refpoint", "import", "disk1", record)
    assert refused.returncode == 4 and "no record any more" in refused.stderr


def test_several_volumes_are_cut_at_once_or_not_at_all(host):
    for name in ("a", "b", "c"):
        host.create(name)
    cut = host.json("checkpoint", "create", "a", "b", "c", "--name", "together", "--refpoint", "ref")
    assert [part["volume"] for part in cut["volumes"]] == ["a", "b", "c"]
    listed = host.json("checkpoint", "list")["checkpoints"]
    assert {(point["volume"], point["group"]) for point in listed} == {(name, cut["group"]) for name in "abc"}
    assert len(host.json("refpoint", "list")["refpoints"]) == 3

    host.cli("checkpoint", "create", "b", "--name", "taken")
    refused = host.refused("checkpoint", "create", "a", "b", "c", "--name", "taken")
    assert refused.returncode == 4 and "volume 'b'" in refused.stderr
    for name in ("a", "c"):
        assert [point["name"] for point in host.json("checkpoint", "list", name)["checkpoints"]] == ["together"]
    # The refused cut holds no gate: all of them can be cut again at once.
    host.cli("refpoint", "create", "a", "b", "c", "--name", "later")


def test_a_volatile_checkpoint_says_so(shared_host):
    shared_host.create("quick")
    shared_host.cli("checkpoint", "create", "quick", "--name", "v", "--volatile")
    assert shared_host.json("checkpoint", "info", "quick@v")["durability"] == "volatile"


def test_a_clone_reads_another_volumes_checkpoint(host):
    host.create("golden")
    write(host.serve("golden"), "1M", "64k", 9)
    host.cli("checkpoint", "create", "golden", "--name", "base")
    write(host.serve("golden"), "1M", "64k", 1)
    made = host.json("volume", "create", "clone", "--backing", "volume:golden@base")
    assert made["size"] == 64 << 20
    read = subprocess.run(["qemu-io", "-f", "raw", "-c", "read -P 9 1M 64k", host.serve("clone")],
                          check=True, timeout=30, text=True, stdout=subprocess.PIPE)
    assert "Pattern verification failed" not in read.stdout
    refused = host.refused("checkpoint", "delete", "golden@base")
    assert refused.returncode == 4, refused.stderr
    host.cli("volume", "unserve", "golden")
    refused = host.refused("volume", "delete", "golden")
    assert refused.returncode == 4, refused.stderr
    assert host.json("volume", "populate", "clone")["copied"] > 0
    host.cli("volume", "unserve", "clone")
    host.cli("volume", "delete", "clone")
    host.cli("checkpoint", "delete", "golden@base")
    host.cli("volume", "delete", "golden")


def test_a_file_is_imported_and_a_file_is_adopted(host):
    source = host.directory / "source.raw"
    source.write_bytes(b"\5" * (1 << 20) + bytes(3 << 20))
    assert host.json("volume", "create", "copy", "--import", source)["size"] == 4 << 20
    assert host.json("volume", "create", "same", "--adopt", source)["adopted"] == str(source)
    for name in ("copy", "same"):
        host.cli("checkpoint", "create", name, "--name", "now")
        out = host.directory / f"{name}.raw"
        host.cli("checkpoint", "export", f"{name}@now", out)
        assert out.read_bytes() == source.read_bytes()
    host.cli("volume", "delete", "same")
    assert source.stat().st_size == 4 << 20


def test_a_file_system_is_made_in_a_new_volume(host):
    host.json("volume", "create", "data", "--size", "5G", "--file-system", "ext4")
    data = pathlib.Path(host.state_dir) / "volumes" / "data" / "data"
    subprocess.run(["/usr/sbin/e2fsck", "-fn", data], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    assert data.stat().st_size == 5 << 30
    assert data.stat().st_blocks * 512 < 64 << 20, "what is zero takes no space"
    for options, words in ((("--file-system", "ext4"), "needs a size"),
                           (("--file-system", "ext4", "--size", "1G", "--import", data), "at most one"),
                           (("--file-system", "ext4", "--size", "4K"), "cannot make an ext4 in 4096 bytes")):
        assert words in host.refused("volume", "create", "x", *options).stderr
    assert [volume["name"] for volume in host.json("volume", "list")["volumes"]] == ["data"]


def test_relative_paths_are_those_of_the_caller(host):
    host.create("disk1")
    host.cli("checkpoint", "create", "disk1", "--name", "now")
    host.cli("checkpoint", "export", "disk1@now", "out.raw", cwd=host.directory)
    assert (host.directory / "out.raw").stat().st_size == 64 << 20


def test_sizes_take_binary_suffixes(shared_host):
    assert shared_host.create("suffix", "1.5G")["size"] == 3 << 29


def test_a_backing_that_is_not_there_leaves_no_volume(host):
    refused = host.refused("volume", "create", "broken", "--backing", "/nonexistent.qcow2")
    assert refused.returncode == 3, refused.stderr
    assert host.json("volume", "list") == {"volumes": []}
    job = host.json("job", "list")["jobs"][0]
    assert job["state"] == "failed" and job["error"]["kind"] == "not_found"


def test_a_job_can_be_left_alone_watched_and_listed(host):
    source = host.directory / "source.raw"
    with open(source, "wb") as file:
        file.truncate(256 << 20)
    job = host.json("volume", "create", "copy", "--import", source, "--detach")
    assert job["kind"] == "volume.create" and job["target"] == "copy"
    lines = [json.loads(line) for line in host.cli("job", "watch", job["id"], "-o", "json").splitlines()]
    assert lines[-1]["state"] == "done" and lines[-1]["result"]["name"] == "copy"
    assert host.json("job", "info", job["id"])["state"] == "done"
    assert host.refused("job", "cancel", job["id"]).returncode == 4


def test_the_output_is_cut_short_quietly_when_nobody_reads_on(shared_host):
    for i in range(3):
        shared_host.create(f"many{i}")
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        done = subprocess.run([*shared_host_program(), "volume", "list"], env=shared_host.environment, stdout=pipe,
                              stderr=subprocess.PIPE, timeout=30, check=False)
    assert done.stderr == b""


def shared_host_program():
    from berth_host import program
    return [program()]


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_volume_is_served_where_it_was_told_to(host, transport):
    host.create("disk1")
    if transport == "unix":
        path = host.directory / "disk.sock"
        options = ["--nbd-socket", path]
        uri = host.serve("disk1", *options)
        assert uri == f"nbd+unix:///disk1?socket={path}"
    else:
        uri = host.serve("disk1", "--nbd", "127.0.0.1:0")
        assert uri.startswith("nbd://127.0.0.1:")
    info = json.loads(subprocess.run(["nbdinfo", "--json", uri], check=True, timeout=30, text=True, stdout=subprocess.PIPE).stdout)
    assert info["exports"][0]["export-size"] == 64 << 20
    assert host.json("volume", "info", "disk1")["listeners"][0]["uri"] == uri
    stopped = host.json("volume", "unserve", "disk1")["listeners"]
    assert [listener["uri"] for listener in stopped] == [uri]
    assert subprocess.run(["nbdinfo", "--size", uri], check=False, timeout=30, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL).returncode != 0
    assert host.refused("volume", "unserve", "disk1").returncode == 3


def test_tcp_to_other_machines_needs_tls_or_the_persons_word(host):
    host.create("disk1")
    refused = host.refused("volume", "serve", "disk1", "--nbd", "0.0.0.0:0")
    assert refused.returncode == 4, refused.stderr
    assert host.serve("disk1", "--nbd", "0.0.0.0:0", "--insecure").startswith("nbd://")


def test_a_read_only_volume_takes_no_writes(host):
    host.create("disk1")
    uri = host.serve("disk1", "--read-only")
    info = json.loads(subprocess.run(["nbdinfo", "--json", uri], check=True, timeout=30, text=True, stdout=subprocess.PIPE).stdout)
    assert info["exports"][0]["is_read_only"] is True
