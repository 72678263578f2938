"""What the README tells a reader to type about a machine, typed, with a distribution's cloud image beside it."""

import os
import pathlib
import re
import subprocess
import time

import guest
from berth_host import BerthHost, program
from machine_host import Machine

README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"
LINES_MAX = 10


def _same(one, other):
    return subprocess.run(["cmp", "-s", one, other], check=False).returncode == 0


def test_the_readmes_ten_lines_make_a_machine_and_an_increment(tmp_path):
    section = README.read_text().split("## A machine, and an increment of it")[1]
    script = re.search(r"```\n(.*?)```", section, re.S)[1]
    assert len(script.splitlines()) <= LINES_MAX
    name = re.search(r'image = "([^"]+)"', script)[1]
    image = tmp_path / name
    image.symlink_to(guest.cloud_image())
    with BerthHost() as host:
        path = f"{pathlib.Path(program()).parent}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-euxc", script], cwd=tmp_path, env={**host.environment, "PATH": path}, timeout=300,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + host.log()
        backup = tmp_path / "backup/root.raw"
        host.cli("checkpoint", "export", "web@monday", tmp_path / "monday", timeout_s=180)
        assert _same(backup, tmp_path / "monday/root.raw")
        assert [point["name"] for point in host.json("refpoint", "list", "web")["refpoints"]] == ["sunday"]

        # What booted meanwhile is the distribution, and the next increment has what it wrote.
        web = Machine(host, "web")
        web.wait_for_agent(300)
        assert "Debian" in web.agent().read_file("/etc/os-release").decode()
        deadline = time.monotonic() + 60
        while "10.0.2.15" not in host.cli("vm", "info", "web"):
            assert time.monotonic() < deadline, web.info()
            time.sleep(0.5)
        web.agent().run("head -c 3000000 /dev/urandom >/var/lib/written")
        host.cli("checkpoint", "convert", "web@monday")
        assert web.checkpoint("tuesday")["consistency"] == "filesystem"
        host.cli("checkpoint", "export", "web@tuesday", tmp_path / "backup", "--since", "monday", timeout_s=180)
        host.cli("checkpoint", "export", "web@tuesday", tmp_path / "tuesday", timeout_s=180)
        assert _same(backup, tmp_path / "tuesday/root.raw") and not _same(backup, tmp_path / "monday/root.raw")
        web.stop()
