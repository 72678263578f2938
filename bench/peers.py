"""What disk.py measures, as Python sees it: fio runs, and the servers that they talk to.

    with Berth(...) as berth, QemuStorageDaemon(...) as qsd:
        uri = berth.volume("disk", "2G")
        run = fio("randwrite", uri, seconds=2.5)        # a FioRun: iops, latencies, CPU of the server

Every server is ended by its process id when its block is left. Standard library only.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

from report import ROOT

sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from berth_host import BerthHost  # noqa: E402

TIMEOUT_S = 60
SLOWEST_BYTES_PER_S = 10 << 20  # below that a disk is not worth measuring


class PeerError(RuntimeError):
    """A program that is measured, or measures, did not do its part; the text says what it did."""


def run(*command, timeout_s=TIMEOUT_S):
    """A command that has to succeed; its standard output."""
    try:
        done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerError(str(error)) from None
    if done.returncode != 0:
        raise PeerError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def cpu_seconds(pid):
    """What the process has spent, all threads that it ever had together (user and system)."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid):
    """{"private": …, "shared": …}: resident memory, in bytes."""
    found = {}
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        for field, name in (("RssAnon:", "private"), ("RssShmem:", "shared")):
            if line.startswith(field):
                found[name] = int(line.split()[1]) * 1024
    return found


# --- fio.


@dataclasses.dataclass
class FioRun:
    """One run of one job. Latencies are completion latencies, in microseconds."""
    iops: float
    bytes_per_s: float
    operations: int
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    server_cpu_us: float = 0.0  # per operation; 0 without a server
    iops_over_time: list = dataclasses.field(default_factory=list)  # [milliseconds, IOPS]


def engine_of(target):
    """fio's options for an NBD URI or the path of a file."""
    if str(target).startswith("nbd"):
        return ["--ioengine=nbd", f"--uri={target}"]
    return ["--ioengine=io_uring", "--direct=1", f"--filename={target}"]


