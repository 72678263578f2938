"""The application of `make bench-containers`: a search over the licenses that Debian's systems carry. It runs in the image that
scripts/service-images builds, and starts as such things do: a framework, a database, an index, templates.

    GET /               the page to search from: its first answer is the service's first response
    GET /search?q=TEXT  lines with these words
    GET /fill?mib=N     takes N MiB of memory, half of each page random, half of it text
    GET /touch          reads a byte of every page of that: how many there are, and how many are not what they were
    GET /dirty          writes a byte of every page
    GET /identity       who the machine is, for the benchmark of clones: name, addresses, random bytes of three sources

It needs python3-flask; openssl and uuidgen for /identity.
"""

import fcntl
import json
import os
import pathlib
import re
import socket
import sqlite3
import struct
import subprocess
import threading

import flask
import werkzeug.serving

LICENSES = pathlib.Path("/usr/share/common-licenses")
PAGE = 4096
PAGES_A_MIB = (1 << 20) // PAGE
RANDOM_BYTES = 32

HOME = """<!doctype html>
<title>Licenses</title>
<p>It serves: {{ lines }} lines of {{ texts | length }} texts.
<form action="/search"><input name="q"><button>Search</button></form>
<ul>{% for text, count in texts | dictsort %}<li>{{ text }}: {{ count }} lines</li>{% endfor %}</ul>
"""
FOUND = """<!doctype html>
<title>{{ words }}</title>
<ul>{% for text, line in found %}<li>{{ text }}: {{ line }}</li>{% else %}<li>Nothing{% endfor %}</ul>
"""


class Index:
    """Every word of every line, in a database in memory."""

    def __init__(self, directory):
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()
        self.texts = {}
        self._database.executescript("""
            CREATE TABLE line (id INTEGER PRIMARY KEY, text TEXT NOT NULL, content TEXT NOT NULL);
            CREATE TABLE word (word TEXT NOT NULL, line INTEGER NOT NULL REFERENCES line(id));
        """)
        for path in sorted(directory.iterdir()):
            if path.is_file() and not path.is_symlink():
                self._add(path.name, path.read_text(errors="replace").splitlines())
        self._database.execute("CREATE INDEX word_line ON word (word, line)")
        self._database.execute("ANALYZE")

    def _add(self, text, lines):
        for content in filter(str.strip, lines):
            line = self._database.execute("INSERT INTO line (text, content) VALUES (?, ?)", (text, content.strip())).lastrowid
            self._database.executemany("INSERT INTO word VALUES (?, ?)",
                                       {(word, line) for word in re.findall(r"\w+", content.lower())})
            self.texts[text] = self.texts.get(text, 0) + 1

    def find(self, words):
        """[(text, line)] of the lines that have all words; at most 50."""
        if not words:
            return []
        query = " INTERSECT ".join(["SELECT line FROM word WHERE word = ?"] * len(words))
        with self._lock:
            return self._database.execute(
                f"SELECT text, content FROM line WHERE id IN ({query}) ORDER BY id LIMIT 50", words).fetchall()


class Memory:
    """Pages that are held, and known by what they begin with."""

    def __init__(self, text):
        self._text = (text * (PAGE // len(text) + 1))[:PAGE // 2]
        self._pieces, self._first = [], []

    def fill(self, mib):
        """Takes so many MiB, in place of what was held."""
        self._pieces, self._first = [], []
        for _ in range(mib):
            piece = bytearray(b"".join(os.urandom(PAGE // 2) + self._text for _ in range(PAGES_A_MIB)))
            self._pieces.append(piece)
            self._first.append(bytes(piece[::PAGE]))

    def dirty(self):
        """Writes every page: none of them is what a page file or a template has."""
        for number, piece in enumerate(self._pieces):
            first = os.urandom(PAGES_A_MIB)
            piece[::PAGE] = first
            self._first[number] = first

    def touch(self):
        """Reads every page: how many there are, and how many are not what they were."""
        pages = changed = 0
        for piece, first in zip(self._pieces, self._first):
            now = piece[::PAGE]
            pages += len(now)
            changed += 0 if now == first else sum(one != other for one, other in zip(now, first))
        return {"pages": pages, "changed": changed}


def addresses():
    """{interface: [MAC, IPv4 address or none]} of all but loopback."""
    found = {}
    for path in sorted(pathlib.Path("/sys/class/net").iterdir()):
        if path.name != "lo":
            found[path.name] = [(path / "address").read_text().strip(), address_of(path.name)]
    return found


def address_of(interface):
    """Its IPv4 address (netdevice(7), SIOCGIFADDR), or none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket.fileno(), 0x8915, struct.pack("256s", interface.encode()))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def identity():
    """What no two machines have in common. Random bytes first: they are the first that this process asks for."""
    random = os.getrandom(RANDOM_BYTES).hex()
    openssl = subprocess.run(["openssl", "rand", "-hex", str(RANDOM_BYTES)], stdout=subprocess.PIPE, text=True, check=True)
    uuid = subprocess.run(["uuidgen", "--random"], stdout=subprocess.PIPE, text=True, check=True)
    network = addresses()
    return {"getrandom": random, "openssl": openssl.stdout.strip(), "uuidgen": uuid.stdout.strip(),
            "hostname": socket.gethostname(), "machine_id": pathlib.Path("/etc/machine-id").read_text().strip(),
            "mac": [mac for mac, _ in network.values()], "address": [address for _, address in network.values()]}


def application():
    """The service, ready to answer."""
    made = flask.Flask("search")
    index = Index(LICENSES)
    memory = Memory((LICENSES / "GPL-3").read_bytes()[:PAGE // 2])
    home, found = (made.jinja_env.from_string(text) for text in (HOME, FOUND))

    @made.get("/")
    def _home():
        return home.render(texts=index.texts, lines=sum(index.texts.values()))

    @made.get("/search")
    def _search():
        words = re.findall(r"\w+", flask.request.args.get("q", "").lower())
        return found.render(words=" ".join(words), found=index.find(words))

    @made.get("/fill")
    def _fill():
        memory.fill(int(flask.request.args["mib"]))
        return json.dumps(memory.touch())

    @made.get("/dirty")
    def _dirty():
        memory.dirty()
        return json.dumps(memory.touch())

    @made.get("/touch")
    def _touch():
        return json.dumps(memory.touch())

    @made.get("/identity")
    def _identity():
        return json.dumps(identity())

    return made


if __name__ == "__main__":
    werkzeug.serving.make_server("0.0.0.0", 80, application(), threaded=True).serve_forever()
