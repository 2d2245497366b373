"""Whether what a store says is there: every picture, whole and under its own name."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scoretune.core import reading
from scoretune.data import images

if TYPE_CHECKING:
    from scoretune.data.store.picture_folder import Filed
    from scoretune.data.store.store import Store


def examine(store: Store, watch: Callable[[int, int], None]) -> dict[str, Any]:
    """Problems, a line each; and the files of the folder that belong to nothing, such as those of
    writes that a kill cut off."""
    filed = store.pictures()
    use = Counter(sample.picture for sample in store.samples())
    problems = []
    for number, picture in enumerate(filed, start=1):
        problem = _problem(store, picture)
        if problem:
            problems.append(f"{store.folder.relative(picture)}: {problem}{_of(use, picture)}")
        watch(number, len(filed))
    expected = {store.folder.relative(picture) for picture in filed if use[picture.sha256]}
    folder = store.folder.folder
    there = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
    unused = [name for name in there if name not in expected]
    return {"pictures": len(filed), "problems": problems, "unused": unused}


def _problem(store: Store, picture: Filed) -> str:
    path = store.folder.file(picture.sha256, picture.ending)
    try:
        payload = reading.read_bytes(path)
        images.look(payload)
    except FileNotFoundError:
        return "was deleted"
    except (OSError, ValueError) as error:
        return f"cannot be read ({error})"
    same = hashlib.sha256(payload).hexdigest() == picture.sha256
    return "" if same else "was changed: its sha256 is another"


def _of(use: Counter[str], picture: Filed) -> str:
    count = use[picture.sha256]
    return f", the picture of {count:,} sample{'s' * (count != 1)}" if count else ", of no sample"
