"""What containers.py measures, as Python sees it: a service's first answer, containers of Berth, and runc's of the same images.

    with Berth(directory, run_parent) as berth, Runc(directory) as runc:
        for side in (berth, runc):
            side.add_image("nginx")
            with side.cold("nginx") as started:      # a Started: when it answered, how to go on asking it
                started.get("/")

Every container is ended when its block is left. Standard library only; needs root.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import typing

from peers import PeerError, run

import guest  # of the tests: peers.py has put them on the path
from berth_host import BerthHost, program

ADDRESS = "127.0.0.1"
PORT = 80
START_LIMIT_S = 120
ANSWER_LIMIT_S = 60
PAUSE_LIMIT_S = 300
RETRY_S = 0.001
RETRY_SHARE = 0.03  # of the time that has gone by: an emulated service that is asked all the time does not come up
MIB = 1 << 20

_CLONE_NEWNET = 0x40000000

# What docker and podman leave a container's root.
CAPABILITIES = [f"CAP_{name}" for name in (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT")]


# --- Services.


class NoAnswer(PeerError):
    """A service did not answer in time."""


def get(port, path="/", timeout_s=ANSWER_LIMIT_S):
    """What a service answers to GET; OSError or ValueError when it does not, yet."""
    with socket.create_connection((ADDRESS, port), timeout=timeout_s) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: bench\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(1 << 20):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1:2] != [b"200"]:
        raise ValueError(f"GET {path}: {head[:100]!r}")
    return body


def first_answer(port, limit_s=START_LIMIT_S, path="/", ended=lambda: False):
    """Asks until the service answers, or `ended`; when that was, by time.monotonic(), at most RETRY_SHARE too late."""
    begun = time.monotonic()
    deadline = begun + limit_s
    while True:
        try:
            get(port, path, timeout_s=max(0.1, deadline - time.monotonic()))
            return time.monotonic()
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline or ended():
                raise NoAnswer(f"port {port} does not answer within {limit_s} s: {error}") from None
        time.sleep(max(RETRY_S, RETRY_SHARE * (time.monotonic() - begun)))


def at_once(work, items):
    """work(item) for all of them, each in a thread of its own; the answers in their order."""
    with concurrent.futures.ThreadPoolExecutor(max(1, len(items))) as pool:
        return list(pool.map(work, items))


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as any_socket:
        any_socket.bind((ADDRESS, 0))
        return any_socket.getsockname()[1]


def drop_caches():
    """What comes next finds nothing in the page cache: no program, no image."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


@dataclasses.dataclass
class Started:
    """A container that has answered. Times are milliseconds since it was asked for."""
    name: str
    command_ms: float  # until the command had returned
    answer_ms: float   # until the service's first answer
    get: typing.Callable = None      # path to body
    execute: typing.Callable = None  # runs /bin/true in it
    filled: bool = False             # its service holds the memory that it was asked to take


# --- Memory.


def private_bytes(pid):
    """What a process has of memory that no other has, resident. Pages of a template, which is there whether or not it is mapped,
    are its template's, also while only one process happens to have come to them."""
    total, is_of_template = 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, value, *_ = line.split(maxsplit=2)
        if not name.endswith(":"):  # the next mapping: its addresses, what it may be used for, and its file last
            is_of_template = value.endswith("p") and line.endswith("/ram")
        elif name in (("Anonymous:",) if is_of_template else ("Private_Clean:", "Private_Dirty:")):
            total += int(value.split()[0]) * 1024
    return total


def proportional_bytes(pid):
    """Its resident memory, what is shared being shared out."""
    return _rollup(pid)["Pss"]


def _rollup(pid):
    """The sums of /proc/PID/smaps, bytes by name."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}


def available_bytes():
    """What the host could give to a new process."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise PeerError("/proc/meminfo has no MemAvailable")


