"""docs/openapi.yaml against the list of actions and against the running server.

The document is made from the list (a test says if it is not current). What this file adds is the server's side: every
operation is called; every parameter, status code and field of an answer has to be in the document, and every operation
and parameter of the document has to be one that the server takes.
"""

import functools
import json
import pathlib
import re
import socket
import subprocess
import time
import urllib.parse

import guest
import pytest
import machine_host
import oci_images
from berth_host import ROOT, BerthHost, program
from test_container import release_of


@functools.cache
def internal(what):
    return subprocess.run([program(), "internal", what], check=True, timeout=30, text=True, stdout=subprocess.PIPE).stdout


@functools.cache
def document():
    return json.loads(internal("openapi-json"))


@functools.cache
def table():
    return {action["name"]: action for action in json.loads(internal("actions"))}


def operations():
    """{name: (method, path, operation)} as the document has them."""
    return {operation["operationId"]: (method.upper(), path, operation)
            for path, methods in document()["paths"].items() for method, operation in methods.items()}


# --- A validator of what the document uses of JSON Schema. Strict: a member that the schema does not name is wrong.

def check(value, schema, where):
    if "$ref" in schema:
        return check(value, document()["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], where)
    if "oneOf" in schema:
        assert {"type": "null"} in schema["oneOf"], where
        if value is None:
            return None
        return check(value, next(one for one in schema["oneOf"] if one != {"type": "null"}), where)
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    found = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array",
             dict: "object"}[type(value)]
    assert found in types, f"{where}: {value!r} is no {types}"
    if schema.get("format") == "date-time" and value is not None:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value), f"{where}: {value!r} is no time"
    if schema.get("format") == "uuid" and value is not None:
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value), f"{where}: {value!r} is no id"
    if found == "array":
        for index, entry in enumerate(value):
            check(entry, schema["items"], f"{where}[{index}]")
    if found == "object" and "properties" in schema:
        assert set(schema.get("required", [])) <= set(value), f"{where}: missing {set(schema['required']) - set(value)}"
        assert set(value) <= set(schema["properties"]), f"{where}: unknown {set(value) - set(schema['properties'])}"
        for name, member in value.items():
            check(member, schema["properties"][name], f"{where}.{name}")
    return None


