"""What the tests of container images have in common: a host, images of many kinds of files, and what their layers mean.

    from image_tools import fixture_host, fixture_private_mounts  # noqa: F401 (pytest finds them by their names)
"""

import contextlib
import os
import pathlib
import stat
import tarfile
import tempfile

import pytest
from berth_host import BerthHost
from oci_images import (MTIME, Image, device, digest_of, directory, fifo, file, hard_link, layer, opaque, symlink, whiteout,
                        write_docker_archive, write_layout, write_oci_archive)
from volume_tools import run, take_private_mounts

MIB = 1 << 20
# cap_net_raw=p, as the kernel keeps it (VFS_CAP_REVISION_2)
CAPABILITY = "\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"


@pytest.fixture(name="private_mounts", scope="module", autouse=True)
def fixture_private_mounts():
    """Skips where images cannot be unpacked or looked at."""
    if os.geteuid() != 0 or not take_private_mounts():
        pytest.skip("layers have owners and devices, and are mounted: needs root, and a mount namespace of its own")


@contextlib.contextmanager
def image_host():
    """A host in memory, whose store has no leftovers in the end."""
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as place:
        with BerthHost(directory=place) as host:
            yield host
            leftovers_are_none(host)


@pytest.fixture(name="host")
def fixture_host():
    with image_host() as host:
        yield host


def leftovers_are_none(host):
    """Beside what the images need nothing is in the store, and nobody works on it."""
    store = host.state_dir / "images"
    assert {path.name for path in store.iterdir()} == {"oci-layout", "index.json", "blobs", "unpacked"}
    images = [host.json("image", "info", image["digest"]) for image in host.json("image", "list")["images"]]
    assert {path.name for path in (store / "unpacked").iterdir()} == {image["digest"][7:] for image in images}
    needed = {digest[7:] for image in images
              for digest in [image["digest"], image["config_digest"], *(part["digest"] for part in image["layers"])]}
    assert {path.name for path in (store / "blobs/sha256").iterdir()} == needed
    for path in (store / "blobs/sha256").iterdir():
        assert digest_of(path.read_bytes()) == f"sha256:{path.name}" and path.stat().st_nlink == 1
    assert workers(host) == []


def workers(host):
    """Processes that make images of this host."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(host.state_dir / "images") in os.readlink(entry / "cwd"):
                found.append(int(entry.name))
    return found


def names(host):
    """{name: digest}"""
    return {name: image["digest"] for image in host.json("image", "list")["images"] for name in image["names"]}


def imported(host, images, *options, kind="layout", **write_options):
    """Imports what is written to a directory of its own; the Image."""
    with tempfile.TemporaryDirectory(prefix="berth-image-", dir="/dev/shm") as place:
        path = pathlib.Path(place) / "image"
        if kind == "layout":
            write_layout(path, images, **write_options)
        elif kind == "oci":
            write_oci_archive(path, images, pathlib.Path(place) / "layout")
        else:
            write_docker_archive(path, images)
        return host.json("image", "import", path, *options, timeout_s=60)


def refused(host, code, *words, line):
    """Refused with that exit code, in one printable line with these words."""
    done = host.refused(*line, timeout_s=90)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.rstrip("\n").isprintable(), done.stderr
    for word in words:
        assert str(word) in done.stderr, done.stderr
    return done.stderr


def simple(content=b"1", base=None, **more):
    return Image([base or layer([file("base", b"b" * 100_000)]), layer([file("own", content)])], **more)


# --- What layers mean, and what an image has.

def meaning_of(layers):
    """{path: what is there} by the rules of image-spec's layer.md. Hard links have one object in common."""
    tree = {}

    def remove(path, keep=()):
        for name in list(tree):
            if (name == path or name.startswith(path + "/")) and name not in keep:
                del tree[name]

    for members in layers:
        mine = set()
        for info, data in members:
            name = info.name.strip("/")
            parent, _, last = name.rpartition("/")
            for depth in range(1, name.count("/") + 1):
                tree.setdefault("/".join(name.split("/")[:depth]), {"kind": stat.S_IFDIR, "mode": 0o755, "owner": (0, 0)})
            if last == ".wh..wh..opq":
                for path in [path for path in tree if path.startswith(parent + "/") and path not in mine]:
                    del tree[path]
            elif last.startswith(".wh."):
                remove(f"{parent}/{last[4:]}".strip("/"), keep=mine)
            elif info.type == tarfile.LNKTYPE:
                remove(name)
                tree[name] = tree[info.linkname.strip("/")]
                mine.add(name)
            else:
                kind = {tarfile.REGTYPE: stat.S_IFREG, tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK,
                        tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO}[info.type]
                if not (kind == stat.S_IFDIR and tree.get(name, {}).get("kind") == stat.S_IFDIR):
                    remove(name)
                tree[name] = {"kind": kind, "mode": info.mode, "owner": (info.uid, info.gid), "mtime": info.mtime,
                              "xattrs": {key.removeprefix("SCHILY.xattr."): value.encode()
                                         for key, value in info.pax_headers.items()}}
                if kind == stat.S_IFREG:
                    tree[name]["data"] = data
                elif kind == stat.S_IFLNK:
                    tree[name]["target"] = info.linkname
                elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                    tree[name]["device"] = (info.devmajor, info.devminor)
                mine.add(name)
    return tree


