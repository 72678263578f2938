"""Container images made by hand: OCI layouts, archives of both kinds, and a registry that serves them.

    base = layer([directory("etc"), file("etc/motd", b"hello", mode=0o644, xattrs={"user.note": "x"})])
    image = Image([base, layer([whiteout("etc/motd")])], config={"Cmd": ["/bin/true"]})
    write_layout(path, [("example.org/app:1", image)])      # an OCI image layout
    write_oci_archive(path, [("example.org/app:1", image)])     # the same as a tar
    write_docker_archive(path, [("app:1", image)])              # as `docker save` writes it
    with Registry(path_of_layout) as registry: …                # http://127.0.0.1:PORT, read-only

Nothing is checked: images may be as wrong as a test wants them. Standard library only."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import json
import pathlib
import subprocess
import tarfile
import threading

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
MTIME = 1_600_000_000


def digest_of(data):
    """The digest of bytes, as OCI writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


# --- What a layer has in it: (TarInfo, content).

def _member(name, kind, mode, uid=0, gid=0, mtime=MTIME, xattrs=(), **fields):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, mtime
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in dict(xattrs).items()}
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def file(name, data=b"", mode=0o644, **fields):
    """A regular file; `fields`: uid, gid, mtime, xattrs (a dictionary of texts)."""
    return _member(name, tarfile.REGTYPE, mode, **fields), data


def directory(name, mode=0o755, **fields):
    """A directory."""
    return _member(name, tarfile.DIRTYPE, mode, **fields), b""


def symlink(name, target):
    """A symbolic link."""
    return _member(name, tarfile.SYMTYPE, 0o777, linkname=target), b""


def hard_link(name, target):
    """Another name of a file that the layer has already."""
    return _member(name, tarfile.LNKTYPE, 0o644, linkname=target), b""


def device(name, major, minor, mode=0o600, kind=tarfile.CHRTYPE):
    """A device node."""
    return _member(name, kind, mode, devmajor=major, devminor=minor), b""


def fifo(name):
    """A named pipe."""
    return _member(name, tarfile.FIFOTYPE, 0o600), b""


def whiteout(path):
    """What removes PATH of the layers below."""
    path = pathlib.PurePosixPath(path)
    return file(str(path.parent / f".wh.{path.name}"))


def opaque(path):
    """What removes everything in the directory PATH of the layers below."""
    return file(f"{path}/.wh..wh..opq")


@dataclasses.dataclass
class Layer:
    """A layer: its tar, and how it is kept."""

    tar: bytes
    blob: bytes
    media_type: str


def layer(members, compression="gzip"):
    """A layer of these members; `compression` is gzip, zstd or "" for none."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = tar.getvalue()
    if compression == "gzip":
        return Layer(data, gzip.compress(data, mtime=0), LAYER + "+gzip")
    if compression == "zstd":
        packed = subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True, timeout=60).stdout
        return Layer(data, packed, LAYER + "+zstd")
    return Layer(data, data, LAYER)


@dataclasses.dataclass
class Image:
    """Layers, and what the configuration says of how to run them."""

    layers: list
    config: dict = dataclasses.field(default_factory=dict)
    architecture: str = "amd64"
    os: str = "linux"
    created: str = "2024-05-06T07:08:09Z"

    def config_blob(self):
        """The configuration, as bytes."""
        return json.dumps({"architecture": self.architecture, "os": self.os, "created": self.created, "config": self.config,
                           "rootfs": {"type": "layers", "diff_ids": [digest_of(part.tar) for part in self.layers]}}).encode()

    def blobs(self):
        """{digest: bytes} of all that it is made of, and the manifest's descriptor."""
        parts = [(part.blob, part.media_type) for part in self.layers]
        config = self.config_blob()
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(config, CONFIG),
                               "layers": [descriptor(*part) for part in parts]}).encode()
        return {digest_of(blob): blob for blob in [config, manifest, *(blob for blob, _ in parts)]}, \
            descriptor(manifest, MANIFEST)

    @property
    def digest(self):
        """Of the manifest."""
        return self.blobs()[1]["digest"]


def descriptor(blob, media_type, **more):
    """What a blob is called where it is named."""
    return {"mediaType": media_type, "digest": digest_of(blob), "size": len(blob), **more}


