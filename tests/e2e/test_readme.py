"""What the README tells a reader to type about a machine, typed."""

import os
import pathlib
import re
import subprocess

import guest
from berth_host import BerthHost, program

README = pathlib.Path(__file__).resolve().parent.parent.parent / "README.md"


def test_the_readmes_ten_lines_make_a_machine_and_an_increment(tmp_path):
    section = README.read_text().split("## A machine, and an increment of it")[1]
    script = re.search(r"```\n(.*?)```", section, re.S)[1]
    image = re.search(r'image = "([^"]+)"', script)[1]
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", guest.image()["disk"], tmp_path / image], check=True)
    (tmp_path / "backup").mkdir()
    with BerthHost() as host:
        path = f"{pathlib.Path(program()).parent}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-euxc", script], cwd=tmp_path, env={**host.environment, "PATH": path}, timeout=300,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + host.log()
        host.cli("checkpoint", "export", "web@monday", tmp_path / "whole", timeout_s=180)
        assert subprocess.run(["cmp", tmp_path / "backup/web/root.raw", tmp_path / "whole/root.raw"]).returncode == 0
        assert [point["name"] for point in host.json("refpoint", "list", "web")["refpoints"]] == ["sunday"]
