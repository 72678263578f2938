"""Container images from a registry: pulled, pulled again, refused, cut short. What has come is whole; what has not leaves
nothing."""

import os
import signal
import subprocess
import threading

import pytest
from berth_host import program
from image_tools import fixture_host, fixture_private_mounts  # noqa: F401
from image_tools import LAYERS, MIB, check_file_system, many_layers, mounted, names, refused, simple, workers
from oci_images import Image, Registry, digest_of, file, layer
from volume_tools import child


@pytest.fixture(name="registry")
def _registry():
    with Registry() as registry:
        yield registry


def pull(host, registry, name, *options):
    return host.json("image", "pull", f"docker://{registry.address}/{name}", "--tls-verify=false", *options, timeout_s=60)


def refused_pull(host, code, registry, name, *words, options=()):
    whole = f"{registry.address}/{name}"
    return refused(host, code, whole, *words, line=["image", "pull", whole, "--tls-verify=false", *options])


def test_an_image_is_pulled_and_only_what_is_new_comes_again(host, registry):
    registry.add("team/app:latest", many_layers())
    image = pull(host, registry, "team/app")
    check_file_system(image, LAYERS)
    assert image["digest"] == many_layers().digest and image["names"] == [f"{registry.address}/team/app:latest"]
    assert image["source"] == f"docker://{registry.address}/team/app:latest"
    registry.requests.clear()
    registry.add("team/app:2", Image([*many_layers().layers, layer([file("more", b"m")])]))
    check_file_system(pull(host, registry, "team/app:2"), [*LAYERS, [file("more", b"m")]])
    fetched = [path for path in registry.requests if "/blobs/" in path]
    assert len(set(fetched)) == 2, fetched  # the layer, the config
    registry.requests.clear()
    pull(host, registry, "team/app:2")
    assert not [path for path in registry.requests if "/blobs/" in path and image["layers"][0]["digest"] in path]


def test_a_name_goes_to_the_image_that_has_it_now(host, registry):
    registry.add("app:1", simple(b"1"))
    old = pull(host, registry, "app:1")
    registry.add("app:1", simple(b"2"))
    new = pull(host, registry, "app:1")
    assert names(host) == {f"{registry.address}/app:1": new["digest"]}
    assert host.json("image", "info", old["digest"])["names"] == []


def test_of_a_list_the_image_of_this_host_is_taken(host, registry):
    registry.add("app:1", simple(b"arm", architecture="arm64"), simple(b"amd"), simple(b"z", architecture="s390x"))
    image = pull(host, registry, "app:1")
    with mounted(image) as root:
        assert (root / "own").read_bytes() == b"amd"
    assert image["digest"] == simple(b"amd").digest
    assert pull(host, registry, f"app@{image['digest']}")["names"] == [f"{registry.address}/app:1",
                                                                       f"{registry.address}/app@{image['digest']}"]


def test_of_a_list_without_this_host_what_there_is_is_named(host, registry):
    registry.add("app:1", simple(architecture="arm64"), simple(architecture="s390x"))
    refused_pull(host, 1, registry, "app:1", "linux/arm64, linux/s390x", "linux/amd64")


def test_what_a_registry_does_not_have_is_not_found(host, registry):
    registry.add("app:1", simple())
    refused_pull(host, 3, registry, "app:2")
    refused_pull(host, 3, registry, "other:1")


def test_a_registry_that_is_not_there_is_named(host, registry):
    registry.add("app:1", simple())
    refused(host, 1, registry.address, line=["image", "pull", f"{registry.address}/app:1"])  # it has no TLS
    with Registry() as gone:
        pass
    refused_pull(host, 1, gone, "app:1", "refused")


def test_a_registry_that_stops_in_the_middle_leaves_nothing(host, registry):
    image = Image([layer([file("big", os.urandom(4 * MIB))])])
    registry.add("app:1", image)
    registry.cut = digest_of(image.layers[0].blob)
    refused_pull(host, 1, registry, "app:1")
    assert host.json("image", "list") == {"images": []}
    registry.cut = None
    assert pull(host, registry, "app:1")["digest"] == image.digest


def test_a_registry_that_sends_something_else_is_found_out(host, registry):
    image = simple()
    registry.add("app:1", image)
    registry.blobs[digest_of(image.layers[0].blob)] = os.urandom(len(image.layers[0].blob))
    refused_pull(host, 1, registry, "app:1", "igest")


def test_a_registry_that_falls_silent_is_given_up(host, registry):
    registry.add("app:1", simple())
    registry.hold = digest_of(simple().layers[0].blob)
    assert "2 s" in refused_pull(host, 5, registry, "app:1", options=["--timeout", "2"])


def test_a_pull_is_cancelled(host, registry):
    registry.add("app:1", simple())
    registry.hold = digest_of(simple().layers[0].blob)
    command = [program(), "image", "pull", f"{registry.address}/app:1", "--tls-verify=false"]
    with child(*command, env=host.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        assert registry.held.wait(30)
        job = host.json("job", "list", "--state", "running")["jobs"][0]
        assert (job["kind"], job["target"], job["phase"]) == ("image.pull", f"{registry.address}/app:1", "copying")
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 5 and "cancelled" in errors, errors
    assert host.wait_for_job(job["id"])["state"] == "cancelled"
    assert workers(host) == []


def test_pulls_and_deletes_at_once_end_with_whole_images(host, registry):
    """Of one image and of others that share its layers; each ends, and the store is sane."""
    base = layer([file("base", os.urandom(MIB))])
    for i in range(3):
        registry.add(f"app:{i}", simple(bytes([i]), base))
    errors = []

    def work(i):
        for _ in range(3):
            done = host.run("image", "pull", f"{registry.address}/app:{i % 3}", "--tls-verify=false", timeout_s=120)
            if done.returncode != 0:
                errors.append(done.stderr)
            done = host.run("image", "delete", f"{registry.address}/app:{i % 3}")
            if done.returncode not in (0, 3):
                errors.append(done.stderr)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)
    # One's delete may come between another's publication and its answer.
    assert [error for error in errors if "there is no image" not in error] == []
    assert not any(thread.is_alive() for thread in threads)