class CheckedApi:
    """Calls operations by name and holds what comes back against the document."""

    def __init__(self, host):
        self.host = host
        self.statuses = set()    # (operation, status)
        self.parameters = set()  # (operation, parameter)

    def __call__(self, operation_name, status=None, /, **parameters):
        name = operation_name
        method, path, operation = operations()[name]
        taken = {parameter["name"]: parameter["in"] for parameter in operation.get("parameters", [])}
        body_schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        query, body = {}, {}
        for parameter, value in parameters.items():
            if taken.get(parameter) == "path":
                path = path.replace("{" + parameter + "}", urllib.parse.quote(str(value), safe=""))
            elif taken.get(parameter) == "query":
                query[parameter] = value
            else:
                assert parameter in body_schema["properties"], f"{name} takes no {parameter}"
                body[parameter] = value
        if query:
            path += "?" + urllib.parse.urlencode(query)

        expected = int(next(iter(operation["responses"]))) if status is None else status
        if operation["responses"].get("200", {}).get("content", {}).keys() == {"application/x-ndjson"} and status is None:
            answer = self._stream(path, operation)
            found = 200
        else:
            found, headers, text = self.host.api_text(method, path, body or None)
            answer = json.loads(text)
            assert headers["content-type" if "content-type" in headers else "Content-Type"] == "application/json"
        assert found == expected, f"{name} {parameters}: status {found}: {answer}"
        assert str(found) in operation["responses"], f"{name}: status {found} is not in the document"
        if found >= 400:
            kinds = operation["responses"][str(found)]["description"].split(", ")
            assert answer["error"]["kind"] in kinds, f"{name}: {answer['error']} is none of {kinds}"
            check(answer, document()["components"]["schemas"]["Error"], name)
        elif found != 200 or not isinstance(answer, list):
            check(answer, operation["responses"][str(found)]["content"]["application/json"]["schema"], name)
        self.statuses.add((name, found))
        if found < 400:
            self.parameters |= {(name, parameter) for parameter in parameters}
        return answer

    def _stream(self, path, operation):
        schema = operation["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
        lines = []
        with self.host.lines(path) as stream:
            for line in stream:
                check(line, schema, path)
                lines.append(line)
                if operation["operationId"] == "events.watch":
                    break
        return lines

    def upgrade(self, name, /, **parameters):
        """An operation that takes the connection over; its other side is not asked anything."""
        method, path, operation = operations()[name]
        headers = "Host: x\r\nConnection: Upgrade\r\nUpgrade: berth-attach"
        status = raw_status(self.host, f"{method} {path.format(**parameters)} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        assert status == 101 and "101" in operation["responses"]
        self.statuses.add((name, status))
        self.parameters |= {(name, parameter) for parameter in parameters}

    def job(self, operation_name, /, **parameters):
        """An operation that is a job, to its end; the job, whose result the document promises."""
        started = self(operation_name, **parameters)
        ended = self("job.watch", job=started["id"])[-1]
        if ended["state"] == "done":
            check(ended["result"], document()["components"]["schemas"][table()[operation_name]["result"]], operation_name)
        return ended


@pytest.fixture(scope="module")
def api():
    with BerthHost() as host:
        yield CheckedApi(host)


def test_the_document_is_current():
    assert (ROOT / "docs" / "openapi.yaml").read_text() == internal("openapi"), "make it anew: berth internal openapi"


def test_the_document_is_yaml_of_the_same_meaning():
    yaml = pytest.importorskip("yaml", reason="python3-yaml is not installed")
    assert yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text()) == document()


def test_document_and_list_of_actions_name_the_same_operations():
    assert set(operations()) == set(table())
    for name, (method, path, operation) in operations().items():
        action = table()[name]
        assert (method, path) == (action["method"], action["path"])
        documented = {(parameter["name"], parameter["in"], parameter["required"]) for parameter in operation.get("parameters", [])}
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        documented |= {(parameter, "body", parameter in body.get("required", [])) for parameter in body.get("properties", {})}
        assert documented == {(parameter["name"], parameter["in"], parameter["required"]) for parameter in action["parameters"]}
        statuses = {action["status"]} | {error["status"] for error in action["errors"]}
        assert {int(status) for status in operation["responses"]} == statuses


def test_every_reference_in_the_document_leads_somewhere():
    text = json.dumps(document())
    names = set(re.findall(r'"#/components/schemas/([A-Za-z]+)"', text))
    assert names <= set(document()["components"]["schemas"])


def test_every_operation_answers_as_documented(api, tmp_path):
    host = api.host
    source = tmp_path / "source.raw"
    source.write_bytes(bytes(4 << 20))

    api("host.info")
    assert api("host.doctor")["able"] is True
    assert api("host.swap", zram=0, file=0, zswap="keep", undo=False)["zswap"] in ("on", "off", "missing")
    api("host.swap", 400, zram=1)
    api("host.swap", 400, file=1)
    assert api.job("volume.create", name="disk1", size=64 << 20, block_size=65536)["state"] == "done"
    assert api.job("volume.create", name="copied", **{"import": str(source)})["state"] == "done"
    assert api.job("volume.create", name="adopted", adopt=str(source))["state"] == "done"
    assert len(api("volume.list")["volumes"]) == 3
    api("volume.info", volume="disk1")
    api("volume.resize", volume="disk1", size=128 << 20)

    # Serving.
    path = str(host.directory / "one.sock")
    assert api("volume.serve", volume="disk1", unix=path, read_only=False)["address"] == path
    tcp = api("volume.serve", volume="disk1", tcp="127.0.0.1:0", insecure=True)
    assert api("volume.info", volume="disk1")["listeners"]
    api("volume.unserve", volume="disk1", unix=path)
    api("volume.unserve", volume="disk1", tcp=tcp["address"])
    tls_dir = make_certificates(tmp_path)
    assert api("volume.serve", volume="disk1", tcp="127.0.0.1:0", tls_dir=str(tls_dir))["tls"] is True
    api("volume.unserve", volume="disk1")

    # Checkpoints, reference points, changes.
    assert api("checkpoint.create", volumes=["disk1"], name="one", durability="durable", refpoint="ref-one")["group"] is None
    assert api("checkpoint.create", volumes=["disk1", "copied"], name="two", durability="volatile")["group"]
    assert len(api("checkpoint.list")["checkpoints"]) == 3
    assert len(api("checkpoint.list", volume="disk1")["checkpoints"]) == 2
    api("checkpoint.info", volume="disk1", checkpoint="one")
    refpoint = api("refpoint.list", volume="disk1")["refpoints"][0]
    assert api.job("checkpoint.export", volume="disk1", checkpoint="two", to=str(tmp_path / "out.raw"), since="ref-one",
                   nonce=refpoint["nonce"])["state"] == "done"
    assert api.job("checkpoint.revert", volume="disk1", checkpoint="one")["state"] == "done"
    assert api("changes.list", volume="disk1", since="ref-one", nonce=refpoint["nonce"], until="two", offset=0,
               length=1 << 20, extents_max=10)["complete"] is True
    assert api.job("volume.create", name="clone", backing="volume:disk1@one")["state"] == "done"
    assert api.job("volume.populate", volume="clone", rate=0)["state"] == "done"

    api("refpoint.create", volumes=["disk1"], name="ref-two")
    exported = api("refpoint.export", volume="disk1", refpoint="ref-two")
    api("refpoint.import", volume="disk1", **exported)
    api("refpoint.convert", volume="disk1", checkpoint="two", refpoint="ref-three")
    api("refpoint.delete", volume="disk1", refpoint="ref-three")
    api("volume.delete", volume="clone")
    api("checkpoint.delete", volume="disk1", checkpoint="one")

    # Checks.
    report = api.job("volume.check", volume="copied", repair=False)
    assert report["state"] in ("done", "failed")

    # Coming and going.
    assert api.job("volume.export", volume="copied", to=str(tmp_path / "exported"))["state"] == "done"
    api("volume.import", 400, volume="again", directory=str(tmp_path / "exported"))
    assert api.job("volume.import", volume="again", directory=str(tmp_path / "exported"), moved=False, copied=True,
                   move_files=True)["state"] == "done"
    assert api("volume.info", volume="again")["id"] != api("volume.info", volume="copied")["id"]
    api("volume.delete", volume="copied")

    # Jobs and events.
    jobs = api("job.list", state="done", count=5)["jobs"]
    api("job.info", job=jobs[0]["id"])
    api("job.cancel", 412, job=jobs[0]["id"])
    slow = api("volume.create", name="slow", size=1 << 30)
    api("job.info", job=slow["id"])
    status = host.api("POST", f"/v1/jobs/{slow['id']}/cancel")[0]
    assert status in (200, 412)  # it may have ended by itself
    api("events.watch", since=0)


def test_every_kind_of_refusal_is_documented(api):
    api("volume.info", 404, volume="missing")
    api("volume.info", 400, volume="no/volume")
    api("volume.create", 400, name="x")
    api("volume.create", 400, name="-x", size=1 << 20)
    api("volume.create", 400, name="x", size="big")
    api("volume.create", 400, name="x", size=1 << 20, backing="/a", adopt="/b")
    api("volume.create", 409, name="disk1", size=1 << 20)
    api("volume.delete", 404, volume="missing")
    api("volume.serve", 412, volume="disk1", tcp="0.0.0.0:0")
    api("volume.serve", 400, volume="disk1", unix="relative")
    api("volume.unserve", 404, volume="disk1")
    api("checkpoint.create", 400, volumes=[], name="x")
    api("checkpoint.create", 400, volumes=["disk1", "disk1"], name="x")
    api("checkpoint.create", 404, volumes=["disk1", "missing"], name="x")
    api("checkpoint.create", volumes=["disk1"], name="taken")
    api("checkpoint.create", 409, volumes=["disk1"], name="taken")
    api("checkpoint.create", 400, volumes=["disk1"], name="x", durability="eternal")
    api("checkpoint.info", 404, volume="disk1", checkpoint="missing")
    api("checkpoint.export", 404, volume="disk1", checkpoint="missing", to="/tmp/x")
    api("checkpoint.export", 400, volume="disk1", checkpoint="taken", to="relative")
    api("volume.resize", 412, volume="disk1", size=1 << 20)
    exported = api("refpoint.export", volume="disk1", refpoint="ref-two")
    api("refpoint.import", 412, volume="disk1", **{**exported, "nonce": exported["volume_id"]})
    api("refpoint.import", 501, volume="disk1", **{**exported, "version": 2})
    api("changes.list", 412, volume="disk1", since="ref-two", nonce=exported["volume_id"])
    api("changes.list", 400, volume="disk1", since="ref-two", offset="x")
    api("job.info", 404, job="missing")
    api("job.cancel", 404, job="missing")
    api("job.watch", 404, job="missing")
    api.host.serve("disk1")
    api("volume.delete", 409, volume="disk1")
    api("volume.check", 409, volume="disk1")
    api("volume.unserve", volume="disk1")


def test_every_operation_on_a_machine_answers_as_documented(api, tmp_path):
    toml = machine_host.guest_toml("vm1")
    assert api.job("vm.create", specification=toml, name="vm2", file="vm.toml", directory=str(tmp_path))["state"] == "done"
    assert [machine["name"] for machine in api("vm.list")["machines"]] == ["vm2"]
    api("vm.create", 400, specification="name = 3")
    api("vm.create", 409, specification=toml, name="vm2")
    api("vm.info", 404, machine="missing")
    assert api("vm.start", machine="vm2", suspended=True)["state"] == "suspended"
    api("vm.start", 412, machine="vm2")
    assert api("vm.resume", machine="vm2")["state"] == "running"
    machine = machine_host.Machine(api.host, "vm2")
    machine.wait_for_agent()
    assert api("vm.info", machine="vm2")["agent"]
    assert api("vm.suspend", machine="vm2", level="frozen")["pause"]["level"] == "frozen"
    api("vm.resume", machine="vm2")
    api("vm.set", machine="vm2", cpus=1, memory=256 << 20, autostart="off", on_crash="preserve", stop_timeout_s=30,
        limit_cpus="0", limit_memory=0)
    assert api.job("volume.create", name="more", size=64 << 20)["state"] == "done"
    assert len(api("vm.attach", machine="vm2", volume="more", disk="data", read_only=True)["disks"]) == 2
    api("vm.attach", 409, machine="vm2", volume="more", disk="data")
    api("vm.detach", machine="vm2", disk="data")
    api("vm.detach", 404, machine="vm2", disk="data")
    api("volume.delete", volume="more")

    made = api.job("vm_checkpoint.create", machine="vm2", name="one", no_quiesce=True, freeze_limit_s=10, durability="durable",
                   require_application=False)
    assert made["state"] == "done" and made["result"]["consistency"] == "crash", made
    assert api.job("vm_checkpoint.create", machine="vm2", name="two", memory=True)["result"]["memory"]
    api("vm_checkpoint.info", machine="vm2", checkpoint="two")
    api("vm_checkpoint.info", 404, machine="vm2", checkpoint="three")
    assert len(api("vm_checkpoint.list", machine="vm2")["checkpoints"]) == 2
    assert api.job("vm_checkpoint.revert", machine="vm2", checkpoint="two")["state"] == "failed"
    reverted = api.job("vm_checkpoint.revert", machine="vm2", checkpoint="two", force=True, disks_only=False)
    assert reverted["result"]["state"] == "running", reverted
    api("vm_checkpoint.convert", machine="vm2", checkpoint="one", refpoint="zero")
    assert len(api("vm_refpoint.list", machine="vm2")["refpoints"]) == 1
    exported = api.job("vm_checkpoint.export", machine="vm2", checkpoint="two", to=str(tmp_path / "out"), since="zero")
    assert exported["state"] == "done", exported
    api("vm_checkpoint.delete", machine="vm2", checkpoint="two")
    api("vm_refpoint.delete", machine="vm2", refpoint="zero")

    assert api("vm.restart", machine="vm2", force=True, timeout_s=0)["state"] == "running"
    assert api("vm.stop", machine="vm2", force=True, timeout_s=0)["state"] == "stopped"
    api("vm.stop", 412, machine="vm2")
    assert api.job("vm.export", machine="vm2", to=str(tmp_path / "vm"))["state"] == "done"
    api("vm.import", 400, **{"from": str(tmp_path / "vm")})
    taken = {"from": str(tmp_path / "vm"), "name": "vm3"}
    assert api.job("vm.import", **taken, copied=True)["state"] == "done"
    assert api.job("vm.import", **taken, moved=True)["state"] == "failed"
    api("vm.delete", machine="vm2")
    assert api.job("vm.import", **taken, moved=True)["state"] == "failed"  # the name is taken
    api("vm.delete", machine="vm3")
    assert api.job("vm.import", **taken, moved=True)["result"]["name"] == "vm3"
    api("vm.delete", machine="vm3")


def test_every_operation_on_an_image_answers_as_documented(api, tmp_path):
    image = oci_images.Image([oci_images.layer([oci_images.file("x", b"x")])], {"Cmd": ["/x"], "Labels": {"a": "b"}})
    layout = oci_images.write_layout(tmp_path / "image", [("app:1", image)])
    made = api.job("image.import", archive=str(layout), image="app:1", name="app:2")
    assert made["state"] == "done" and made["result"]["digest"] == image.digest, made
    assert api.job("image.import", archive=str(tmp_path / "none"))["error"]["kind"] == "not_found"
    with oci_images.Registry() as registry:
        registry.add("app:1", image)
        pulled = api.job("image.pull", image=f"{registry.address}/app:1", tls_verify="false", timeout_s=10)
        assert pulled["state"] == "done" and len(pulled["result"]["names"]) == 2, pulled
    api("image.pull", 400, image="No Name")
    api("image.pull", 400, image="app", tls_verify=False)
    assert [each["digest"] for each in api("image.list")["images"]] == [image.digest]
    assert api("image.info", image="app:2")["config"]["command"] == ["/x"]
    api("image.info", 404, image="app:3")
    api("image.info", 400, image="No Name")
    assert api("image.delete", image="app:2")["deleted"] is False
    assert api("image.delete", image=image.digest)["deleted"] is True
    api("image.delete", 404, image=image.digest)


def test_every_operation_on_a_container_answers_as_documented(api, tmp_path):
    host = api.host
    busybox = oci_images.file("bin/busybox", pathlib.Path("/usr/bin/busybox").read_bytes(), mode=0o755)
    command = ["/bin/busybox", "sh", "-c", "echo words; exec /bin/busybox sleep 1000"]
    image = oci_images.Image([oci_images.layer([oci_images.directory("bin"), busybox])], {"Cmd": command})
    layout = oci_images.write_layout(tmp_path / "image", [("busybox:1", image)])
    assert api.job("image.import", archive=str(layout), name="busybox:1")["state"] == "done"

    # Kernels.
    assert api("kernel.list")["kernels"] == []
    built = guest.built("guest-kernel")
    modules = tmp_path / release_of(built["modules"])
    modules.symlink_to(built["modules"])
    assert api.job("kernel.import", image=built["kernel"], modules=str(modules))["state"] == "done"
    assert api.job("kernel.import", image=str(tmp_path / "none"), modules=str(modules))["state"] == "failed"
    (tmp_path / "no.deb").write_bytes(b"no package")
    assert api.job("kernel.import", package=str(tmp_path / "no.deb"))["state"] == "failed"
    assert [kernel["release"] for kernel in api("kernel.list")["kernels"]] == [modules.name]

    assert api.job("volume.create", name="tree", size=64 << 20, file_system="ext4")["state"] == "done"
    wanted = {"name": "c1", "labels": {"a": "b"}, "mounts": [{"volume": "tree", "path": "/data"}],
              "ports": [{"host_address": "127.0.0.1", "guest_port": 7}]}
    assert api("container.create", image="busybox:1", specification=wanted)["state"] == "created"
    api("container.create", 409, image="busybox:1", specification=wanted)
    api("container.create", 404, image="busybox:2")
    api("container.create", 400, image="busybox:1", specification={"colour": "red"})
    api("container.create", 404, image="busybox:1", specification={"overlay": "missing"})
    api("container.stop", 412, container="c1")
    api("container.pause", 412, container="c1")
    assert api("container.start", container="c1", hold=False)["state"] == "running"
    api("container.start", 412, container="c1")
    assert api("container.inspect", container="c1")["pid"]
    api("container.logs", 404, container="c2")
    assert api("container.logs", container="c1", tail=0) == []
    deadline = time.monotonic() + 60
    while not api("container.logs", container="c1"):
        assert time.monotonic() < deadline, "it has written nothing"
    api("container.attach", 400, container="c1")
    api.upgrade("container.attach", container="c1")
    api("container.inspect", 404, container="c2")
    assert [each["name"] for each in api("container.list")["containers"]] == ["c1"]
    assert api("container.pause", container="c1")["state"] == "frozen"
    assert api("container.pause", container="c1", level="parked")["pause"]["after"]["memory"] == 0
    api("container.pause", 412, container="c1", level="frozen")
    api("container.pause", 400, container="c1", level="asleep")
    assert api("container.resume", container="c1")["state"] == "running"
    assert api("container.pause", container="c1", level="hibernated")["state"] == "hibernated"
    api("container.pause", 412, container="c1", level="parked")
    api("container.delete", 412, container="c1")
    assert api("container.resume", container="c1")["state"] == "running"
    api("container.delete", 412, container="c1")
    api("volume.delete", 409, volume="tree")
    api("container.kill", 400, container="c1", signal="SIGNONE")
    api("container.kill", container="c1", signal="SIGURG")
    stopped = api("container.stop", container="c1", timeout_s=0)
    assert api("container.logs", container="c1", follow="true")[0]["text"] == "words"
    assert (stopped["state"], stopped["exit_code"]) == ("exited", 137)
    api("container.kill", 412, container="c1")
    assert api("container.start", container="c1")["state"] == "running"
    api("container.delete", container="c1", force="true")
    api("container.delete", 404, container="c1")
    assert api("container.list")["containers"] == []
    api("volume.delete", volume="tree")

    # Templates.
    assert api("template.list")["templates"] == []
    job = api.job("template.create", name="t1", image="busybox:1", ready="exec:exit 1", timeout_s=1, warm=[], pool=0,
                  specification={"memory": 128 << 20})
    assert (job["state"], job["error"]["kind"]) == ("failed", "timed_out")
    shell = {"entrypoint": ["/bin/busybox", "sleep"], "command": ["1000"]}
    job = api.job("template.create", name="t1", image="busybox:1", specification=shell)
    assert job["state"] == "done" and job["result"]["ready"] == "", job
    api("template.create", 404, name="t2", image="busybox:2")
    assert api.job("template.create", name="t1", image="busybox:1")["state"] == "failed"
    assert [each["name"] for each in api("template.list")["templates"]] == ["t1"]
    api("template.inspect", 404, template="t2")
    assert api("template.inspect", template="t1")["clones"] == []
    assert api("template.check", template="t1")["untouched"] is True
    api("container.clone", 400, template="t1", specification={"memory": 1 << 30})
    api("container.clone", 404, template="t2")
    made = api("container.clone", template="t1", count=2, specification={"name": "of"})
    assert made["error"] == "" and sorted(each["name"] for each in made["containers"]) == ["of-1", "of-2"]
    api("container.clone", 409, template="t1", specification={"name": "of-1"})
    api("template.delete", 409, template="t1")
    for each in made["containers"]:
        api("container.delete", container=each["name"], force="true")
    api("template.delete", template="t1")
    api("template.delete", 404, template="t1")
    api("template.create", 400, name="t3", image="busybox:1", container="c1")
    api("template.create", 404, name="t3", container="c1")
    api("container.create", image="busybox:1", specification={"name": "c9"})
    api("container.start", container="c9")
    job = api.job("template.create", name="t9", container="c9", pool=0)
    assert job["state"] == "done" and job["result"]["container"] == "c9", job
    api("template.delete", template="t9")
    api("container.delete", container="c9", force="true")
    api("image.delete", image="busybox:1")
    assert not list(host.memory_dir.glob("*/*"))


def test_every_operation_and_parameter_was_used(api):
    api("host.shutdown", keepers=True, machines=True)
    api.host.daemon.wait()
    successes = {name for name, status in api.statuses if status < 400} | {"job.cancel"}  # the race above
    assert successes == set(operations())
    all_parameters = {(name, parameter["name"]) for name, action in table().items() for parameter in action["parameters"]}
    assert all_parameters - api.parameters - {("job.cancel", "job")} == set()


def test_what_is_not_there_is_said_to_be_not_there(shared_host):
    assert shared_host.api("GET", "/v1/nonsense")[0] == 404
    status, headers, _ = shared_host.api_text("DELETE", "/v1/host")
    assert status == 405 and headers["Allow"] == "GET"
    assert shared_host.api("GET", "/v1/volumes?color=red")[0] == 400
    assert shared_host.api("POST", "/v1/volumes", {"name": "x", "size": 4096, "color": "red"})[0] == 400
    assert shared_host.api("POST", "/v1/volumes", b"{")[0] == 400
    assert shared_host.api("POST", "/v1/volumes", b"[]")[0] == 400
    assert shared_host.api("POST", "/v1/volumes", b"[" * 100000)[0] == 400
    assert raw_status(shared_host, b"POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n") == 413
    assert raw_status(shared_host, b"GET /v1/host HTTP/1.1\r\nHost: " + b"x" * 20000 + b"\r\n\r\n") == 431
    assert raw_status(shared_host, b"\x16\x03\x01nonsense\r\n\r\n") == 400


def raw_status(host, request):
    """The status that answers these bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(str(host.run_dir / "api.sock"))
        connection.sendall(request)
        return int(connection.recv(4096).split()[1])


def make_certificates(directory):
    """A CA, and a server and a client that it vouches for, as Berth and QEMU name their files."""
    tls = directory / "tls"
    tls.mkdir(exist_ok=True)

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def key(name):
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tls / f"{name}-key.pem")

    key("ca")
    openssl("req", "-x509", "-new", "-key", tls / "ca-key.pem", "-subj", "/CN=Test CA", "-days", 2, "-out", tls / "ca-cert.pem")
    for name in ("server", "client"):
        key(name)
        extensions = tls / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("req", "-new", "-key", tls / f"{name}-key.pem", "-subj", f"/CN={name}", "-out", tls / f"{name}.csr")
        openssl("x509", "-req", "-in", tls / f"{name}.csr", "-CA", tls / "ca-cert.pem", "-CAkey", tls / "ca-key.pem",
                "-CAcreateserial", "-days", 2, "-extfile", extensions, "-out", tls / f"{name}-cert.pem")
    return tls


def tls_port(host):
    """Where its daemon, the last one, listens."""
    return int(re.findall(r"listening at https://127\.0\.0\.1:(\d+)", host.log())[-1])


@pytest.fixture
def tls_host(tmp_path):
    tls = make_certificates(tmp_path)
    with BerthHost(daemon_options=["--listen", "127.0.0.1:0", "--tls-dir", tls]) as host:
        yield host, tls, f"https://127.0.0.1:{tls_port(host)}"


def test_tcp_needs_a_certificate_of_the_ca(tls_host):
    _, tls, url = tls_host
    curl = ["curl", "-sS", "--max-time", "20", "--cacert", str(tls / "ca-cert.pem")]
    with_certificate = subprocess.run(
        [*curl, "--cert", str(tls / "client-cert.pem"), "--key", str(tls / "client-key.pem"), f"{url}/v1/host"],
        check=True, timeout=30, text=True, stdout=subprocess.PIPE)
    assert json.loads(with_certificate.stdout)["api_version"] == 1
    without = subprocess.run([*curl, f"{url}/v1/host"], check=False, timeout=30, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert without.returncode != 0 and without.stdout == b""


def test_tcp_without_tls_is_refused():
    with BerthHost(start=False) as host:
        refused = host.refused("daemon", "--listen", "127.0.0.1:0")
        assert refused.returncode == 4 and "--tls-dir" in refused.stderr
