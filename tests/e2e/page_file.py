"""A decoder of page files that follows docs/formats/page-file.md, and nothing else."""

_RECORD = 4096


def _granules(path, magic, at):
    """(offset, length) of each granule of the set in the record that lies `at` so many bytes behind the memory."""
    memory = path.stat().st_size - 2 * _RECORD
    with open(path, "rb") as file:
        file.seek(memory + at)
        record = file.read(_RECORD)
    assert record[:8] == magic and int.from_bytes(record[24:32], "little") == memory
    granule = int.from_bytes(record[32:40], "little")
    bits = int.from_bytes(record[2048:], "little")
    found = [(i * granule, min(granule, memory - i * granule)) for i in range(-(-memory // granule)) if bits >> i & 1]
    assert len(found) == int.from_bytes(record[40:48], "little") == bits.bit_count()
    return found


def held(path):
    """The granules that the file holds."""
    return _granules(path, b"BRTHPGF\0", 0)


def working_set(path):
    """Those that are read ahead."""
    return _granules(path, b"BRTHPGW\0", _RECORD)
