"""The NBD server with the clients that people have: nbdinfo, nbdcopy, qemu-img, qemu-io, fio; and TLS."""

import filecmp
import json
import random
import socket

import nbd
import pytest

from nbd_fixture import process
from nbd_fixture.process import RawClient, run, running

MIB = 1 << 20


@pytest.fixture
def server(tmp_path):
    with running(unix=tmp_path / "nbd.sock") as started:
        yield started


@pytest.fixture
def sparse_image(tmp_path):
    """64 MiB with data in a few places."""
    path = tmp_path / "image.raw"
    generator = random.Random(3)
    with open(path, "wb") as image:
        image.truncate(64 * MIB)
        for _ in range(20):
            image.seek(generator.randrange(63 * MIB))
            image.write(generator.randbytes(generator.randrange(1, 300_000)))
    return path


def nbd_map(server, context):
    return json.loads(run("nbdinfo", "--json", f"--map={context}", server.uri()).stdout)


def test_nbdinfo_lists_and_describes_every_export(server):
    exports = json.loads(run("nbdinfo", "--json", "--list", server.uri()).stdout)["exports"]
    assert [export["export-name"] for export in exports] == ["disk", "read-only", "blocks", "odd", "large", "full"]
    disk = exports[0]
    assert disk["contexts"] == ["base:allocation", "berth:changed:start"]
    assert disk["export-size"] == 64 * MIB and disk["can_multi_conn"] and disk["can_fast_zero"]
    assert exports[1]["is_read_only"] and not exports[1]["can_zero"]
    assert exports[2]["block_size_minimum"] == 4096


def test_nbdinfo_maps_every_context(server):
    run("qemu-io", "-f", "raw", "-c", "write 64k 1", "-c", "write 1M 128k", server.uri())
    assert [(e["offset"], e["length"], e["type"]) for e in nbd_map(server, "base:allocation")] == [
        (0, 65536, 3), (65536, 65536, 0), (131072, MIB - 131072, 3), (MIB, 131072, 0),
        (MIB + 131072, 63 * MIB - 131072, 3)]
    assert [(e["offset"], e["type"]) for e in nbd_map(server, "berth:changed:start") if e["type"]] == [
        (65536, 1), (MIB, 1)]
    totals = json.loads(run("nbdinfo", "--json", "--map", "--totals", server.uri("large")).stdout)
    assert totals == [{"size": 8 << 40, "percent": 100.0, "type": 3, "description": "hole,zero"}]


def test_nbdcopy_copies_in_and_out(server, sparse_image, tmp_path):
    copy = tmp_path / "copy.raw"
    run("nbdcopy", "--flush", sparse_image, server.uri())
    run("nbdcopy", server.uri(), copy)
    assert filecmp.cmp(sparse_image, copy, shallow=False)
    holes = [extent for extent in nbd_map(server, "base:allocation") if extent["type"] == 3]
    assert sum(extent["length"] for extent in holes) > 32 * MIB


@pytest.mark.parametrize("connections,requests", [(1, 1), (4, 64)])
def test_nbdcopy_copies_with_any_parallelism(server, sparse_image, tmp_path, connections, requests):
    copy = tmp_path / "copy.raw"
    options = [f"--connections={connections}", f"--requests={requests}"]
    run("nbdcopy", *options, sparse_image, server.uri())
    run("nbdcopy", *options, "--synchronous", server.uri(), copy)
    assert filecmp.cmp(sparse_image, copy, shallow=False)


def test_qemu_img_converts_compares_and_maps(server, sparse_image, tmp_path):
    qcow2 = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", sparse_image, server.uri())
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", sparse_image, server.uri())
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "8", "-W", server.uri(), qcow2)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", sparse_image, qcow2)
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri()).stdout)
    assert sum(extent["length"] for extent in extents) == 64 * MIB
    assert {extent["zero"] for extent in extents} == {True, False}
    assert json.loads(run("qemu-img", "info", "--output=json", server.uri()).stdout)["virtual-size"] == 64 * MIB

    run("qemu-io", "-f", "raw", "-c", "write -P 1 1M 1", server.uri())
    assert run("qemu-img", "compare", "-f", "raw", "-F", "raw", sparse_image, server.uri(), check=False).returncode == 1


def test_qemu_reads_the_changes_as_a_bitmap(server):
    run("qemu-io", "-f", "raw", "-c", "write 1M 64k", server.uri())
    options = ("driver=nbd,server.type=unix,export=disk,x-dirty-bitmap=berth:changed:start,"
               f"server.path={server.unix}")
    extents = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", options).stdout)
    # qemu shows a dirty range as one without data.
    assert [(e["start"], e["length"]) for e in extents if not e["data"]] == [(MIB, 65536)]


def test_qemu_io_writes_zeroes_discards_and_flushes(server):
    commands = ["write -P 7 0 256k", "write -z 64k 64k", "write -z -u 128k 64k", "discard 192k 64k", "flush",
                "write -f -P 9 300001 7", "read -P 7 0 64k", "read -P 0 64k 192k", "read -P 9 300001 7",
                "aio_write -P 3 1M 1M", "aio_write -P 4 2M 1M", "aio_flush", "read -P 3 1M 1M", "read -P 4 2M 1M"]
    words = [word for command in commands for word in ("-c", command)]
    output = run("qemu-io", "-f", "raw", "-d", "unmap", *words, server.uri()).stdout
    assert "failed" not in output and "error" not in output.lower()


