"""`berth host doctor`: what it says agrees with an independent look, it works when nothing else does, and leaves nothing."""

import contextlib
import ctypes
import fcntl
import grp
import json
import mmap
import os
import pathlib
import pty
import re
import resource
import shutil
import struct
import subprocess
import tempfile
import time

import pytest
from berth_host import BerthHost, program

# Programs branch on these: a name that goes or changes is a change of the interface.
NAMES = """
cpus kvm clock_source
kernel io_uring io_uring_deferred pidfd_open pidfd_getfd cgroups cgroup_children freezer pressure
seccomp_notification landlock bpf_lsm
memory memory_directory memfd userfaultfd userfaultfd_device pagemap_scan huge_pages_2m huge_pages_1g
transparent_huge_pages swap pageout
state_directory file_system free_space read_ahead inodes file_locks sparse_files punch_hole zero_range direct_io reflink
qemu qemu_accelerators qemu_nbd qemu_img qemu_storage_daemon nbdcopy nbdinfo skopeo umoci mkfs_erofs runc slirp4netns
open_files locked_memory memory_maps asynchronous_io processes run_directory berth_group daemon
""".split()
ESSENTIAL = {"io_uring", "pidfd_open", "memory_directory", "state_directory", "file_locks", "run_directory"}


def by_name(report):
    return {check["name"]: check for check in report["checks"]}


def examine(host, *options, **run_options):
    """The checks by name, and the exit code."""
    done = host.run("host", "doctor", "-o", "json", *options, **run_options)
    report = json.loads(done.stdout)
    assert report["able"] is (done.returncode == 0), done.stderr
    return by_name(report), done.returncode


def is_well_formed(report):
    assert set(report) == {"able", "checks"}
    assert [check["name"] for check in report["checks"]] == NAMES
    for check in report["checks"]:
        assert set(check) == {"name", "group", "need", "state", "detail", "cost", "remedy"}
        assert all(isinstance(value, str) for value in check.values())
        assert check["state"] in ("found", "missing", "degraded", "unknown")
        assert (check["need"] == "essential") is (check["name"] in ESSENTIAL)
        assert check["detail"]
        assert bool(check["cost"]) is bool(check["remedy"]) is (check["state"] != "found"), check
    missing = [check for check in report["checks"] if check["need"] == "essential" and check["state"] == "missing"]
    assert report["able"] is not bool(missing)
    return True


@pytest.fixture(scope="module")
def bare_host():
    """Directories, and no daemon."""
    with BerthHost(start=False) as host:
        host.state_dir.mkdir()
        host.run_dir.mkdir()
        yield host


@pytest.fixture(scope="module")
def checks(bare_host):
    return examine(bare_host)[0]


# --- What is said, and to whom.

def test_it_needs_no_daemon_and_says_that_there_is_none(bare_host):
    report = bare_host.json("host", "doctor")
    assert is_well_formed(report) and report["able"] is True
    assert by_name(report)["daemon"]["state"] == "missing"
    refused = bare_host.refused("host", "doctor", "--daemon")
    assert refused.returncode == 1 and "berth daemon" in refused.stderr


def test_with_a_daemon_both_look(shared_host):
    status, report = shared_host.api("GET", "/v1/host/doctor")
    assert status == 200 and is_well_formed(report) and report["able"] is True
    mine, theirs = examine(shared_host)[0], examine(shared_host, "--daemon")[0]
    for seen in (by_name(report), mine, theirs):
        assert seen["daemon"]["state"] == "found" and str(shared_host.run_dir) in seen["daemon"]["detail"]
    changing = {"memory", "memory_directory", "free_space", "inodes", "asynchronous_io", "cpus", "transparent_huge_pages"}
    assert {name for name in NAMES if mine[name] != theirs[name]} <= changing


def test_the_daemons_socket_is_told_from_one_that_was_left_behind(bare_host):
    with BerthHost() as host:
        host.daemon.kill()
        left = examine(host)[0]["daemon"]
        assert left["state"] == "missing" and "nobody answers" in left["detail"]
        host.start()
        socket = host.run_dir / "api.sock"
        detail = examine(host)[0]["daemon"]["detail"]
        assert f"group {grp.getgrgid(socket.stat().st_gid).gr_name}" in detail and "mode 660" in detail


