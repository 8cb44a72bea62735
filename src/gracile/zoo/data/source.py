"""Where data files lie and whether they are what they should be."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gracile.errors import FileError

CHECKSUMS = {
    "cifar10/cifar10_jpeg.npz": "8cc2f4f0d9e2e8d4342674722297e2061519294c73710d23add9c86a7898f9d8",
    "domain-adaptation/office_caltech10_surf_l10.npz": (
        "b15f55b9dd2cd0a16c1b09e601d6b4ee1dca74a6942f0bf6f27677b95d2103e5"
    ),
    "domain-adaptation/usps_16x16.npz": "48b92a979e2d4bc576f0f1366048e365c8c525f6239bd16a4955b1616384240d",
    "fashion-mnist/t10k-images-idx3-ubyte.gz": (
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
    ),
    "fashion-mnist/t10k-labels-idx1-ubyte.gz": (
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
    ),
    "fashion-mnist/train-images-idx3-ubyte.gz": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
    ),
    "fashion-mnist/train-labels-idx1-ubyte.gz": (
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
    ),
    "mnist/t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "mnist/t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "mnist/train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "mnist/train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "ptb/ptb.test.txt.xz": "a97f11d96f2e0690356d55a720f1c01d1745586cbc687fc4f609d6cd49ea4930",
    "ptb/ptb.train.txt.xz": "aa7c7ac769e4614f02494a5c0426d7fc5226ba2c96cec8f897d7af9ff5d6945b",
    "ptb/ptb.valid.txt.xz": "db806f69dbaa34525f88b45b027965d4acf3e8ae3e238fe856b0802d75799a6e",
    "speech/fsdd_8khz_int16.npz": "1546d4ad06bb77531395ea4849f75b913fd960ea4b574204b8c75911d3104456",
}
"""SHA-256 of every file the loaders read, by its path below the data folder."""


def data_folder(folder: str | Path | None = None) -> Path:
    """Return ``folder``, or what the variable ``GRACILE_DATA`` names.

    Raises:
        FileError: neither is given, or it is no folder.
    """
    chosen = folder if folder is not None else os.environ.get("GRACILE_DATA")
    if not chosen:
        raise FileError(
            "looking for data",
            got="no data folder",
            expected="a folder argument or the environment variable GRACILE_DATA",
            hint="gracile.zoo.data.digits needs no folder: its images come with scikit-learn",
        )
    path = Path(chosen)
    if not path.is_dir():
        raise FileError(
            "looking for data",
            got=f"'{path}', which is {'a file' if path.exists() else 'not there'}",
            expected="a folder with one subfolder per data set (mnist, fashion-mnist, cifar10, ptb, ...)",
        )
    return path


def present(folder: str | Path | None, set_name: str) -> bool:
    """Whether every known file of ``set_name`` (the subfolder) exists; contents are not read."""
    try:
        root = data_folder(folder)
    except FileError:
        return False
    return all((root / name).is_file() for name in CHECKSUMS if name.startswith(f"{set_name}/"))


def content(folder: str | Path | None, name: str) -> bytes:
    """Read the file ``name`` (a key of :data:`CHECKSUMS`) and check it byte for byte.

    Raises:
        FileError: the file is missing, unreadable, or has another SHA-256; the message says
            which file, what was found and where the right one belongs.
    """
    path = data_folder(folder) / name
    try:
        found = path.read_bytes()
    except OSError as error:
        raise FileError(
            f"reading '{path}'",
            got=error.strerror or str(error),
            expected=f"the data file '{name}'",
            hint=f"put it at '{path}' or name another folder in GRACILE_DATA",
        ) from error
    digest = hashlib.sha256(found).hexdigest()
    if digest != CHECKSUMS[name]:
        raise FileError(
            f"checking '{path}'",
            got=f"{len(found)} bytes with SHA-256 {digest}",
            expected=f"SHA-256 {CHECKSUMS[name]}",
            hint=f"the file is truncated, damaged or another edition; put a good copy at '{path}'",
        )
    return found