@pytest.mark.parametrize("job", [
    {"rw": "randwrite", "bs": "4k", "iodepth": "32", "size": "16M"},
    {"rw": "randrw", "bsrange": "512-64k", "bs_unaligned": "1", "iodepth": "16", "size": "16M"},
    {"rw": "write", "bs": "1M", "iodepth": "8", "size": "48M"},
])
def test_fio_finds_what_it_wrote(server, tmp_path, job):
    options = [f"--{name}={value}" for name, value in job.items()]
    output = run("fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri()}", "--verify=crc32c",
                 "--verify_fatal=1", "--do_verify=1", "--output-format=json", *options, cwd=tmp_path).stdout
    result = json.loads(output[output.index("{"):])["jobs"][0]
    assert result["error"] == 0
    assert result["read"]["io_bytes"] > 0 and result["write"]["io_bytes"] > 0


# TLS

def make_authority(directory, name):
    directory.mkdir()
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-keyout", directory / "ca-key.pem", "-out", directory / "ca-cert.pem")
    return directory


def make_certificate(authority, directory, role):
    """ROLE-key.pem and ROLE-cert.pem in `directory`, signed by the authority."""
    directory.mkdir(exist_ok=True)
    key, certificate, request = (directory / f"{role}-{part}" for part in ("key.pem", "cert.pem", "request.pem"))
    extensions = directory / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n"
                          f"extendedKeyUsage={role}Auth\nkeyUsage=digitalSignature\n")
    run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={role}",
        "-keyout", key, "-out", request)
    run("openssl", "x509", "-req", "-days", "2", "-in", request, "-CA", authority / "ca-cert.pem", "-CAkey",
        authority / "ca-key.pem", "-CAcreateserial", "-extfile", extensions, "-out", certificate)
    return directory


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Directories: the server's, a client's, one of a client of another authority, one without a certificate."""
    base = tmp_path_factory.mktemp("certificates")
    ours, others = make_authority(base / "ours", "ours"), make_authority(base / "others", "others")
    found = {"server": make_certificate(ours, base / "server", "server"),
             "client": make_certificate(ours, base / "client", "client"),
             "stranger": make_certificate(others, base / "stranger", "client"), "nobody": base / "nobody"}
    found["nobody"].mkdir()
    for directory in found.values():
        (directory / "ca-cert.pem").write_bytes((ours / "ca-cert.pem").read_bytes())
    return found


@pytest.fixture
def tls_server(certificates):
    with running("--tls", certificates["server"], tcp="127.0.0.1:0") as started:
        yield started


def tls_uri(server, certificates, who, export="disk"):
    return f"nbds://localhost:{server.port}/{export}?tls-certificates={certificates[who]}"


def open_with_tls(server, certificates, who):
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(tls_uri(server, certificates, who))
    handle.pread(1, 0)  # with TLS 1.3, a refusal comes with the first answer
    return handle


def test_a_client_with_a_certificate_is_served_over_tls(tls_server, certificates):
    handle = open_with_tls(tls_server, certificates, "client")
    assert handle.get_tls_negotiated()
    data = random.Random(1).randbytes(5 * MIB + 3)
    handle.pwrite(data, 12345)
    assert handle.pread(len(data), 12345) == data
    handle.shutdown()


@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_a_client_without_our_certificate_is_refused(tls_server, certificates, who):
    with pytest.raises(nbd.Error):
        open_with_tls(tls_server, certificates, who)
    assert open_with_tls(tls_server, certificates, "client").get_size() == 64 * MIB


def test_nothing_is_said_in_the_clear_where_tls_is_required(tls_server):
    handle = nbd.NBD()
    with pytest.raises(nbd.Error):
        handle.connect_tcp("127.0.0.1", str(tls_server.port))
    client = RawClient(socket.create_connection(("127.0.0.1", tls_server.port), process.COMMAND_SECONDS_MAX))
    for option in (process.LIST, process.INFO, process.GO, process.STRUCTURED_REPLY, process.SET_META_CONTEXT, 99):
        assert client.option(option)[-1][0] == process.REP_ERR_TLS_REQD
    # What was sent in the clear before the answer must not count as said under TLS.
    client.send(b"IHAVEOPT" + bytes([0, 0, 0, 5, 0, 0, 0, 0]) + b"IHAVEOPT" + bytes([0, 0, 0, 3, 0, 0, 0, 0]))
    assert client.is_closed()
    client.close()


def test_tls_that_is_no_tls_is_cut_off(tls_server):
    client = RawClient(socket.create_connection(("127.0.0.1", tls_server.port), process.COMMAND_SECONDS_MAX))
    assert client.option(process.STARTTLS) == [(process.REP_ACK, b"")]
    client.send(b"this is no ClientHello" * 10)
    assert client.is_closed()
    client.close()


def test_a_server_without_tls_does_not_pretend(server, certificates):
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_certificates(str(certificates["client"]))
    with pytest.raises(nbd.Error):
        handle.connect_unix(str(server.unix))


def test_nbdcopy_and_qemu_work_over_tls(tls_server, certificates, sparse_image, tmp_path):
    copy = tmp_path / "copy.raw"
    uri = tls_uri(tls_server, certificates, "client")
    run("nbdcopy", "--flush", sparse_image, uri)
    run("nbdcopy", uri, copy)
    assert filecmp.cmp(sparse_image, copy, shallow=False)
    run("qemu-img", "compare", "--object", f"tls-creds-x509,id=t,dir={certificates['client']},endpoint=client",
        "--image-opts", f"driver=file,filename={sparse_image}",
        f"driver=nbd,host=localhost,port={tls_server.port},export=disk,tls-creds=t")
