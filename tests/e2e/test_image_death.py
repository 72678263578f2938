"""Container images, while daemons die, disks are full and bits rot: an image is there as a whole or not at all, and the next daemon
finds nothing but whole ones."""

import os
import pathlib
import re
import signal
import tempfile

import pytest
from berth_host import ROOT, BerthHost
from image_tools import fixture_host, fixture_private_mounts  # noqa: F401
from image_tools import MIB, check_file_system, imported, leftovers_are_none, names, refused, simple, workers
from oci_images import Image, Registry, digest_of, file, layer, write_layout
from volume_tools import run, wait_until


def fault_points():
    text = "".join(path.read_text() for path in sorted((ROOT / "src/container").glob("*.cc")))
    return re.findall(r'fault_point\("([^"]*)"\)', text)


def test_every_fault_point_is_met_in_a_test():
    assert set(fault_points()) == set(MAKING) | set(REMOVING) and len(fault_points()) == len(set(fault_points()))


MAKING = ["image.copied", "image.unpacked", "image.made", "image.linked", "image.moved", "image.published"]
REMOVING = ["image.unlisted", "image.removed"]


@pytest.fixture(name="faulty")
def _faulty():
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as place:
        host = BerthHost(directory=place, start=False)
        host.environment["BERTH_FAULT_POINTS"] = str(pathlib.Path(place) / "fault")
        host.start()
        with host:
            yield host
            leftovers_are_none(host)


def dies_at(host, point, *words):
    """The command fails as the daemon dies there; the next one is started."""
    (host.directory / "fault").write_text(point)
    host.refused(*words, timeout_s=60)
    assert host.daemon.wait() == -signal.SIGKILL and not (host.directory / "fault").exists()
    host.start()


@pytest.mark.parametrize("point", MAKING)
def test_a_daemon_that_dies_while_it_makes_an_image_leaves_the_whole_of_it_or_nothing(faulty, tmp_path, point):
    before = imported(faulty, [("app:1", simple(b"before"))])
    path = write_layout(tmp_path / "image", [("app:1", simple(b"after"))])
    dies_at(faulty, point, "image", "import", path)
    after = simple(b"after").digest
    assert names(faulty) == {"docker.io/library/app:1": after if point == "image.published" else before["digest"]}
    wait_until(lambda: workers(faulty) == [], "the end of its programs")
    leftovers_are_none(faulty)
    assert faulty.json("image", "import", path)["digest"] == after
    check_file_system(faulty.json("image", "info", "app:1"), [[file("base", b"b" * 100_000)], [file("own", b"after")]])


@pytest.mark.parametrize("point", REMOVING)
def test_a_daemon_that_dies_while_it_deletes_an_image_has_deleted_it(faulty, point):
    kept = imported(faulty, [("kept:1", simple(b"1"))])
    imported(faulty, [("app:1", simple(b"2"))])
    dies_at(faulty, point, "image", "delete", "app:1")
    assert names(faulty) == {"docker.io/library/kept:1": kept["digest"]}


def test_programs_end_with_the_daemon_that_started_them(host):
    with Registry() as registry:
        registry.add("app:1", simple())
        registry.hold = digest_of(simple().layers[0].blob)
        host.cli("image", "pull", f"{registry.address}/app:1", "--tls-verify=false", "--detach")
        assert registry.held.wait(30) and workers(host) != []
        host.daemon.kill()
        wait_until(lambda: workers(host) == [], "the end of skopeo")
    host.start()
    leftovers_are_none(host)
    assert host.json("image", "list") == {"images": []}


@pytest.mark.parametrize("room", [256 << 10, 3 * MIB, 7 * MIB, 11 * MIB])
def test_a_full_disk_is_one_error_and_leaves_nothing_half_made(room):
    """Room for less and for more of an image of 4 MiB: while it is copied, unpacked, and made a file system."""
    image = Image([layer([file("big", os.urandom(4 * MIB))])])
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as place:
        store = pathlib.Path(place) / "s" / "images"
        store.mkdir(parents=True)
        run("mount", "-t", "tmpfs", "-o", "size=32M", "tmpfs", store)
        try:
            with BerthHost(directory=place) as host:
                path = write_layout(pathlib.Path(place) / "image", [("app:1", image)])
                with open(store / ".ballast", "wb", buffering=0) as ballast:
                    while (free := os.statvfs(store)).f_bavail * free.f_frsize > room:
                        ballast.write(bytes(min(MIB, free.f_bavail * free.f_frsize - room)))
                refused(host, 1, path, "o space left on device", line=["image", "import", path])
                (store / ".ballast").unlink()
                leftovers_are_none(host)
                assert host.json("image", "import", path)["digest"] == image.digest
                leftovers_are_none(host)
        finally:
            run("umount", store)


def test_a_layer_that_has_rotted_in_the_store_is_found_out(host, tmp_path):
    base = layer([file("base", os.urandom(MIB))])
    imported(host, [("app:1", simple(b"1", base))])
    blob = host.state_dir / "images/blobs/sha256" / digest_of(base.blob)[7:]
    whole = blob.read_bytes()
    with open(blob, "r+b") as rotten:
        rotten.seek(MIB // 2)
        rotten.write(bytes(8))
    path = write_layout(tmp_path / "image", [("app:2", simple(b"2", base))])
    refused(host, 1, path, line=["image", "import", path])
    assert list(names(host)) == ["docker.io/library/app:1"]
    blob.write_bytes(whole)


def test_a_store_that_is_not_readable_leaves_the_rest_of_the_host_alone(host):
    imported(host, [("app:1", simple())])
    index = host.state_dir / "images/index.json"
    text = index.read_text()
    index.write_text("nonsense")
    host.restart()
    host.create("disk", "1M")
    refused(host, 1, "index.json", line=["image", "list"])
    index.write_text(text)
    host.restart()
    assert list(names(host)) == ["docker.io/library/app:1"]


def test_an_image_whose_record_is_lost_can_be_deleted(host):
    image = imported(host, [("app:1", simple(b"1"))])
    imported(host, [("kept:1", simple(b"2"))])
    (host.state_dir / "images/unpacked" / image["digest"][7:] / "image.json").unlink()
    assert list(names(host)) == ["docker.io/library/kept:1"]
    host.cli("image", "delete", image["digest"])
