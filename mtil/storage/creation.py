"""A file that gets its name only if no other has it: by a hard link, or by a rename.

File systems without hard links (exFAT, FAT, many that are mounted by FUSE, some that are shared
with a virtual machine) mostly know a rename that replaces nothing. What has neither cannot hold
what only one process may write.
"""

import ctypes
import errno
import os
from functools import cache
from typing import Any

from mtil.errors import StorageError

_NO_LINKS = {
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV,
    errno.EMLINK, errno.EACCES,
}  # fmt: skip
"""What `link` says where there are no hard links, or not this one."""
_NO_RENAME = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_NOREPLACE = 1
"""RENAME_NOREPLACE of Linux' renameat2."""


def named(partial: str, name: str, folder: int, where: str) -> bool:
    """Give a file of a folder its name, unless another file has that name.

    Args:
        partial: the file's name until now. It may be there still afterwards.
        name: the name it is to have.
        folder: the descriptor of the folder.
        where: the path, for the error.

    Returns:
        Whether the file has the name now.

    Raises:
        StorageError: if the file system can create nothing once.
        OSError: if it fails otherwise.
    """
    try:
        os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # a file server whose answer was lost is asked again, and refuses what it has done itself
        return os.stat(partial, dir_fd=folder, follow_symlinks=False).st_nlink > 1
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _renamed(partial, name, folder, where, error)
    return True


def _renamed(partial: str, name: str, folder: int, where: str, why: OSError) -> bool:
    rename = _renameat2()
    failed = errno.ENOSYS
    if rename is not None:
        old, new = os.fsencode(partial), os.fsencode(name)
        if rename(folder, old, folder, new, _NOREPLACE) == 0:
            return True
        failed = ctypes.get_errno()
    if failed == errno.EEXIST:
        return False
    if failed not in _NO_RENAME:
        raise OSError(failed, os.strerror(failed))
    raise StorageError(
        f"{where} cannot be created: mtil needs a file system with hard links, or with a rename "
        f"that replaces nothing, but this one has neither ({why.strerror}; {os.strerror(failed)}); "
        "choose a place on another file system or in a bucket."
    )


@cache
def _renameat2() -> Any:
    """Return the C library's `renameat2`, or None where there is none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [
            ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
        ]  # fmt: skip
        function.restype = ctypes.c_int
    return function
