"""The Debian package, made of the build under test (packaging/build-deb): what is in it, that the program in it works, that
systemd takes the units, and that an upgrade touches no machine. `make deb` differs from it in the build alone."""

import gzip
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest

import berth_host

ROOT = berth_host.ROOT

PLAIN_FILES = {
    "etc/default/berth",
    "lib/systemd/system/berth-guests.service",
    "lib/systemd/system/berth.service",
    "usr/lib/sysusers.d/berth.conf",
    "usr/share/bash-completion/completions/berth",
    "usr/share/doc/berth/README.md.gz",
    "usr/share/doc/berth/berth-toml.md",
    "usr/share/doc/berth/changelog.Debian.gz",
    "usr/share/doc/berth/changelog.gz",
    "usr/share/doc/berth/copyright",
    "usr/share/doc/berth/openapi.yaml",
    "usr/share/fish/vendor_completions.d/berth.fish",
    "usr/share/man/man1/berth.1.gz",
    "usr/share/zsh/vendor-completions/_berth",
}
# Not in every build.
PRELOAD = "usr/lib/berth/libberth-preload.so"


def _run(*command, **options):
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, check=False, **options)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", name="directory")
def _directory():
    with tempfile.TemporaryDirectory(prefix="berth-package-", dir="/var/tmp") as path:
        yield pathlib.Path(path)


@pytest.fixture(scope="module", name="package")
def _package(directory):
    """Path of the package. Without debug symbols, which would take longer than all the rest."""
    environment = {**os.environ, "DEB_BUILD_OPTIONS": "noautodbgsym"}
    build = os.environ.get("BERTH_BUILD_DIR") or ROOT / "build" / "dev"
    output = _run(ROOT / "packaging" / "build-deb", build, directory / "output", env=environment)
    assert len(output.splitlines()) == 1, output
    return pathlib.Path(output.strip())


@pytest.fixture(scope="module", name="tree")
def _tree(package, directory):
    """What the package installs, unpacked."""
    _run("dpkg-deb", "-x", package, directory / "tree")
    return directory / "tree"


@pytest.fixture(scope="module", name="control")
def _control(package, directory):
    """The control file and the maintainer scripts, unpacked."""
    _run("dpkg-deb", "-e", package, directory / "control")
    return directory / "control"


@pytest.fixture(name="installed_host")
def _installed_host(tree, monkeypatch):
    """A host whose program is the packaged one."""
    monkeypatch.setenv("BERTH_BIN", str(tree / "usr/bin/berth"))
    with berth_host.BerthHost() as host:
        yield host


def _field(package, name):
    return _run("dpkg-deb", "-f", package, name).strip()


def test_making_it_leaves_the_package_and_nothing_else(package):
    assert [path.name for path in package.parent.iterdir()] == [package.name]
    version = re.search(r"project\(berth VERSION (\S+) ", (ROOT / "CMakeLists.txt").read_text()).group(1)
    assert re.fullmatch(rf"berth_{re.escape(version)}-\d+_amd64\.deb", package.name), "packaging/debian/changelog is behind"


def test_every_file_is_expected_and_has_its_mode_and_belongs_to_root(package):
    formats = {f"usr/share/doc/berth/formats/{path.name}" for path in (ROOT / "docs/formats").glob("*.md")}
    plain = set()
    for line in _run("dpkg-deb", "-c", package).splitlines():
        mode, owner, _, _, _, name = line.split(None, 5)
        name = name.removeprefix("./")
        assert owner == "root/root", line
        if mode.startswith("d"):
            assert mode == "drwxr-xr-x", line
        elif name in ("usr/bin/berth", "usr/lib/berth/berth-agent"):
            assert mode == "-rwxr-xr-x", line
        else:
            assert mode == "-rw-r--r--", line
            plain.add(name)
    # dh_compress leaves what is short as it is.
    plain = {name.removesuffix(".gz") if "/formats/" in name else name for name in plain}
    assert plain - {PRELOAD} == PLAIN_FILES | formats
    assert "./usr/lib/berth/berth-agent" in _run("dpkg-deb", "-c", package)


def test_it_depends_on_what_the_program_is_linked_with_and_recommends_qemu(package, tree):
    depends = _field(package, "Depends")
    assert "${" not in depends
    for library in ("libc6", "liburing2", "libssl3", "libsqlite3-0"):
        assert re.search(rf"\b{library}\b", depends), depends
    recommends = set(_field(package, "Recommends").split(", "))
    assert recommends == {
        "erofs-utils", "golang-github-containers-common", "qemu-system-x86", "qemu-utils", "runc", "skopeo", "slirp4netns", "umoci",
    }
    assert ".debug_info" not in _run("readelf", "-SW", tree / "usr/bin/berth")


