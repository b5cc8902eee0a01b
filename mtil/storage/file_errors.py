"""File system errors as sentences: cause and remedy."""

import errno
import stat

from mtil.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "the quota is used up; free some space, or choose another place",
    errno.EFBIG: "the file system or `ulimit -f` allows no file this large; choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "check the owner and the permissions of the file and its folders",
    errno.EPERM: "the file system, the file's attributes or a policy forbids this operation; "
    "choose another place",
    errno.EIO: "the disk or its network fails; check the disk (`dmesg`)",
    errno.ESTALE: "the file server has replaced the file; run the same command again",
    errno.ENOTCONN: "the network file system is not connected; mount it again",
    errno.ETIMEDOUT: "the file server does not answer; try again later",
    errno.EHOSTDOWN: "the file server is down; try again later",
    errno.EHOSTUNREACH: "the file server cannot be reached; try again later",
    errno.EREMOTEIO: "the file server fails; try again later",
    errno.ENAMETOOLONG: "most file systems allow 255 bytes a name and 4096 a path; shorten it",
    errno.EILSEQ: "the file system does not allow some characters of the name; rename the file",
    errno.EINVAL: "the file system does not allow this operation; choose another place",
    errno.ENOTSUP: "the file system does not allow this operation; choose another place",
    errno.ENOSYS: "the file system does not allow this operation; choose another place",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "the machine has no open file left; end other processes",
    errno.ENOMEM: "end other processes, or take a machine with more memory",
    errno.ELOOP: "links lead in a circle; remove one",
    errno.ENOTDIR: "a part of the path is a file; rename it, or choose another place",
    errno.EISDIR: "a folder has that name; rename it, or choose another place",
    errno.ENOTEMPTY: "other files came into the folder meanwhile; run the same command again",
    errno.EBUSY: "another process or a mount holds the file; try again later",
    errno.ETXTBSY: "another process runs the file; end the process first",
    errno.EMLINK: "the folder holds as many as the file system allows; choose another place",
    errno.EOVERFLOW: "the file is too large for this system",
    errno.ENXIO: "the path is not a regular file; remove it",
    errno.ENODEV: "the device is gone; mount it again",
    errno.EKEYEXPIRED: "the ticket of the network file system has expired; run `kinit`",
    errno.ENOKEY: "the folder is encrypted and locked; unlock it",
}
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


def path_error(where: object, what: str, error: OSError) -> StorageError:
    """Return the error for a failed operation on a path.

    Args:
        where: the path.
        what: the operation as a past participle, such as `read`.
        error: the system's error.
    """
    reason = error.strerror or (str(error) or type(error).__name__).rstrip(".")
    remedy = _REMEDIES.get(error.errno or 0)
    return StorageError(f"{where} cannot be {what}: {reason}{f'; {remedy}' if remedy else ''}.")


def irregular_file_error(where: object, mode: int) -> StorageError:
    """Return the error for a path that is not a regular file."""
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    return StorageError(f"{where} must be a regular file, but is {kind}; remove or rename it.")


def link_error(root: object, folder: str) -> StorageError:
    """Return the error for a link in place of a folder below a store's root."""
    return StorageError(
        f"{root}/{folder} is a link, and mtil neither writes nor deletes through links inside "
        f"{root}; replace the link by a folder, or make {root} itself the link."
    )