def test_people_get_a_line_for_each_check_and_what_to_do_below(bare_host):
    report = bare_host.json("host", "doctor")
    text = bare_host.cli("host", "doctor")
    assert "\033" not in text
    table, _, rest = text.partition("\n\n")
    lines = [line.split(None, 2) for line in table.splitlines() if line.startswith("  ")]
    assert [(name, state) for name, state, _ in lines] == [(check["name"], check["state"]) for check in report["checks"]]
    assert [line for line in table.splitlines() if not line.startswith("  ")] == \
        list(dict.fromkeys(check["group"] for check in report["checks"]))
    for check in report["checks"]:
        told = f"{check['name']} is {check['state']} ({check['need']})\n  costs:  {check['cost']}\n  remedy: {check['remedy']}\n"
        assert (told in rest) is (check["state"] != "found")
    assert text.endswith("Berth can work here\n")


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_gets_colors_unless_it_wants_none(bare_host, no_color):
    environment = {**bare_host.environment, "NO_COLOR": "1" if no_color else ""}
    ours, theirs = pty.openpty()
    with subprocess.Popen([program(), "host", "doctor"], env=environment, stdin=subprocess.DEVNULL, stdout=theirs) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # the terminal's end
            while part := os.read(ours, 65536):
                text += part
        os.close(ours)
        assert process.wait(30) == 0
    assert (b"\033[32mfound" in text) is not no_color


def test_help_says_what_is_essential():
    text = subprocess.run([program(), "host", "doctor", "--help"], check=True, timeout=30, text=True, stdout=subprocess.PIPE).stdout
    listed = re.search(r"Essential are: ([a-z_, ]+)\.", " ".join(text.split()))[1]
    assert set(listed.split(", ")) == ESSENTIAL and "exit code is 4" in " ".join(text.split())


def test_completion_knows_it(bare_host):
    assert bare_host.cli("internal", "complete", "--", "host", "d").split() == ["doctor"]
    assert bare_host.cli("internal", "complete", "--", "host", "doctor", "--d").split() == ["--daemon"]


# --- An independent look.

def text_of(path):
    return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")


def test_kvm_is_found_only_where_the_cpu_has_the_flag(checks):
    flags = re.search(r"^flags\s*:(.*)$", text_of("/proc/cpuinfo"), re.MULTILINE)
    has_flag = flags is not None and bool({"vmx", "svm"} & set(flags[1].split()))
    if not has_flag:
        assert checks["kvm"]["state"] in ("missing", "unknown")
    elif os.path.exists("/dev/kvm") and os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert checks["kvm"]["state"] == "found"
    assert f"of {os.sysconf('SC_NPROCESSORS_ONLN')} CPUs" in checks["cpus"]["detail"]


def test_the_kernels_numbers_are_the_kernels(checks):
    assert os.uname().release in checks["kernel"]["detail"]
    assert text_of("/sys/devices/system/clocksource/clocksource0/current_clocksource").strip() in checks["clock_source"]["detail"]
    assert text_of("/proc/sys/vm/max_map_count").strip() in checks["memory_maps"]["detail"]
    assert text_of("/proc/sys/kernel/pid_max").strip() in checks["processes"]["detail"]
    assert str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) in checks["open_files"]["detail"]
    swaps = text_of("/proc/swaps").splitlines()[1:]
    assert (checks["swap"]["state"] == "missing") is (not swaps)
    for size, name in ((2048, "huge_pages_2m"), (1048576, "huge_pages_1g")):
        pool = pathlib.Path(f"/sys/kernel/mm/hugepages/hugepages-{size}kB")
        pages = sum(int(text_of(pool / file)) for file in ("nr_hugepages", "nr_overcommit_hugepages")) if pool.exists() else 0
        assert (checks[name]["state"] == "found") is (pages > 0)
    total_kb = int(re.search(r"^MemTotal:\s+(\d+)", text_of("/proc/meminfo"), re.MULTILINE)[1])
    assert checks["memory"]["detail"].startswith(f"{total_kb / 2**20:.1f} GiB") or total_kb < 2**20


def test_cgroups_are_those_that_are_mounted(checks):
    types = {line.split(" - ")[1].split()[0] for line in text_of("/proc/self/mountinfo").splitlines()}
    expected = {(False, False): "none", (True, False): "v1", (False, True): "v2", (True, True): "hybrid"}
    assert checks["cgroups"]["detail"].startswith(expected["cgroup" in types, "cgroup2" in types])


def test_io_uring_agrees_with_the_system_call(checks):
    libc = ctypes.CDLL(None, use_errno=True)
    ring = libc.syscall(425, 4, ctypes.create_string_buffer(120))  # io_uring_setup
    if ring >= 0:
        os.close(ring)
    assert (checks["io_uring"]["state"] == "found") is (ring >= 0)