def test_the_packaged_program_keeps_a_volume_while_its_daemon_is_restarted(installed_host, directory, tree):
    image = directory / "image.raw"
    image.write_bytes(os.urandom(1 << 20))
    installed_host.create("disk", "1M")
    uri = installed_host.serve("disk")
    keeper = installed_host.keeper_pid("disk")
    assert os.readlink(f"/proc/{keeper}/exe") == str(tree / "usr/bin/berth")
    _run("nbdcopy", image, uri)
    installed_host.restart()
    assert installed_host.keeper_pid("disk") == keeper
    copy = directory / "copy.raw"
    _run("nbdcopy", uri, copy)
    assert copy.read_bytes() == image.read_bytes()


def test_the_man_page_and_the_completions_are_those_of_the_packaged_program(tree):
    program = tree / "usr/bin/berth"
    man_page = gzip.decompress((tree / "usr/share/man/man1/berth.1.gz").read_bytes()).decode()
    assert man_page == _run(program, "internal", "man")
    for shell, name in (("bash", "bash-completion/completions/berth"), ("zsh", "zsh/vendor-completions/_berth"),
                        ("fish", "fish/vendor_completions.d/berth.fish")):
        assert (tree / "usr/share" / name).read_text() == _run(program, "completion", shell)
    _run("bash", "-n", tree / "usr/share/bash-completion/completions/berth")


def _verify(unit):
    """What systemd has to say of a unit and of those beside it."""
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{unit.parent}:", "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60,
                          check=False, env=environment)
    return [line for line in (done.stdout + done.stderr).splitlines() if "berth" in line]


def test_systemd_finds_nothing_wrong_with_the_units(tree, directory):
    """In copies that name the unpacked program, since it has to be there."""
    units = directory / "units"
    units.mkdir()
    for unit in (tree / "lib/systemd/system").iterdir():
        text = unit.read_text()
        assert "/usr/bin/berth daemon" in text
        (units / unit.name).write_text(text.replace("/usr/bin/berth", str(tree / "usr/bin/berth")))
    for unit in units.iterdir():
        assert _verify(unit) == []
    # It tells right from wrong here.
    broken = units / "berth-broken.service"
    broken.write_text((units / "berth.service").read_text().replace("KillMode=process", "KillMode=daemon"))
    assert "Failed to parse kill mode" in "".join(_verify(broken))


def test_the_group_of_the_socket_is_made(tree, directory):
    root = directory / "sysusers-root"
    (root / "etc").mkdir(parents=True)
    shutil.copytree(tree / "usr/lib/sysusers.d", root / "usr/lib/sysusers.d")
    _run("systemd-sysusers", f"--root={root}")
    assert re.search(r"^berth:", (root / "etc/group").read_text(), re.MULTILINE)


def _script(control, name, *arguments, directory):
    """Runs a maintainer script on a host where systemd runs, as far as it can tell; the units that it had systemd act on."""
    stubs = directory / "stubs"
    if not stubs.exists():
        stubs.mkdir()
        for stub in ("deb-systemd-invoke", "deb-systemd-helper", "systemctl", "systemd-sysusers"):
            (stubs / stub).write_text(f'#!/bin/sh\necho {stub} "$@" >>"$BERTH_TEST_LOG"\n')
            (stubs / stub).chmod(0o755)
    text = (control / name).read_text()
    assert "/run/systemd/system" in text
    script = directory / name
    script.write_text(text.replace("/run/systemd/system", str(stubs)))
    log = directory / "maintainer.log"
    log.write_text("")
    _run("sh", script, *arguments, env={**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "BERTH_TEST_LOG": str(log)})
    return [line.split()[1:] for line in log.read_text().splitlines() if line.startswith("deb-systemd-invoke ")]


def test_an_upgrade_restarts_the_daemon_and_stops_no_machine(control, directory):
    assert _script(control, "prerm", "upgrade", "0.2", directory=directory) == []
    # To start what is started does nothing.
    assert _script(control, "postinst", "configure", "0.0.9", directory=directory) == [
        ["restart", "berth.service"], ["start", "berth-guests.service"]]


def test_removal_stops_the_machines_while_there_is_a_daemon(control, directory):
    assert _script(control, "prerm", "remove", directory=directory) == [
        ["stop", "berth-guests.service"], ["stop", "berth.service"]]