def allocated_bytes(directory):
    """What the files below a directory take, holes not counted."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += (pathlib.Path(root) / name).lstat().st_blocks * 512
    return total


def compressed_swap_bytes():
    """What swap in memory takes of it (zram's mm_stat: mem_used_total is the third number)."""
    total = 0
    for path in pathlib.Path("/sys/block").glob("zram*/mm_stat"):
        total += int(path.read_text().split()[2])
    return total


@contextlib.contextmanager
def swap_in_memory(size):
    """Compressed swap of so many bytes while the block lasts, where the host has no swap; what there is, in words."""
    if len(pathlib.Path("/proc/swaps").read_text().splitlines()) > 1:
        yield "the host's own swap"
        return
    control = pathlib.Path("/sys/class/zram-control")
    if not control.exists():
        yield "no swap, and no zram"
        return
    number = (control / "hot_add").read_text().strip()
    device = f"/dev/zram{number}"
    try:
        pathlib.Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
        run("/usr/sbin/mkswap", device)
        run("/usr/sbin/swapon", device)
        try:
            algorithm = pathlib.Path(f"/sys/block/zram{number}/comp_algorithm").read_text()
            yield f"zram of {size // MIB} MiB, {algorithm.partition('[')[2].partition(']')[0]}"
        finally:
            run("/usr/sbin/swapoff", device, timeout_s=PAUSE_LIMIT_S)
    finally:
        (control / "hot_remove").write_text(number)


# --- Berth.


class NotAdmitted(PeerError):
    """The host is full, with all the memory that was promised to those that run."""


class Missing(PeerError):
    """This Berth has no such command yet."""


class Berth:
    """A host with its state on the file system that is measured."""

    title = "Berth"

    def __init__(self, directory, run_parent):
        self._state_dir, self._run_dir = pathlib.Path(directory) / "state", pathlib.Path(run_parent) / "host"
        self._run_dir.mkdir()
        self._run_dir.chmod(0o711)
        self.host = BerthHost(directory=self._run_dir, state_dir=self._state_dir)
        self._numbers = itertools.count(1)  # several threads ask
        try:
            self._import_kernel()
        except BaseException:
            self.host.close(check=False)
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        try:
            self.host.__exit__(kind, value, traceback)
        finally:
            shutil.rmtree(self._state_dir, ignore_errors=True)
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def _import_kernel(self):
        built = guest.built("guest-kernel")
        package = pathlib.Path(built["kernel"]).with_name("packages.txt").read_text().strip()
        modules = self._run_dir / package.removeprefix("linux-image-")  # a directory is called as its release is
        modules.symlink_to(built["modules"])
        self.cli("kernel", "import", "--image", built["kernel"], "--modules", modules)

    def add_image(self, name, layout):
        """Takes in the image of an OCI layout."""
        self.cli("image", "import", f"oci:{layout}", "--name", f"{name}:latest")

    def cli(self, *arguments, timeout_s=START_LIMIT_S):
        return self.host.cli(*arguments, timeout_s=timeout_s)

    def api(self, method, path, body=None, timeout_s=START_LIMIT_S):
        """One request to the daemon; its answer, which has to be good."""
        status, answer = self.host.api(method, path, body, timeout_s)
        if status >= 300:
            raise PeerError(f"{method} {path}: {status}: {answer}")
        return answer

    def inspect(self, name):
        return json.loads(self.cli("container", "inspect", name))

    def new_name(self, kind):
        return f"{kind}-{next(self._numbers)}"

    def remove(self, *names):
        """Whatever they are doing, they are gone; at the end of a block that failed too."""
        failed = ""
        for name in names:
            done = self.host.run("container", "rm", "-f", name, timeout_s=ANSWER_LIMIT_S)
            failed = failed or (done.stderr if done.returncode not in (0, 3) else "")
        if failed:
            raise PeerError(f"a container cannot be removed: {failed}")

    def started(self, name, port, command_ms, answer_ms):
        return Started(name, command_ms, answer_ms, get=lambda path, **options: get(port, path, **options),
                       execute=lambda: self.cli("container", "exec", name, "/bin/true"))

    @contextlib.contextmanager
    def cold(self, image, memory="256M"):
        """A container from the command line to its first answer; removed in the end."""
        name, port = self.new_name("cold"), free_port()
        try:
            yield self._run(name, port, image, memory)
        finally:
            self.remove(name)

    def _run(self, name, port, image, memory):
        words = [program(), "container", "run", "-d", "--name", name, "-p", f"{ADDRESS}:{port}:{PORT}", "-m", memory,
                 f"{image}:latest"]
        command_ms, answer_ms = self._timed(words, [port])
        return self.started(name, port, command_ms, answer_ms)

    def _timed(self, words, ports):
        """Runs a command, and asks at the ports meanwhile; milliseconds until it had returned, and until all had answered."""
        begun = time.monotonic()
        with subprocess.Popen(list(map(str, words)), env=self.host.environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            returned = []

            def wait():
                returned.append((process.stderr.read(), process.wait(), time.monotonic()))

            waiter = threading.Thread(target=wait)
            waiter.start()
            answered = None
            try:
                answered = max(at_once(lambda port: first_answer(port, ended=lambda: process.poll() not in (None, 0)), ports))
            except NoAnswer:
                if process.poll() in (None, 0):
                    raise
            finally:
                waiter.join(START_LIMIT_S)
                if waiter.is_alive():
                    process.kill()
                    waiter.join()
        errors, code, ended = returned[0]
        if code != 0:
            kind = NotAdmitted if "too little" in errors else PeerError
            raise kind(f"{' '.join(map(str, words))}: exit code {code}: {errors}\n{self.host.log()}")
        return (ended - begun) * 1000, (answered - begun) * 1000

    def pids(self, name):
        """{"qemu": …, "keeper": …}"""
        keepers = [pid for pid, words in self.host.processes().items()
                   if " keeper " in words and words.endswith(f"--container {name} ") or f"--container {name} " in words]
        return {"qemu": self.inspect(name)["pid"], "keeper": keepers[0] if keepers else None}

    def private(self, name):
        """What a container has of memory for itself, resident, bytes: of its QEMU, and of its keeper."""
        return {role: private_bytes(pid) if pid else 0 for role, pid in self.pids(name).items()}

    def proportional(self, names):
        """What these containers take of memory, what they share being shared out, bytes."""
        return sum(proportional_bytes(pid) for name in names for pid in self.pids(name).values() if pid)

    def stores(self):
        """Bytes of memory and of disk that the host's containers take beside their processes' private memory."""
        return {"ram": allocated_bytes(self.host.memory_dir) + compressed_swap_bytes(),
                "disk": allocated_bytes(self._state_dir / "containers")}

    # --- Templates and clones, levels of pause.

    def has(self, *words):
        """Whether `berth WORDS --help` says so: the last word is what is looked for in the help of the others."""
        *command, wanted = words
        done = self.host.run(*command, "--help")
        return done.returncode == 0 and wanted in done.stdout and f"berth {' '.join(command)}" in done.stdout

    def need(self, *words):
        """Raises Missing with a line for people where has() is False."""
        if not self.has(*words):
            raise Missing(f"`berth {' '.join(words[:-1])}` has no {words[-1]} yet")

    @contextlib.contextmanager
    def template(self, image, *options, memory="256M"):
        """A template that is ready to serve; deleted in the end. Its name, and the milliseconds that it took to make it."""
        self.need("template", "create", "--ready")
        name = self.new_name("template")
        begun = time.monotonic()
        try:
            self.cli("template", "create", name, "--image", f"{image}:latest", "--ready", f"http:{PORT}/", "-m", memory,
                     *options, timeout_s=2 * START_LIMIT_S)
            yield name, (time.monotonic() - begun) * 1000
            self._check_template(name)
        finally:
            done = self.host.run("template", "delete", name, timeout_s=ANSWER_LIMIT_S)
            if done.returncode not in (0, 3):
                raise PeerError(f"the template cannot be deleted: {done.stderr}")

    def wait_until_full(self, template, count):
        """So many clones of it wait."""
        deadline = time.monotonic() + START_LIMIT_S + count
        while self.host.json("template", "inspect", template)["waiting"] < count:
            if time.monotonic() > deadline:
                raise PeerError(f"the pool of {template} does not fill")
            time.sleep(0.1)

    def _check_template(self, name):
        """No clone has written to it."""
        if self.has("template", "check", "TEMPLATE") and not self.host.json("template", "check", name)["untouched"]:
            raise PeerError(f"the memory of {name} is not what it was when it was made")

    @contextlib.contextmanager
    def clones(self, template, count=1, *options):
        """So many clones that have all answered; removed in the end. [Started]: times are those of the whole command, the
        first answer being each one's own."""
        names = []
        begun = time.monotonic()
        try:
            out = self.cli("container", "clone", template, "-n", count, "-p", f"{ADDRESS}:0:{PORT}", *options)
            command_ms = (time.monotonic() - begun) * 1000
            names = out.split()
            port_of = {one["name"]: one["ports"][0]["host_port"] for one in self.api("GET", "/v1/containers")["containers"]
                       if one["ports"]}
            ports = [port_of[name] for name in names]
            answers = at_once(first_answer, ports)
            yield [self.started(name, port, command_ms, (answer - begun) * 1000)
                   for name, port, answer in zip(names, ports, answers)]
        finally:
            self.remove(*names)

    @contextlib.contextmanager
    def clone(self, template, *options):
        """One clone as a user sees it, at a port that is asked from the beginning; removed in the end."""
        name, port = self.new_name("clone"), free_port()
        words = [program(), "container", "clone", template, "--name", name, "-p", f"{ADDRESS}:{port}:{PORT}", *options]
        try:
            command_ms, answer_ms = self._timed(words, [port])
            yield self.started(name, port, command_ms, answer_ms)
        finally:
            self.remove(name)

    @contextlib.contextmanager
    def clone_by_api(self, template, **options):
        """The same by one request to the daemon, without a process of ours to start."""
        name, port = self.new_name("clone"), free_port()
        body = {"specification": {
            "name": name, "ports": [{"host_address": ADDRESS, "host_port": port, "guest_port": PORT}], **options}}
        begun = time.monotonic()
        try:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                answer = pool.submit(first_answer, port)
                self.api("POST", f"/v1/templates/{template}/clones", body)
                command_ms = (time.monotonic() - begun) * 1000
                answer_ms = (answer.result() - begun) * 1000
            yield self.started(name, port, command_ms, answer_ms)
        finally:
            self.remove(name)

    def device_load_ms(self, name):
        """How long QEMU took to load the devices of a clone, where Berth says it."""
        loaded = self.inspect(name).get("devices_loaded_us")
        return None if loaded is None else loaded / 1000

    def has_level(self, level):
        """Whether a container can be paused like that."""
        return level == "frozen" or self.has("container", "pause", level)

    def pause(self, name, level):
        """By one request to the daemon; its milliseconds."""
        begun = time.monotonic()
        self.api("POST", f"/v1/containers/{name}/pause", {"level": level} if level != "frozen" else None, PAUSE_LIMIT_S)
        return (time.monotonic() - begun) * 1000

    def pause_by_command(self, name, level):
        """The same by the command line."""
        begun = time.monotonic()
        self.cli("container", "pause", name, *(["--level", level] if level != "frozen" else []), timeout_s=PAUSE_LIMIT_S)
        return (time.monotonic() - begun) * 1000

    @functools.cached_property
    def wakes(self):
        """Whether a request to its service resumes a container that is paused."""
        return self.has("container", "pause", "request resumes")

    def resume(self, name):
        self.api("POST", f"/v1/containers/{name}/resume")


# --- runc.


def in_network_of(pid, work):
    """work() in a thread in the network namespace of that process."""
    def enter():
        with open(f"/proc/{pid}/ns/net", "rb") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise PeerError(f"setns: {os.strerror(ctypes.get_errno())}")
        return work()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result()


class Runc:
    """Debian's runc: each container an overlay over the unpacked image, with namespaces of its own; its network is its own
    loopback, and we ask from within."""

    title = "runc"

    def __init__(self, directory):
        self._directory = pathlib.Path(directory) / "runc"
        self._directory.mkdir()
        self._numbers = itertools.count(1)  # several threads ask
        self._running = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for name in list(self._running):
            with contextlib.suppress(PeerError):
                self._remove(name)
        shutil.rmtree(self._directory, ignore_errors=True)

    def add_image(self, name, layout):
        """Unpacks the image of an OCI layout, once for all containers."""
        run("umoci", "unpack", "--image", f"{layout}:latest", self._directory / name)

    def _runc(self, *arguments):
        return run("runc", "--root", self._directory / "state", *arguments)

    def _write_bundle(self, bundle, image, name):
        """The image's own configuration, without a terminal."""
        config = json.loads((self._directory / image / "config.json").read_text())
        process = config["process"]
        process["terminal"] = False
        process["capabilities"] = {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")}
        process["rlimits"] = []
        config["hostname"] = name
        config["linux"]["cgroupsPath"] = f"/berth-{name}"
        config["root"] = {"path": "rootfs", "readonly": False}
        # A cgroup file system of its own needs more than every host has; nothing here looks at it.
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
        (bundle / "config.json").write_text(json.dumps(config))

    @contextlib.contextmanager
    def cold(self, image, memory=None):
        """A container from its overlay to its first answer; removed in the end. Its memory has no limit."""
        del memory
        name = f"bench-{os.getpid()}-{next(self._numbers)}"
        bundle = self._directory / name
        for part in ("rootfs", "upper", "work"):
            (bundle / part).mkdir(parents=True)
        self._write_bundle(bundle, image, name)
        self._running[name] = bundle
        try:
            yield self._start(name, bundle, image)
        finally:
            self._remove(name)

    def _start(self, name, bundle, image):
        begun = time.monotonic()
        layers = f"lowerdir={self._directory / image / 'rootfs'},upperdir={bundle / 'upper'},workdir={bundle / 'work'}"
        run("mount", "-t", "overlay", "-o", layers, name, bundle / "rootfs")
        with open(bundle / "log", "wb") as log:
            done = subprocess.run(
                ["runc", "--root", self._directory / "state", "run", "-d", "--bundle", bundle, "--pid-file", bundle / "pid", name],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=START_LIMIT_S, check=False)
        command_ms = (time.monotonic() - begun) * 1000
        if done.returncode != 0:
            raise PeerError(f"runc run: exit code {done.returncode}: {(bundle / 'log').read_text(errors='replace')}")
        pid = int((bundle / "pid").read_text())
        answered = in_network_of(pid, lambda: first_answer(PORT))
        return Started(name, command_ms, (answered - begun) * 1000,
                       get=lambda path, **options: in_network_of(pid, lambda: get(PORT, path, **options)),
                       execute=lambda: self._runc("exec", name, "/bin/true"))

    def pids(self, name):
        return json.loads(self._runc("ps", "-f", "json", name))

    def private(self, name):
        """Resident private bytes of all its processes."""
        return sum(private_bytes(pid) for pid in self.pids(name))

    def proportional(self, names):
        return sum(proportional_bytes(pid) for name in names for pid in self.pids(name))

    def _remove(self, name):
        bundle = self._running.pop(name)
        with contextlib.suppress(PeerError):  # it may never have come that far
            self._runc("delete", "--force", name)
        if os.path.ismount(bundle / "rootfs"):
            run("umount", bundle / "rootfs")
        shutil.rmtree(bundle)