def image_index(images):
    """A manifest list of images for several platforms: its bytes, and all blobs below it."""
    blobs, entries = {}, []
    for image in images:
        more, entry = image.blobs()
        blobs |= more
        entries.append({**entry, "platform": {"architecture": image.architecture, "os": image.os}})
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode(), blobs


# --- Where images lie.

def write_layout(path, images, change=None):
    """An OCI image layout at `path` with [(name or None, Image)]; `change` edits {digest: bytes} before they are written."""
    path = pathlib.Path(path)
    all_blobs, entries = {}, []
    for name, image in images:
        blobs, entry = image.blobs()
        all_blobs |= blobs
        entries.append({**entry, **({"annotations": {REF_NAME: name}} if name else {})})
    if change:
        change(all_blobs)
    (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    for digest, blob in all_blobs.items():
        (path / "blobs" / digest.replace(":", "/")).write_bytes(blob)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    return path


def _write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), MTIME
            archive.addfile(info, io.BytesIO(data))
    return path


def write_oci_archive(path, images, scratch):
    """An OCI layout in a tar."""
    layout = write_layout(scratch, images)
    return _write_tar(path, [(str(part.relative_to(layout)), part.read_bytes())
                             for part in sorted(layout.rglob("*")) if part.is_file()])


def write_docker_archive(path, images):
    """What `docker save` writes: [(name or None, Image)]."""
    members, entries = {}, []
    for name, image in images:
        config = image.config_blob()
        config_name = digest_of(config)[7:] + ".json"
        members[config_name] = config
        layers = []
        for part in image.layers:
            layers.append(f"{digest_of(part.tar)[7:]}/layer.tar")
            members[layers[-1]] = part.tar
        entries.append({"Config": config_name, "RepoTags": [name] if name else None, "Layers": layers})
    members["manifest.json"] = json.dumps(entries).encode()
    return _write_tar(path, members.items())


class Registry:
    """A registry on loopback (OCI distribution, reading alone), for as long as the block lasts. `manifests` is
    {"repository:tag": (bytes, media type)}, `blobs` is {digest: bytes}; `cut` has the connection end in the middle of that
    blob, `hold` has the answer to it wait until release() is called; `requests` counts what was asked for."""

    def __init__(self):
        self.manifests, self.blobs, self.requests = {}, {}, []
        self.cut, self.hold = None, None
        self.held, self._released = threading.Event(), threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            """One request."""

            protocol_version = "HTTP/1.1"

            def do_GET(self):  # pylint: disable=invalid-name
                outer.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):  # pylint: disable=arguments-differ
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def add(self, name, *images):
        """`images` under "repository:tag": one as it is, several as a manifest list."""
        if len(images) == 1:
            blobs, entry = images[0].blobs()
            self.manifests[name] = (blobs[entry["digest"]], MANIFEST)
        else:
            manifest, blobs = image_index(images)
            self.manifests[name] = (manifest, INDEX)
        self.blobs |= blobs

    def answer(self, request):
        """Writes the answer to one request."""
        self.requests.append(request.path)
        found = self._find(request.path)
        if found is None:
            body = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
            kind, status = "application/json", 404
        else:
            (body, kind), status = found, 200
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Docker-Content-Digest", digest_of(body))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.cut is not None and request.path.endswith(self.cut):
            body = body[:len(body) // 2]
            request.close_connection = True
        if self.hold is not None and request.path.endswith(self.hold):
            self.held.set()
            self._released.wait(60)
        with contextlib.suppress(OSError):
            request.wfile.write(body)

    def _find(self, path):
        if path == "/v2/":
            return b"{}", "application/json"
        repository, kind, reference = (path.removeprefix("/v2/").rsplit("/", 2) + ["", ""])[:3]
        if kind == "manifests":
            for body, media_type in self.manifests.values():
                if digest_of(body) == reference:
                    return body, media_type
            if reference in self.blobs:
                return self.blobs[reference], MANIFEST
            return self.manifests.get(f"{repository}:{reference}")
        return (self.blobs[reference], "application/octet-stream") if reference in self.blobs else None

    def release(self):
        """Lets a held answer go on."""
        self._released.set()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.release()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