def fio(pattern, target, *options, size, block_size="4k", depth=1, seconds=None, ramp_seconds=0.0, server_pid=None,
        log_directory=None):
    """Runs fio; without `seconds` until every offset was visited once. `log_directory`: IOPS in steps of 100 ms."""
    command = ["fio", "--name=bench", "--output-format=json", "--thread", "--invalidate=0", "--scramble_buffers=0",
               f"--rw={pattern}", f"--bs={block_size}", f"--iodepth={depth}", f"--size={size}", *engine_of(target), *options]
    if seconds is not None:
        command += [f"--runtime={round(seconds * 1000)}ms", "--time_based"]
    if ramp_seconds:
        command += [f"--ramp_time={round(ramp_seconds * 1000)}ms"]
    if log_directory:
        command += [f"--write_iops_log={log_directory}/fio", "--log_avg_msec=100"]
    cpu_before = cpu_seconds(server_pid) if server_pid else 0.0
    output = run(*command, timeout_s=TIMEOUT_S + size // SLOWEST_BYTES_PER_S)
    cpu = cpu_seconds(server_pid) - cpu_before if server_pid else 0.0
    # fio may say something before its JSON.
    job = json.loads(output[output.index("{"):])["jobs"][0]
    if job["error"]:
        raise PeerError(f"fio {pattern} on {target}: error {job['error']}")
    side = job["read" if "read" in pattern else "write"]
    percentile = side["clat_ns"].get("percentile", {})
    result = FioRun(
        iops=side["iops"], bytes_per_s=side["bw_bytes"], operations=side["total_ios"],
        mean_us=side["clat_ns"]["mean"] / 1000, p50_us=percentile.get("50.000000", 0) / 1000,
        p99_us=percentile.get("99.000000", 0) / 1000, p999_us=percentile.get("99.900000", 0) / 1000)
    if server_pid and result.operations:
        # The ramp costs CPU too, and its operations are not counted: it went at the same speed.
        share = (seconds / (seconds + ramp_seconds)) if seconds else 1.0
        result.server_cpu_us = cpu * share / result.operations * 1e6
    if log_directory:
        for path in pathlib.Path(log_directory).glob("fio_iops*.log"):
            for line in path.read_text().splitlines():
                milliseconds, value, *_ = line.split(",")
                result.iops_over_time.append([int(milliseconds), int(value)])
            path.unlink()
    return result


def fill(target, size):
    """Writes the whole disk once."""
    fio("write", target, size=size, block_size="1m", depth=8)


# --- Berth.


class Berth:
    """A host with its state directory on the file system that is measured, and volumes on it."""

    def __init__(self, state_dir, run_parent):
        self._directory = pathlib.Path(run_parent) / f"berth-{pathlib.Path(state_dir).name}"
        self._directory.mkdir()
        self._state_dir = pathlib.Path(state_dir)
        self._state_dir.mkdir()
        self.host = BerthHost(directory=self._directory, state_dir=state_dir)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        try:
            self.host.__exit__(kind, value, traceback)
        finally:
            shutil.rmtree(self._state_dir, ignore_errors=True)
            shutil.rmtree(self._directory, ignore_errors=True)

    def volume(self, name, size):
        """A new volume, served; its NBD URI."""
        self.host.create(name, size)
        return self.host.serve(name, "--nbd-socket", self._directory / f"{name}.sock")

    def pid(self, name):
        return self.host.keeper_pid(name)

    def cli(self, *arguments):
        return self.host.cli(*arguments, timeout_s=TIMEOUT_S)

    def delete(self, name):
        self.cli("volume", "unserve", name)
        self.cli("volume", "delete", name)


# --- QEMU.


class QemuStorageDaemon:
    """qemu-storage-daemon with one image, exported over NBD on a UNIX socket. `fleecing`: an empty qcow2 image into
    which backup(…) copies what is about to be overwritten."""

    def __init__(self, image, socket_path, image_format="raw", direct=True, aio="io_uring", fleecing=None):
        self._socket_path = pathlib.Path(socket_path)
        self._qmp_path = pathlib.Path(f"{socket_path}.qmp")
        pid_path = pathlib.Path(f"{socket_path}.pid")
        cache = "on" if direct else "off"
        command = ["qemu-storage-daemon", "--pidfile", str(pid_path),
                   "--chardev", f"socket,id=qmp,path={self._qmp_path},server=on,wait=off", "--monitor", "chardev=qmp",
                   "--nbd-server", f"addr.type=unix,addr.path={self._socket_path},max-connections=0",
                   "--blockdev", f"driver=file,node-name=file,filename={image},aio={aio},cache.direct={cache}"]
        node = "file"
        if image_format != "raw":
            command += ["--blockdev", f"driver={image_format},node-name=disk,file=file"]
            node = "disk"
        if fleecing:
            command += ["--blockdev", f"driver=file,node-name=fleecing-file,filename={fleecing},aio={aio},cache.direct={cache}",
                        "--blockdev", "driver=qcow2,node-name=fleecing,file=fleecing-file"]
        command += ["--export", f"type=nbd,id=export,node-name={node},name=disk,writable=on"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.pid = self._process.pid
        self.uri = f"nbd+unix:///disk?socket={self._socket_path}"
        try:
            self._wait_for(pid_path)  # written when all is set up
        except BaseException:
            self.close()
            raise
        pid_path.unlink(missing_ok=True)

    def _wait_for(self, path):
        deadline = time.monotonic() + TIMEOUT_S
        while not path.exists():
            if self._process.poll() is not None:
                raise PeerError(f"qemu-storage-daemon ended: {self._process.stderr.read().decode(errors='replace')}")
            if time.monotonic() > deadline:
                raise PeerError("qemu-storage-daemon is not ready")
            time.sleep(0.005)

    def backup(self):
        """Starts a backup with sync=none: from now on the fleecing image keeps what the disk is now."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(self._qmp_path))
            with connection.makefile("rw") as stream:
                json.loads(stream.readline())  # the greeting
                for command in ({"execute": "qmp_capabilities"},
                                {"execute": "blockdev-backup", "arguments": {
                                    "job-id": "fleecing", "device": "disk", "target": "fleecing", "sync": "none"}}):
                    stream.write(json.dumps(command) + "\n")
                    stream.flush()
                    while "event" in (answer := json.loads(stream.readline())):
                        pass
                    if "error" in answer:
                        raise PeerError(f"QMP {command['execute']}: {answer['error']['desc']}")

    def close(self):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stderr.close()
        for path in (self._socket_path, self._qmp_path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        self.close()


def create_qcow2(path, size, bitmaps=0):
    """An empty qcow2 image with clusters of 64 KiB, and so many persistent dirty bitmaps that all record."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", path, size)
    for number in range(bitmaps):
        run("qemu-img", "bitmap", "--add", "--enable", "-g", "64k", path, f"bitmap{number}")