def test_userfaultfd_has_the_features_that_the_kernel_names(checks):
    if not os.path.exists("/dev/userfaultfd") or not os.access("/dev/userfaultfd", os.R_OK | os.W_OK):
        assert checks["userfaultfd_device"]["state"] == "missing"
        pytest.skip("/dev/userfaultfd cannot be opened here")
    device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    descriptor = fcntl.ioctl(device, 0xAA00, os.O_CLOEXEC | os.O_NONBLOCK)  # USERFAULTFD_IOC_NEW
    answer = fcntl.ioctl(descriptor, 0xC018AA3F, struct.pack("QQQ", 0xAA, 0, 0))  # UFFDIO_API
    os.close(descriptor)
    os.close(device)
    features = struct.unpack("QQQ", answer)[1]
    assert f"({features:#x})" in checks["userfaultfd_device"]["detail"]
    asynchronous = features & (1 << 15) and features & (1 << 13)
    assert (checks["userfaultfd"]["state"] == "found") is bool(asynchronous)
    assert (checks["pagemap_scan"]["state"] == "found") is bool(asynchronous)  # both came with Linux 6.7


def test_files_can_do_what_is_said(bare_host, checks):
    with tempfile.TemporaryFile(dir=bare_host.state_dir) as source, tempfile.TemporaryFile(dir=bare_host.state_dir) as target:
        source.write(b"x" * 65536)
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), 0x40049409, source.fileno())  # FICLONE
            clones = True
        except OSError:
            clones = False
        assert (checks["reflink"]["state"] == "found") is clones
        try:
            fcntl.fcntl(source.fileno(), fcntl.F_SETFL, os.O_DIRECT)
            with mmap.mmap(-1, 4096) as page:
                direct = os.pwritev(source.fileno(), [page], 0) == 4096
        except OSError:
            direct = False
        assert (checks["direct_io"]["state"] == "found") is direct
    mounted = subprocess.run(["stat", "-f", "-c", "%T", bare_host.state_dir], check=True, timeout=30, text=True, stdout=subprocess.PIPE)
    kind = mounted.stdout.strip().split("/")[0]  # ext2/ext3 is ext4 too
    assert checks["file_system"]["detail"].startswith(kind[:3]) or kind.startswith("UNKNOWN")
    space = os.statvfs(bare_host.state_dir)
    assert f" of {space.f_blocks * space.f_frsize / 2**30:.1f} GiB" in checks["free_space"]["detail"] or space.f_blocks * space.f_frsize >= 2**40 \
        or space.f_blocks * space.f_frsize < 2**30


@pytest.mark.parametrize(("tool", "name"), [("qemu-system-x86_64", "qemu"), ("qemu-nbd", "qemu_nbd"), ("nbdinfo", "nbdinfo")])
def test_tools_say_their_versions(checks, tool, name):
    path = shutil.which(tool)
    if path is None:
        assert checks[name]["state"] == "missing"
        return
    said = subprocess.run([path, "--version"], check=True, timeout=30, text=True, stdout=subprocess.PIPE).stdout
    assert checks[name]["detail"] == f"{re.search(r'[0-9]+[.][0-9]+[.][0-9]+', said)[0]}, {path}"


def test_what_is_not_in_path_is_missing_and_not_essential(bare_host, tmp_path):
    fake = tmp_path / "qemu-nbd"
    fake.write_text("#!/bin/sh\necho 'qemu-nbd 5.2.0'\n")
    fake.chmod(0o755)
    broken = tmp_path / "qemu-img"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    bare_host.environment, before = {**bare_host.environment, "PATH": str(tmp_path)}, bare_host.environment
    try:
        seen, code = examine(bare_host)
    finally:
        bare_host.environment = before
    assert code == 0
    assert seen["qemu"]["state"] == seen["nbdcopy"]["state"] == "missing"
    assert seen["qemu_nbd"]["state"] == "degraded" and "5.2.0" in seen["qemu_nbd"]["detail"]
    assert seen["qemu_img"]["state"] == "missing" and "ends with 1" in seen["qemu_img"]["detail"]


# --- Places that are no good.

def test_a_state_directory_that_is_not_there_is_not_made(bare_host):
    place = bare_host.directory / "deep" / "er"
    seen, code = examine(bare_host, "--state-dir", place)
    assert code == 0 and seen["state_directory"]["state"] == "found"
    assert "not there yet" in seen["state_directory"]["detail"] and not place.parent.exists()
    # What it promised holds: the daemon does make it.
    with BerthHost(state_dir=place) as host:
        assert host.json("host", "info")["state_dir"] == str(place)