def has_what_it_means(root, tree):
    """Compares a directory with meaning_of()."""
    found = {str(path.relative_to(root)): path for path in pathlib.Path(root).rglob("*")}
    assert sorted(found) == sorted(tree)
    links = {}
    for name, path in found.items():
        want, status = tree[name], path.lstat()
        assert stat.S_IFMT(status.st_mode) == want["kind"], name
        assert (status.st_uid, status.st_gid) == want["owner"], name
        if want["kind"] != stat.S_IFLNK:
            assert stat.S_IMODE(status.st_mode) == want["mode"], name
            assert {key: os.getxattr(path, key) for key in os.listxattr(path)} == want.get("xattrs", {}), name
        if "mtime" in want:
            assert status.st_mtime_ns == int(want["mtime"] * 10) * 10 ** 8, name
        if "data" in want:
            assert path.read_bytes() == want["data"], name
            links.setdefault(id(want), set()).add(status.st_ino)
        if "target" in want:
            assert os.readlink(path) == want["target"], name
        if "device" in want:
            assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == want["device"], name
    inodes = [next(iter(group)) for group in links.values() if len(group) == 1]
    assert len(inodes) == len(set(inodes)) == len(links), "hard links are not what they were"


@contextlib.contextmanager
def mounted(image):
    """The image's file system, as the host's kernel sees it."""
    with tempfile.TemporaryDirectory(prefix="berth-mount-", dir="/dev/shm") as place:
        run("mount", "-t", "erofs", "-o", "loop,ro", image["file_system"], place)
        try:
            yield pathlib.Path(place)
        finally:
            run("umount", place)


def check_file_system(image, layers):
    run("fsck.erofs", image["file_system"])
    with mounted(image) as root:
        has_what_it_means(root, meaning_of(layers))


BASE = [
    directory("bin"), file("bin/su", b"#!" * 3000, mode=0o4755), file("bin/ping", b"p" * 9000, mode=0o755,
                                                                         xattrs={"security.capability": CAPABILITY}),
    hard_link("bin/sudo", "bin/su"), symlink("bin/sh", "su"),
    directory("etc"), file("etc/motd", b"hello\n", xattrs={"user.note": "noted", "trusted.deep": "x" * 300}),
    file("etc/shadow", b"", mode=0o640, gid=42), symlink("etc/mtab", "/proc/self/mounts"),
    directory("dev"), device("dev/null", 1, 3, 0o666), device("dev/sda", 8, 0, 0o660, tarfile.BLKTYPE), fifo("dev/pipe"),
    directory("home"), directory("home/one", mode=0o700, uid=1000, gid=100000), file("home/one/x", b"1", uid=1000, gid=100000),
    directory("tmp", mode=0o1777), directory("var"), file("var/old", b"old"), directory("var/cache"),
    file("var/cache/a", b"a"), file("var/cache/b", b"b"), directory("var/log"), file("var/log/l", b"l"),
    file("deep/er/than/its/parents", b"", mtime=MTIME + 0.5), file("big", bytes(range(256)) * 4096), file("sp ace\\ü", b"n"),
]
CHANGE = [
    whiteout("var/old"), opaque("var/cache"), file("var/cache/c", b"c"), whiteout("home/one"), file("etc/motd", b"bye\n"),
    directory("etc", mode=0o750), whiteout("var/log"), file("var/log", b"a file now"), symlink("home/two", "../etc"),
    whiteout("bin/su"),
]
LAYERS = [BASE, [], CHANGE, [hard_link("bin/again", "bin/sudo")], [directory("home/one"), file("home/one/y", b"2")]]


def many_layers(compression="gzip"):
    return Image([layer(members, compression) for members in LAYERS],
                 {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["true"], "Env": ["PATH=/bin", "A=b c"], "WorkingDir": "/var",
                  "User": "1000:42", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "StopSignal": "SIGQUIT",
                  "Labels": {"a": "b"}})
