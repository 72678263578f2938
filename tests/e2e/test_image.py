"""Container images: imported, listed, deleted. Then:

1. the file system of an image is what its layers mean, entry by entry, whoever made it and wherever it came from;
2. what images share is there once, and what nobody needs is gone;
3. what is wrong is refused in one line that names it, and leaves nothing behind."""

import os
import pathlib
import re
import shutil
import tarfile
import tempfile

import pytest
from berth_host import ROOT, BerthHost, program
from image_tools import fixture_host, fixture_private_mounts  # noqa: F401
from image_tools import LAYERS, MIB, check_file_system, imported, many_layers, mounted, names, refused, simple
from oci_images import (CONFIG, LAYER, Image, Layer, digest_of, file, hard_link, layer, symlink, write_docker_archive,
                        write_layout)
from volume_tools import run


@pytest.mark.parametrize("kind", ["layout", "oci", "docker"])
def test_the_file_system_is_what_the_layers_mean(host, kind):
    image = imported(host, [("example.org/app:1", many_layers())], kind=kind)
    check_file_system(image, LAYERS)
    assert image["names"] == ["example.org/app:1"]
    assert image["config"] == {
        "entrypoint": ["/bin/sh", "-c"], "command": ["true"], "environment": ["PATH=/bin", "A=b c"], "working_directory": "/var",
        "user": "1000:42", "exposed_ports": ["80/tcp"], "volumes": ["/data"], "stop_signal": "SIGQUIT", "labels": {"a": "b"}}
    assert (image["os"], image["architecture"], image["created_at"]) == ("linux", "amd64", "2024-05-06T07:08:09Z")
    assert image["size"] == os.stat(image["file_system"]).st_size
    assert [part["diff_id"] for part in image["layers"]] == [digest_of(part.tar) for part in many_layers().layers]
    if kind != "docker":
        assert image["digest"] == many_layers().digest


@pytest.mark.parametrize("compression", ["", "zstd"])
def test_layers_that_are_packed_otherwise_mean_the_same(host, compression):
    if compression and not shutil.which(compression):
        pytest.skip(f"needs {compression}")
    image = imported(host, [(None, many_layers(compression))])
    check_file_system(image, LAYERS)
    assert image["names"] == []
    assert imported(host, [(None, many_layers(compression))])["digest"] == image["digest"]


def test_the_same_image_is_the_same_bytes_on_every_host(host):
    image = imported(host, [("app:1", many_layers())])
    with tempfile.TemporaryDirectory(prefix="berth-test-", dir="/var/tmp") as place, BerthHost(state_dir=place) as other:
        again = imported(other, [("app:1", many_layers())], kind="oci")
        assert again["digest"] == image["digest"]
        assert pathlib.Path(again["file_system"]).read_bytes() == pathlib.Path(image["file_system"]).read_bytes()


def test_an_image_without_layers_or_anything_to_run_is_an_image(host):
    image = imported(host, [("empty:1", Image([]))])
    check_file_system(image, [])
    assert image["config"]["command"] == image["config"]["entrypoint"] == []


def test_what_an_image_says_of_itself_does_not_reach_the_terminal_as_it_is(host):
    image = imported(host, [("app:1", Image([], {"Cmd": ["\x1b[2J", "a\nb"], "User": "\x07"}))])
    assert image["config"]["command"] == ["\x1b[2J", "a\nb"]
    for words in (("image", "list"), ("image", "info", "app:1")):
        assert all(line.isprintable() for line in host.cli(*words).splitlines())


# --- Names, and what is shared.

def test_names_are_moved_shown_and_deleted(host):
    one = imported(host, [("app:1", simple(b"1"))])
    assert host.cli("image", "list").splitlines()[0].split() == ["NAME", "DIGEST", "CREATED", "SIZE"]
    assert host.cli("image", "list").splitlines()[1].split()[:3] == [
        "docker.io/library/app:1", one["digest"][7:19], "2024-05-06T07:08:09Z"]
    again = imported(host, [("app:1", simple(b"1"))], "--name", "registry.example.org/other:2")
    assert again["digest"] == one["digest"] and again["names"] == ["docker.io/library/app:1", "registry.example.org/other:2"]
    assert again["imported_at"] == one["imported_at"]
    two = imported(host, [("app:1", simple(b"2"))])
    assert names(host) == {"docker.io/library/app:1": two["digest"], "registry.example.org/other:2": one["digest"]}
    three = imported(host, [("app:1", simple(b"3"))])
    assert "<none>" in host.cli("image", "list")
    assert [image["digest"] for image in host.json("image", "list")["images"]] == [three["digest"], one["digest"], two["digest"]]
    assert host.json("image", "info", two["digest"][7:19])["digest"] == two["digest"]
    gone = host.json("image", "delete", "app:1")
    assert gone["deleted"] is True and gone["digest"] == three["digest"] and gone["freed"] > 0
    imported(host, [("app:2", simple(b"1"))])
    kept = host.json("image", "delete", "registry.example.org/other:2")
    assert kept == {"digest": one["digest"], "names": ["registry.example.org/other:2"], "deleted": False, "freed": 0}
    assert host.cli("image", "delete", one["digest"]).splitlines()[0] == "untagged docker.io/library/app:2"
    refused(host, 3, "app:2", line=["image", "info", "app:2"])
    host.cli("image", "delete", two["digest"][7:19])
    assert host.json("image", "list") == {"images": []}


