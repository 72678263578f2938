"""A microVM with Berth's agent as its PID 1, without the rest of Berth: kernel, initramfs, a small image, QEMU.

    with MicroVm() as machine:
        machine.agent.greet()

On leaving the block QEMU is killed and its directory goes; QEMU dies with us, too.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import guest
from agent_client import AgentClient

BUILD = pathlib.Path(os.environ.get("BERTH_BUILD_DIR", guest.SCRIPTS.parent / "build" / "dev"))
MACHINES = {"q35": ["-machine", "pc-q35-7.2"],
            # Without it Linux calibrates the TSC against a timer that is disturbed on a busy host.
            "microvm": ["-machine", "microvm,acpi=on,pcie=on,pit=on,pic=on,rtc=on"]}
CMDLINE = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"

PASSWD = """root:x:0:0:root:/root:/bin/sh
web:x:33:34:Web:/var/www:/bin/sh
"""
GROUP = """root:x:0:
www:x:34:
logs:x:40:web
"""


def make_image(directory):
    """An EROFS with busybox, two users and little else; its path."""
    tree, image = directory / "tree", directory / "image.erofs"
    for name in ("bin", "etc", "root", "tmp", "var/www"):
        (tree / name).mkdir(parents=True)
    (tree / "tmp").chmod(0o1777)
    shutil.copy("/usr/bin/busybox", tree / "bin/busybox")
    applets = subprocess.run(["/usr/bin/busybox", "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for name in applets:
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc/passwd").write_text(PASSWD)
    (tree / "etc/group").write_text(GROUP)
    (tree / "etc/data").write_text("of the image\n")
    (tree / "bin/no-program").write_text("neither a script nor a program\n")
    (tree / "bin/no-program").chmod(0o755)
    subprocess.run(["mkfs.erofs", "-zlz4", "--force-uid=0", "--force-gid=0", image, tree], stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=True)
    shutil.rmtree(tree)
    return image


def make_initramfs(output):
    modules = guest.built("guest-kernel")["modules"]
    subprocess.run([BUILD / "berth-initramfs-fixture", BUILD / "berth-agent", modules, output], check=True)
    return output


def unpack_kernel(output):
    subprocess.run([BUILD / "berth-initramfs-fixture", guest.built("guest-kernel")["kernel"], output], check=True)
    return output


class MicroVm:
    """`overlay`: a raw disk with an ext4; `disks`: more of them, by serial number. `template`, `state`: a machine whose files
    are used, and what save() has made of it."""

    def __init__(self, machine="q35", memory="192M", overlay=None, image=True, cpus=1, template=None, state=None,
                 disks=None):
        self._process = self.agent = None
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-agent-"))
        try:
            if template is not None:
                self.image, initramfs = template.image, template.directory / "initramfs"
            else:
                self.image = make_image(self.directory) if image else None
                initramfs = make_initramfs(self.directory / "initramfs")
            command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
                       "-no-reboot", *MACHINES[machine], "-accel", "tcg,thread=multi", "-cpu", "Nehalem-v1", "-smp", str(cpus),
                       "-m", memory, "-kernel", guest.built("guest-kernel")["kernel"], "-initrd", initramfs, "-append", CMDLINE,
                       "-serial", f"file:{self.directory}/console.log",
                       "-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
                       "-chardev", f"socket,id=agent,path={self.directory}/agent.sock,server=on,wait=off",
                       "-device", "virtserialport,chardev=agent,name=org.berth.agent.0",
                       "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
                       "-chardev", f"socket,id=qmp,path={self.directory}/qmp.sock,server=on,wait=off",
                       "-mon", "chardev=qmp,mode=control"]
            if image:
                command += self._disk("image", "berth-image", self.image, "on")
            if overlay is not None:
                command += self._disk("overlay", "berth-overlay", overlay, "off")
            for number, (serial, path) in enumerate((disks or {}).items()):
                command += self._disk(f"more{number}", serial, path, "off")
            if state is not None:
                command += ["-incoming", f"exec:cat {state}"]
            self.started_at = time.monotonic()
            with open(self.directory / "qemu.log", "wb") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self.agent = AgentClient(self.directory / "agent.sock")
            if state is not None:
                self._resume()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _disk(name, serial, path, read_only):
        return ["-drive", f"if=none,id={name},format=raw,file={path},readonly={read_only}",
                "-device", f"virtio-blk-pci,drive={name},serial={serial}"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.agent is not None:
            self.agent.close()
        if self._process is not None:
            # Not reaped yet, so the process id is still its own.
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _monitor(self, deadline):
        """As soon as QEMU serves it."""
        while True:
            try:
                return guest.Qmp(self.directory / "qmp.sock")
            except guest.GuestError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _resume(self):
        deadline = time.monotonic() + 30
        with self._monitor(deadline) as qmp:
            while qmp.call("query-status")["status"] == "inmigrate":
                assert time.monotonic() < deadline, self.console()
                time.sleep(0.01)
            qmp.call("cont")

    def save(self, path):
        """Stops the machine; its memory and devices go to a file."""
        deadline = time.monotonic() + 60
        with guest.Qmp(self.directory / "qmp.sock") as qmp:
            qmp.call("stop")
            qmp.call("migrate", uri=f"exec:cat >{path}")
            while (status := qmp.call("query-migrate").get("status")) != "completed":
                assert status != "failed" and time.monotonic() < deadline, status
                time.sleep(0.02)

    def reconnect(self):
        """Another host, which knows nothing of what the last one has done."""
        self.agent.close()
        # Numbers that are in use are not ours to use again.
        self.agent = AgentClient(self.directory / "agent.sock", first_process=self.agent.next_process)
        self.agent.greet()
        return self.agent

    def wait_for_end(self, timeout_s=30):
        """Until QEMU has ended by itself; its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        raise AssertionError(f"QEMU runs on:\n{self.console()}")

    def console(self):
        return (self.directory / "console.log").read_text(errors="replace") + (self.directory / "qemu.log").read_text()
