"""Which file system a folder lies on. Knows Linux's list of mounts; of other systems nothing."""

import os
import pathlib
import re

MOUNTS = pathlib.Path("/proc/self/mountinfo")
# Other machines, or programs of their own, can change or cut a file of these while it is mapped here.
REMOTE = re.compile(r"nfs\d?|cifs|smb\w*|9p|afs|ceph|coda|gfs2?|glusterfs|gpfs|lustre|beegfs|ncpfs|fuse(\..*)?")


def remote_type(folder: pathlib.Path) -> str | None:
    """The type of a folder's file system where that is a network's or a program's, or None.

    Source: proc_pid_mountinfo(5).
    """
    real, found = pathlib.Path(os.path.realpath(folder)), (-1, "")
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        mount, _, filesystem = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 5 or not filesystem:
            continue
        point = pathlib.Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if real.is_relative_to(point) and len(point.parts) >= found[0]:  # a later mount hides an earlier one
            found = len(point.parts), filesystem.split(" ")[0]
    return found[1] if REMOTE.fullmatch(found[1]) else None