def test_images_share_layers_and_the_last_one_frees_them(host):
    base = layer([file("base", os.urandom(MIB))])
    images = [imported(host, [(f"app:{i}", simple(bytes([i]), base))]) for i in range(3)]
    blobs = host.state_dir / "images/blobs/sha256"
    assert len(list(blobs.iterdir())) == 3 * 3 + 1
    shared = blobs / digest_of(base.blob)[7:]
    for i, image in enumerate(images):
        assert shared.exists()
        freed = host.json("image", "delete", f"app:{i}")["freed"]
        assert (freed > 2 * MIB) == (i == 2) and freed >= image["size"]
    assert list(blobs.iterdir()) == []


def test_a_digest_may_be_cut_to_twelve_digits(host):
    image = imported(host, [("app:1", simple())])
    refused(host, 2, line=["image", "info", image["digest"][7:18] + "!"])
    refused(host, 3, image["digest"][7:18], line=["image", "info", image["digest"][7:18]])
    assert host.json("image", "info", image["digest"][:19])["digest"] == image["digest"]


def test_events_tell_of_images(host):
    mark = host.last_event()
    imported(host, [("app:1", simple())])
    assert "docker.io/library/app:1" in host.wait_for_event("image_created", since=mark)["message"]
    host.cli("image", "delete", "app:1")
    assert "docker.io/library/app:1" in host.wait_for_event("image_deleted", since=mark)["message"]


def test_an_archive_with_several_images_is_asked_for_one(host, tmp_path):
    images = [("app:1", simple(b"1")), ("app:2", simple(b"2"))]
    for kind, write in (("layout", write_layout), ("docker", write_docker_archive)):
        path = write(tmp_path / f"{kind}:archive", images)
        refused(host, 2, "app:1, app:2", "--image", line=["image", "import", path])
        refused(host, 2, "app:3", line=["image", "import", path, "--image", "app:3"])
        image = host.json("image", "import", path, "--image", "docker.io/library/app:2", "--name", kind)
        assert image["names"] == [f"docker.io/library/{kind}:latest"]
        with mounted(image) as root:
            assert (root / "own").read_bytes() == b"2"


def test_a_layout_is_also_named_as_other_tools_name_it(host, tmp_path):
    write_layout(tmp_path / "app", [("latest", simple())])
    done = host.json("image", "import", "oci:app", cwd=tmp_path)
    assert done["names"] == [] and done["source"] == str(tmp_path / "app")


def test_the_readmes_lines_do_what_they_say(host, tmp_path):
    """But for those that fetch something from the internet."""
    section = (ROOT / "README.md").read_text().split("## A container image")[1]
    lines = [line for line in re.search(r"```\n(.*?)```", section, re.S)[1].splitlines() if "docker://" not in line]
    write_layout(tmp_path / "alpine", [("latest", simple(b"1"))])
    imported(host, [("debian:12", simple(b"2"))])
    path = f"{pathlib.Path(program()).parent}:{os.environ['PATH']}"
    done = run("bash", "-euxc", "\n".join(lines), cwd=tmp_path, env={**host.environment, "PATH": path})
    assert len(lines) == 4 and "docker.io/library/alpine:3.20" in done.stdout and "deleted sha256:" in done.stdout
    assert list(names(host)) == ["docker.io/library/alpine:3.20"]


# --- What is wrong.

def test_files_that_are_no_images_are_refused(host, tmp_path):
    refused(host, 3, tmp_path / "none", line=["image", "import", tmp_path / "none"])
    (tmp_path / "text").write_text("text")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "text", "text")
    for name in ("text", "empty", "directory", "tar"):
        refused(host, 2, tmp_path / name, "docker save", line=["image", "import", tmp_path / name])
    whole = write_docker_archive(tmp_path / "whole", [("a:1", simple())]).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:len(whole) // 2])
    refused(host, 1, tmp_path / "cut", line=["image", "import", tmp_path / "cut"])


@pytest.mark.parametrize("name", ["Upper", "a b", "a:b:c", "../x", "a//b", "app:", "-a", "a@sha256:1"])
def test_names_that_are_none_are_refused(host, name):
    refused(host, 2, name, line=["image", "pull", f"docker://{name}"])
    refused(host, 2, name, line=["image", "import", "/nonexistent", f"--name={name}"])
    refused(host, 2, line=["image", "delete", "--", name])


