"""Where a store lies: a local folder, or any URL that fsspec knows (s3://, gs://, memory://).

    place = Place.at("acts/")
    written = place.write("rows/00000.safetensors", [header, data])     # whole or not at all
    place.file("rows/00000.safetensors", written["sha256"])            # a local path, to be memory-mapped

Locally a file is written under another name, flushed, and then renamed. A remote object is put whole, which object
stores do atomically, and read whole into a cache on disk that goes by checksums, so that nothing in it can be stale.
"""

import errno
import hashlib
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from patchclamp.store.errors import Damaged, StoreError

CACHE_BYTES = 64 << 30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PART = ".part"


@dataclass(frozen=True)
class Place:
    """A folder, here or elsewhere; `folder` is None elsewhere. It pickles, so that workers can write to it."""

    url: str
    folder: Path | None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    cache: Path | None = None
    cache_bytes: int = CACHE_BYTES

    @classmethod
    def at(cls, url: "str | Path | Place", options: Mapping[str, Any] | None = None) -> "Place":
        """The place that a path or URL names; `options` go to fsspec (an endpoint, credentials, ...)."""
        if isinstance(url, Place):
            return url
        text = str(url)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        if "://" not in text:
            if options:
                raise ValueError(f"options= are for URLs, and {text!r} is a local folder")
            return cls(text, Path(text).expanduser().absolute())
        return cls(text.rstrip("/"), None, dict(options or {}))

    def cached(self, folder: "str | Path | None", limit: int) -> "Place":
        """The same place with another cache for what is read from afar: a folder, and the bytes that it may hold."""
        return replace(self, cache=None if folder is None else Path(folder), cache_bytes=limit)

    # ── far away ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _remote(self) -> tuple[Any, str]:
        import fsspec

        try:
            return fsspec.url_to_fs(self.url, **self.options)
        except ImportError as missing:
            raise ImportError(f"{self.url} needs a package that is not installed: {missing}") from missing

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, name: str, parts: Iterable[Any]) -> dict[str, Any]:
        """Write a file whole or not at all; its {"bytes", "sha256"}.

        StoreError where the disk is full; nothing that was there is lost, and what was half written is removed.
        """
        if self.folder is not None:
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            return self._write(target, name, parts)
        system, root = self._remote()
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / "object"
            written = self._write(local, name, parts)
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            system.put_file(str(local), f"{root}/{name}")
        return written

    def _write(self, target: Path, name: str, parts: Iterable[Any]) -> dict[str, Any]:
        part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{_PART}")  # workers never share one
        digest, size = hashlib.sha256(), 0
        try:
            with part.open("wb") as file:
                for piece in parts:
                    file.write(piece)
                    digest.update(piece)
                    size += len(piece)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except OSError as failed:
            part.unlink(missing_ok=True)
            if failed.errno not in _FULL:
                raise
            raise StoreError(
                f"no room for {name} in {self.url} ({failed.strerror}, after {size:,} bytes). What was finished is "
                "kept: make room, and the same call goes on from there."
            ) from failed
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return {"bytes": size, "sha256": digest.hexdigest()}

    def write_json(self, name: str, value: Any) -> None:
        """Write JSON, whole or not at all."""
        self.write(name, [json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"])

    def tidy(self) -> None:
        """Remove what interrupted writers left behind."""
        if self.folder is not None:
            for part in self.folder.rglob(f"*{_PART}"):
                part.unlink(missing_ok=True)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, or None where there is none."""
        try:
            if self.folder is not None:
                return (self.folder / name).read_bytes()
            system, root = self._remote()
            system.invalidate_cache()
            return system.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        """What a JSON file holds, or None where there is none."""
        text = self.read(name)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError as broken:
            raise Damaged(f"{self.url}/{name} is not JSON: {broken}") from None

    def sizes(self, under: str = "") -> dict[str, int]:
        """Bytes of every file under a folder, by name."""
        if self.folder is not None:
            top = self.folder / under
            files = (path for path in top.rglob("*") if path.is_file()) if top.exists() else ()
            return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}
        system, root = self._remote()
        system.invalidate_cache()
        top = f"{root}/{under}".rstrip("/")
        try:
            found = system.find(top, detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(root).lstrip("/"): entry["size"] for path, entry in found.items()}

    def file(self, name: str, sha256: str) -> Path:
        """A local path of a file: its own, or that of a copy in the cache, whose checksum was compared."""
        if self.folder is not None:
            return self.folder / name
        cache = self.cache or _default_cache()
        kept = cache / f"{sha256}.safetensors"
        if kept.exists():
            os.utime(kept)  # used last, evicted last
            return kept
        cache.mkdir(parents=True, exist_ok=True)
        system, root = self._remote()
        part = kept.with_name(f"{kept.name}.{os.getpid()}-{threading.get_ident()}{_PART}")
        try:
            system.get_file(f"{root}/{name}", str(part))
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise Damaged(f"{self.url}/{name} has sha256 {found[:12]}..., and {sha256[:12]}... was written")
            part.replace(kept)
        except FileNotFoundError:
            raise Damaged(f"{self.url}/{name} is missing") from None
        finally:
            part.unlink(missing_ok=True)
        _evict(cache, self.cache_bytes, kept)
        return kept


def _default_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "patchclamp" / "store"


def _evict(cache: Path, limit: int, newest: Path) -> None:
    """Remove what was used longest ago. A file that is mapped into memory stays readable until it is unmapped."""
    files = sorted((p for p in cache.glob("*.safetensors") if p != newest), key=lambda p: p.stat().st_mtime)
    total = newest.stat().st_size + sum(p.stat().st_size for p in files)
    for path in files:
        if total <= limit:
            return
        total -= path.stat().st_size
        path.unlink(missing_ok=True)
