"""Files of a Debian package, fetched or given, without installing anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from diffdistill.errors import UserError


def unpacked(package: str, given: Path | None, work: Path, option: str, otherwise: str) -> Path:
    """Unpack a package, and return the folder of its files.

    Args:
        package: its name, for `apt-get download`.
        given: a .deb file, or a folder that holds one; None to fetch it.
        work: an empty folder to unpack in.
        option: the option that gives the file, for errors.
        otherwise: the option that needs no package at all, for errors.

    Raises:
        UserError: the tools are missing, the package cannot be fetched, or the file is none.
    """
    if missing := [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]:
        raise UserError(f"{' and '.join(missing)} is not there; this needs Debian or Ubuntu, or else {otherwise}")
    if given is None:
        done = subprocess.run(["apt-get", "download", package], cwd=work, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "without a word").splitlines()[-1]
            raise UserError(f"apt-get download failed: {said}; see {option}")
        given = work
    file = next(iter(sorted(given.glob(f"{package}_*.deb"))), None) if given.is_dir() else given
    if file is None:
        raise UserError(f"{given} holds no .deb file of {package}")
    done = subprocess.run(["dpkg-deb", "-x", str(file), str(work / "x")], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{file} cannot be unpacked: {done.stderr.strip()}")
    return work / "x"
