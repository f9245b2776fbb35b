"""File systems of networks, and of programs, are told from those of disks."""

import pytest

from packlight.common import mounts
from packlight.common.mounts import remote_type


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Writes a list of mounts: (folder, type) of each."""

    def write(*rows):
        listed = tmp_path / "mountinfo"
        lines = [
            f"{n} 1 0:{n} / {folder} rw,relatime shared:1 - {kind} what rw" for n, (folder, kind) in enumerate(rows)
        ]
        listed.write_text("".join(f"{line}\n" for line in ("nonsense", *lines)))
        monkeypatch.setattr(mounts, "MOUNTS", listed)

    return write


@pytest.mark.parametrize(
    ("kind", "remote"),
    [
        *((kind, True) for kind in ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse", "fuse.sshfs", "ceph")),
        *((kind, False) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "virtiofs")),
    ],
)
def test_the_type_decides(mounted, tmp_path, kind, remote):
    mounted(("/", "ext4"), (tmp_path, kind))
    assert remote_type(tmp_path / "store") == (kind if remote else None)


def test_the_nearest_mount_counts_and_of_several_the_last(mounted, tmp_path):
    near = tmp_path / "a b"
    near.mkdir()
    mounted((str(near).replace(" ", r"\040"), "nfs"), ("/", "ext4"), (tmp_path, "xfs"))
    assert remote_type(near) == "nfs"
    assert remote_type(tmp_path / "a bc") is None
    mounted(("/", "nfs"), (near.parent, "ext4"), (near.parent, "cifs"))
    assert remote_type(near) == "cifs"
    (tmp_path / "link").symlink_to(near)
    mounted(("/", "ext4"), (str(near).replace(" ", r"\040"), "fuse.x"))
    assert remote_type(tmp_path / "link") == "fuse.x"


def test_systems_without_the_list_have_no_remote_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "absent")
    assert remote_type(tmp_path) is None