def broken(change):
    """A function for write_layout() that does something to the first layer's blob."""
    def edit(blobs):
        digest = digest_of(simple().layers[0].blob)
        blobs[digest] = change(blobs[digest])
    return edit


def wrong_images():
    good = layer([file("x", b"x")])
    encrypted = Layer(good.tar, good.blob, LAYER + "+gzip+encrypted")
    other_tar = Layer(layer([file("y", b"y")]).tar, good.blob, good.media_type)
    no_tar = Layer(b"x" * 5000, b"x" * 5000, LAYER)
    artifact = Image([good])
    return {
        "a flipped bit": (simple(), {"change": broken(lambda blob: blob[:50] + bytes([blob[50] ^ 1]) + blob[51:])},
                          ["igest", digest_of(simple().layers[0].blob)[7:]]),
        "a layer that is cut": (simple(), {"change": broken(lambda blob: blob[:-10])}, []),
        "a layer that is missing": (simple(), {"change": lambda blobs: blobs.pop(digest_of(simple().layers[0].blob))}, []),
        "another architecture": (simple(architecture="s390x"), {}, ["linux/s390x", "linux/amd64"]),
        "another system": (simple(os="windows"), {}, ["windows/amd64"]),
        "an encrypted layer": (Image([encrypted]), {}, ["encrypted"]),
        "a tar that is not the one meant": (Image([other_tar]), {}, []),
        "no tar": (Image([no_tar]), {}, []),
        "a config that is wrong": (Image([good], {"Env": "PATH=/"}), {}, []),
        "an artifact": (artifact, {"change": lambda blobs: blobs.update(
            {artifact.digest: blobs[artifact.digest].replace(CONFIG.encode(), CONFIG.replace("image", "other").encode())})}, []),
        "no manifest": (simple(), {"change": lambda blobs: blobs.pop(simple().digest)}, []),
        "a root that is a file": (Image([layer([file(".", b"x")])]), {}, []),
        "a link to what is not there": (Image([layer([hard_link("h", "../../etc/passwd")])]), {}, []),
    }


@pytest.mark.parametrize("what", list(wrong_images()))
def test_an_image_that_is_wrong_is_refused_and_leaves_nothing_behind(host, tmp_path, what):
    image, options, words = wrong_images()[what]
    path = write_layout(tmp_path / "wrong", [("app:1", image)], **options)
    refused(host, 1, path, *words, line=["image", "import", path])
    assert host.json("image", "list") == {"images": []}
    imported(host, [("app:1", simple())])


HOSTILE = {
    "dots": [file("../../../../../../../../../..{out}/pwned", b"x")],
    "absolute": [file("{out}/pwned", b"x")],
    "a link to a directory": [symlink("s", "{out}"), file("s/pwned", b"x")],
    "a relative link": [symlink("s", "../../../../../../../..{out}"), file("s/pwned", b"x")],
    "a link to a file": [symlink("s", "{out}/kept"), file("s", b"x"), hard_link("h", "s")],
    "a hard link to a link": [symlink("s", "{out}/kept"), hard_link("h", "s"), file("h", b"x")],
    "a whiteout above": [file("../../../../../../../../../..{out}/.wh.kept")],
    "a whiteout through a link": [symlink("s", "{out}"), file("s/.wh.kept")],
    "an opaque link": [symlink("s", "{out}"), file("s/.wh..wh..opq")],
    "a whiteout of all": [file(".wh..")],
    "a whiteout of what is above": [file(".wh...")],
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_layer_reaches_nothing_outside(host, tmp_path, name):
    """It may be refused, or it means something inside of the image: as it would in a root of its own."""
    (tmp_path / "kept").write_text("kept")
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    members = []
    for info, data in HOSTILE[name]:
        copy = tarfile.TarInfo(info.name.format(out=tmp_path))
        copy.type, copy.mode, copy.linkname = info.type, info.mode, info.linkname.format(out=tmp_path)
        members.append((copy, data))
    with tempfile.TemporaryDirectory(prefix="berth-image-", dir="/dev/shm") as place:
        path = write_layout(pathlib.Path(place) / "image", [("app:1", Image([layer([file("base", b"b")]), layer(members)]))])
        done = host.run("image", "import", path, timeout_s=60)
    assert done.returncode in (0, 1) and len(done.stderr.splitlines()) == done.returncode, done.stderr
    assert (tmp_path / "kept").read_text() == "kept"
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_cannot_be_had_without_a_program_says_which(host, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("setpriv", "skopeo", "umoci"):
        (bare / name).symlink_to(shutil.which(name))
    host.stop()
    host.environment["PATH"] = str(bare)
    host.start()
    path = write_layout(tmp_path / "image", [("app:1", simple())])
    refused(host, 4, "mkfs.erofs", "apt-get install erofs-utils", line=["image", "import", path])
    (bare / "skopeo").unlink()
    refused(host, 4, "apt-get install skopeo", line=["image", "import", path])
