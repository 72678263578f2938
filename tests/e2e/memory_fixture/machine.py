"""A guest whose memory is an object of its own and tracked: what tests and measurements of memory copies run on."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import guest

BUILD = pathlib.Path(os.environ.get("BERTH_BUILD_DIR", guest.SCRIPTS.parent / "build" / "dev"))
FIXTURE = BUILD / "berth-memory-fixture"
# QEMU runs as a user that has nothing else.
USER = 64999
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def fixture(*arguments, timeout_s=120):
    """Runs berth-memory-fixture; what it prints."""
    done = subprocess.run([FIXTURE, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout.strip()


class MemoryMachine:
    """A guest with tracked memory. Gone with everything on leaving the block."""

    def __init__(self, *, memory_mib, cpus=2, image=None, state=None, preload=True, share="on", words="", cgroup=None,
                 **disk):
        self.memory_mib, self.state, self.image, self.preload, self.cgroup = memory_mib, state, image, preload, cgroup
        self._place = pathlib.Path(tempfile.mkdtemp(prefix="berth-test-", dir="/dev/shm"))
        self._place.chmod(0o711)
        self.memory = fixture("create", self._place / "memory", f"{memory_mib}M", USER)
        if image is not None:
            fixture("load", image, self.memory)
        backend = f"memory-backend-file,id=ram,size={memory_mib}M,mem-path={self.memory},share={share}"
        options = ["-object", backend, "-machine", "memory-backend=ram", "-sandbox", SANDBOX]
        if state is not None:
            options += ["-incoming", "defer"]
        # On a busy host Linux finds its timer dead when it tests it, and panics.
        self.guest = guest.Guest(memory=f"{memory_mib}M", cpus=cpus, words=f"no_timer_check {words}", qemu_options=options,
                                 launch=self._launch, **disk)

    def _launch(self, directory, command):
        os.chown(directory, USER, USER)
        files = guest.image()
        for name in ("kernel", "initrd"):
            copy = directory / name
            shutil.copyfile(files[name], copy)
            copy.chmod(0o444)
            command = [str(copy) if word == files[name] else word for word in command]
        for name in ("qemu.log", "console.log"):
            (directory / name).touch()
            os.chown(directory / name, USER, USER)
        privileges = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
                      "--inh-caps=-all", "setpriv", "--pdeathsig", "KILL"]
        if self.preload:
            privileges += ["env", f"LD_PRELOAD={BUILD / 'libberth-preload.so'}", f"BERTH_MEMORY_OBJECT={self.memory}"]
        if self.cgroup is not None:
            privileges = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{self.cgroup}/cgroup.procs", *privileges]
        return privileges + command

    def __enter__(self):
        try:
            self.guest.start()
            if self.state is not None:
                self._resume()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.guest.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def _resume(self):
        """Takes in a device state; the machine stands still after it."""
        incoming = self.guest.directory / "incoming.sock"
        deadline = time.monotonic() + 30
        with self._monitor() as qmp:
            qmp.call("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
            qmp.call("migrate-incoming", uri=f"unix:{incoming}")
            with socket.socket(socket.AF_UNIX) as stream:
                stream.settimeout(30)
                stream.connect(str(incoming))
                stream.sendall(pathlib.Path(self.state).read_bytes())
            while (status := qmp.call("query-migrate").get("status")) != "completed":
                assert status != "failed" and time.monotonic() < deadline, self.guest.error(f"incoming: {status}")
                time.sleep(0.005)

    def _monitor(self):
        """As soon as QEMU serves it."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.guest.qmp()
            except guest.GuestError:
                if time.monotonic() > deadline or not self.guest.is_running():
                    raise self.guest.error("QEMU does not serve its monitor") from None
                time.sleep(0.01)

    def checkpoint(self, directory, name, *options):
        """An image and a state of one instant, NAME.ram and NAME.state; what berth-memory-fixture says of it."""
        report = fixture("checkpoint", "--pid", self.guest.pid, "--memory", self.memory,
                         "--qmp", self.guest.directory / "qmp.sock", "--image", directory / f"{name}.ram",
                         "--state", directory / f"{name}.state", *options)
        return json.loads(report)

    def start_writer(self, mib, mib_per_second):
        """Starts guest_writer.c in the guest."""
        self.guest.agent.write_file("/run/guest-writer", (BUILD / "berth-guest-writer").read_bytes())
        status, _, errors = self.guest.agent.run(
            f"chmod +x /run/guest-writer; setsid /run/guest-writer {mib} {mib_per_second} /run/berth/writer "
            "</dev/null >/dev/null 2>&1 &")
        assert status == 0, errors

    def writer(self):
        """Full passes of the writer, and pages that it found wrong."""
        return tuple(map(int, self.guest.agent.read_file("/run/berth/writer").split()))

    def wait_for_passes(self, passes, timeout_s=60):
        """Returns when the writer has made so many; what it says then."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(guest.GuestError, ValueError, IndexError):  # the file may be empty yet
                if (says := self.writer())[0] >= passes:
                    return says
            assert time.monotonic() < deadline, self.guest.error(f"the writer has not made {passes} passes")
            time.sleep(0.05)