@pytest.mark.parametrize("place", ["/proc/berth", "/dev/null", "/dev/null/state"])
def test_where_no_file_can_be_made_berth_cannot_work(bare_host, place):
    seen, code = examine(bare_host, "--state-dir", place)
    assert code == 4 and seen["state_directory"]["state"] == "missing"
    assert seen["direct_io"]["state"] == "unknown" and "state_directory" in seen["direct_io"]["remedy"]
    refused = bare_host.refused("host", "doctor", "--state-dir", place)
    assert refused.returncode == 4 and refused.stderr.endswith("without: state_directory\n")
    assert "cannot work here without: state_directory\n" in refused.stdout


def test_a_read_only_file_system_is_told(bare_host):
    place = bare_host.directory / "read-only"
    place.mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o ro none "$1" && exec "$2" host doctor -o json --state-dir "$1"'
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", place, program()], check=False, timeout=60, text=True,
                          env=bare_host.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if not done.stdout:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    state_directory = by_name(json.loads(done.stdout))["state_directory"]
    assert done.returncode == 4 and "Read-only file system" in state_directory["detail"]


def test_an_unprivileged_user_is_told_what_is_not_for_them(bare_host):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    executable = os.open(program(), os.O_RDONLY)  # wherever it lies, that user can run it
    try:
        done = subprocess.run(["berth", "host", "doctor", "-o", "json"], executable=f"/proc/self/fd/{executable}", pass_fds=[executable],
                              env=bare_host.environment, cwd="/", user=65534, group=65534, extra_groups=[], check=False, timeout=60,
                              text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        os.close(executable)
    seen = by_name(json.loads(done.stdout))
    assert done.returncode == 4
    for name in ("state_directory", "run_directory"):
        assert seen[name]["state"] == "missing" and "Permission denied" in seen[name]["detail"] and "root" in seen[name]["remedy"]
    assert seen["cgroup_children"]["state"] == "missing"
    assert seen["userfaultfd"]["state"] == examine(bare_host)[0]["userfaultfd"]["state"]  # user mode faults need no privilege


# System calls that a container's profile may forbid: name, number on x86-64.
FORBIDDEN = {"io_uring_setup": 425, "userfaultfd": 323, "pidfd_getfd": 438, "process_madvise": 440}


def forbid(numbers):
    """Makes these system calls fail with EPERM in this process and its children, by a seccomp filter."""
    instructions = [(0x20, 0, 0, 0)]  # the number of the call
    for number in numbers:
        instructions += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]  # if it is that one: EPERM
    instructions.append((0x06, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
    program_header = struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program_header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no seccomp filter")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls are those of x86-64")
def test_what_a_seccomp_profile_forbids_is_missing(bare_host):
    seen, code = examine(bare_host, preexec_fn=lambda: forbid(FORBIDDEN.values()))
    assert code == 4
    assert seen["io_uring"]["state"] == "missing" and "seccomp" in seen["io_uring"]["remedy"]
    for name in ("io_uring_deferred", "userfaultfd", "pagemap_scan", "pidfd_getfd", "pageout"):
        assert seen[name]["state"] == "missing" and "Operation not permitted" in seen[name]["detail"], seen[name]
    assert seen["pidfd_open"]["state"] == "found"


# --- Nothing is left.

def names_below(*places):
    return {os.path.join(directory, name) for place in places for directory, names, files in os.walk(place) for name in names + files}


def test_nothing_is_left_behind(host):
    with BerthHost(start=False) as bare:
        bare.state_dir.mkdir()
        bare.run_dir.mkdir()
        before = names_below(bare.directory)
        shared_memory = names_below("/dev/shm")
        bare.cli("host", "doctor")
        assert names_below(bare.directory) == before
        assert {name for name in names_below("/dev/shm") - shared_memory if "doctor" in name} == set()
    # In a process that goes on: no file, descriptor, mapping, child or cgroup either.
    host.api("GET", "/v1/host/doctor")
    process = pathlib.Path(f"/proc/{host.daemon.pid}")
    before = names_below(host.state_dir, host.run_dir)
    descriptors = len(list((process / "fd").iterdir()))
    for _ in range(5):
        assert host.api("GET", "/v1/host/doctor")[0] == 200
    # The daemon may not have closed its end of the last connection yet.
    deadline = time.monotonic() + 10
    while len(list((process / "fd").iterdir())) > descriptors:
        assert time.monotonic() < deadline, sorted(os.readlink(entry) for entry in (process / "fd").iterdir())
        time.sleep(0.01)
    assert names_below(host.state_dir, host.run_dir) == before
    assert "memfd:" not in (process / "maps").read_text()
    children = [text for task in (process / "task").iterdir() if (text := (task / "children").read_text().strip())]
    assert children == []
    assert [name for name in names_below("/sys/fs/cgroup") if "berth-doctor" in name] == []
