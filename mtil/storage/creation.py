"""Exclusive creation: give a file a name only if the name is free.

Uses a hard link, or else a rename without replacement. File systems without hard links (exFAT, FAT,
many FUSE mounts, some folders shared with a virtual machine) mostly support the rename. A file
system without both cannot hold files that only one process may create.
"""

import ctypes
import errno
import os
from functools import cache
from typing import Any

from mtil.errors import StorageError

_LINK_UNSUPPORTED = {
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV,
    errno.EMLINK, errno.EACCES,
}  # fmt: skip
"""Error numbers of `link` without hard links, or for an impossible link."""
_RENAME_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_NOREPLACE = 1
"""The flag RENAME_NOREPLACE of renameat2 on Linux."""


def rename_if_absent(partial: str, name: str, folder: int, where: str) -> bool:
    """Give a partial file its final name, unless the name is taken.

    Args:
        partial: the file's current name. May still exist afterwards.
        name: the final name.
        folder: descriptor of the folder with both names.
        where: the final path, for the error.

    Returns:
        Whether the file now has the final name.

    Raises:
        StorageError: if the file system supports neither hard links nor the rename.
        OSError: if the link or the rename fails for another reason.
    """
    try:
        os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # If a file server's reply is lost, the request is repeated and fails, although the first
        # request made the link. So the link count decides.
        return os.stat(partial, dir_fd=folder, follow_symlinks=False).st_nlink > 1
    except OSError as error:
        if error.errno not in _LINK_UNSUPPORTED:
            raise
        return _rename(partial, name, folder, where, error)
    return True


def _rename(partial: str, name: str, folder: int, where: str, link_error: OSError) -> bool:
    # Python's os.rename always replaces an existing file, so call the C function.
    rename = _load_renameat2()
    failure = errno.ENOSYS
    if rename is not None:
        old, new = os.fsencode(partial), os.fsencode(name)
        if rename(folder, old, folder, new, _NOREPLACE) == 0:
            return True
        failure = ctypes.get_errno()
    if failure == errno.EEXIST:
        return False
    if failure not in _RENAME_UNSUPPORTED:
        raise OSError(failure, os.strerror(failure))
    raise StorageError(
        f"{where} cannot be created: mtil needs a file system with hard links, or with a rename "
        f"that replaces nothing, but has neither here ({link_error.strerror}; "
        f"{os.strerror(failure)}); choose another file system or a bucket."
    )


@cache
def _load_renameat2() -> Any:
    """Return `renameat2` of the C library, or None if the library lacks the function."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [
            ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
        ]  # fmt: skip
        function.restype = ctypes.c_int
    return function
