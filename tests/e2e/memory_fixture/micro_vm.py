"""A microVM whose memory is a file of its own, or a clone's: what tests of templates, clones and parking run on.

    with OwnMicroVm() as machine:                     # boots; its memory is tracked
        template = machine.become_template()          # and has ended
    with CloneMicroVm(template) as clone:
        clone.agent.shell("echo hello")

QEMU runs as a user that has nothing else, in the sandbox in which machines run. On leaving the block it is killed and its
directory goes; QEMU dies with us, too.
"""

import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import guest
from agent_client import AgentClient
from agent_machine import CMDLINE, MACHINES, make_image, make_initramfs

from memory_fixture.machine import BUILD, SANDBOX, USER, fixture

_IGNORE_SHARED = [{"capability": "x-ignore-shared", "state": True}]


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BootFiles:
    """Kernel, initramfs and image, which that user can read."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-boot-", dir="/var/tmp"))
        self.directory.chmod(0o711)
        self.kernel, self.initramfs = self.directory / "kernel", self.directory / "initramfs"
        shutil.copyfile(guest.built("guest-kernel")["kernel"], self.kernel)
        make_initramfs(self.initramfs)
        self.image = make_image(self.directory)
        for path in (self.kernel, self.initramfs, self.image):
            path.chmod(0o444)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.directory)


class Template:
    def __init__(self, memory, state, files, memory_mib, next_process):
        self.memory, self.state, self.files = pathlib.Path(memory), state, files
        self.memory_mib, self.next_process = memory_mib, next_process

    def allocated(self):
        return self.memory.stat().st_blocks * 512


class _MicroVm:
    def __init__(self, files, memory_mib, memory, environment, state=None, next_process=1):
        self.files, self.memory_mib, self.memory = files, memory_mib, memory
        self._environment, self._state, self._next_process = environment, state, next_process
        self._process = self.agent = None
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-test-", dir="/var/tmp"))
        os.chown(self.directory, USER, USER)
        self.qmp_path, self.channel = self.directory / "qmp.sock", self.directory / "memory.sock"

    def _command(self):
        directory, files = self.directory, self.files
        return ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *MACHINES["q35"],
                "-machine", "memory-backend=ram,dump-guest-core=off", "-sandbox", SANDBOX,
                "-object", f"memory-backend-file,id=ram,size={self.memory_mib}M,mem-path={self.memory},share=on,prealloc=off",
                "-m", f"{self.memory_mib}M", "-accel", "tcg,thread=multi,tb-size=32", "-cpu", "Nehalem-v1", "-smp", "1",
                "-kernel", files.kernel, "-initrd", files.initramfs, "-append", CMDLINE,
                "-serial", f"file:{directory}/console.log", "-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
                "-chardev", f"socket,id=agent,path={directory}/agent.sock,server=on,wait=off",
                "-device", "virtserialport,chardev=agent,name=org.berth.agent.0", "-device", "virtio-balloon-pci,id=balloon",
                "-chardev", f"socket,id=qmp,path={self.qmp_path},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
                "-drive", f"if=none,id=image,format=raw,file={files.image},readonly=on",
                "-device", "virtio-blk-pci,drive=image,serial=berth-image"]

    def _start(self):
        privileges = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
                      "--inh-caps=-all", "setpriv", "--pdeathsig", "KILL", "env",
                      f"LD_PRELOAD={BUILD / 'libberth-preload.so'}", f"BERTH_MEMORY_CHANNEL={self.channel}",
                      *self._environment]
        incoming = ["-incoming", "defer"] if self._state is not None else []
        self.started_at = time.monotonic()
        with open(self.directory / "qemu.log", "wb") as log:
            self._process = subprocess.Popen([*privileges, *self._command(), *incoming], stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log)
        if self._state is not None:
            self._load_devices()
        self.agent = AgentClient(self.directory / "agent.sock", first_process=self._next_process)
        assert "boot_error" not in self.agent.greet()

    def __enter__(self):
        try:
            self._start()
        except BaseException as error:
            said = self.console()
            self.close()
            raise AssertionError(f"{error!r}\n{said}") from error
        return self

    def __exit__(self, *_):
        self.close()

    def kill(self):
        if self.agent is not None:
            self.agent.close()
        if self._process is not None:
            # Not reaped yet, so the process id is still its own.
            self._process.kill()
            self._process.wait()

    def close(self):
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self):
        return self._process.pid

    def is_running(self):
        return self._process.poll() is None

    def console(self):
        return "\n".join(path.read_text(errors="replace")[-4000:]
                         for path in (self.directory / "console.log", self.directory / "qemu.log") if path.exists())

    def qmp(self):
        """As soon as QEMU serves it."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return guest.Qmp(self.qmp_path)
            except guest.GuestError:
                if time.monotonic() > deadline or not self.is_running():
                    raise
                time.sleep(0.005)

    def stop(self):
        with self.qmp() as qmp:
            qmp.call("stop")

    def resume(self):
        with self.qmp() as qmp:
            qmp.call("cont")

    def parking_command(self, command, *arguments):
        return [BUILD / "berth-parking-fixture", command, str(self.pid), self.memory, self.channel, *arguments]

    def parking(self, command, *arguments):
        """What berth-parking-fixture says; an AssertionError with its error."""
        done = subprocess.run(self.parking_command(command, *arguments), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return json.loads(done.stdout)

    def _await_migration(self, qmp):
        deadline = time.monotonic() + 30
        while (status := qmp.call("query-migrate").get("status")) != "completed":
            assert status != "failed" and time.monotonic() < deadline, status
            time.sleep(0.002)

    def _load_devices(self):
        incoming = self.directory / "incoming.sock"
        with self.qmp() as qmp:
            qmp.call("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
            qmp.call("migrate-incoming", uri=f"unix:{incoming}")
            with socket.socket(socket.AF_UNIX) as stream:
                stream.settimeout(30)
                stream.connect(str(incoming))
                stream.sendall(self._state)
            self._await_migration(qmp)
            qmp.call("cont")

    def save_devices(self):
        """The state of the devices of the machine, which is stopped."""
        path = self.directory / "devices.sock"
        with socket.socket(socket.AF_UNIX) as listener, self.qmp() as qmp:
            listener.bind(str(path))
            path.chmod(0o777)
            listener.listen(1)
            listener.settimeout(30)
            qmp.call("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
            qmp.call("migrate", uri=f"unix:{path}")
            stream, _ = listener.accept()
            with stream:
                stream.settimeout(30)
                state = b"".join(iter(lambda: stream.recv(1 << 20), b""))
            self._await_migration(qmp)
        return state


class OwnMicroVm(_MicroVm):
    """Its memory is a memory object of its own, and goes with it unless it becomes a template."""

    def __init__(self, files, memory_mib=192):
        self._place = pathlib.Path(tempfile.mkdtemp(prefix="berth-test-", dir="/dev/shm"))
        self._place.chmod(0o711)
        memory = fixture("create", self._place / "memory", f"{memory_mib}M", USER)
        super().__init__(files, memory_mib, memory, [f"BERTH_MEMORY_OBJECT={memory}"])

    def close(self):
        super().close()
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)

    def become_template(self, place):
        """Below the directory `place`; the machine has ended then."""
        self.stop()
        state = self.save_devices()
        next_process = self.agent.next_process
        self.kill()
        memory = place / "template.ram"
        shutil.move(self.memory, memory)
        fixture("seal", memory)
        return Template(memory, state, self.files, self.memory_mib, next_process)


class CloneMicroVm(_MicroVm):
    def __init__(self, template):
        super().__init__(template.files, template.memory_mib, template.memory, [f"BERTH_MEMORY_TEMPLATE={template.memory}"],
                         template.state, template.next_process)
