"""A store in memory that outlives the processes that use it, and processes that can die at any of their effects."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from obstore.store import MemoryStore

from ideogram_pipeline.storage import Store
from tests.adversary.virtual_time import EPOCH


class Life:
    """One process: it lives until it ends, or dies at the n-th moment before or after something it does."""

    def __init__(self, loop, name, *, latency_s, dies_at=None):
        self.name = name
        self.dead = False
        self.moments = 0
        self._loop = loop
        self._latency_s = latency_s
        self._dies_at = dies_at

    def check(self):
        """Go no further if the process is dead."""
        if self.dead:
            raise asyncio.CancelledError

    def moment(self):
        """Pass a moment at which the process may die."""
        self.check()
        self.moments += 1
        if self.moments == self._dies_at:
            self.die()
            self.check()

    async def waited(self):
        """Pass such a moment, and the time that a store or a network takes."""
        self.moment()
        await asyncio.sleep(self._latency_s())
        self.check()

    def die(self):
        """End as by SIGKILL: nothing that is still run of this process has any effect."""
        self.dead = True
        for task in list(self._loop.tasks[self]):
            task.cancel()


class Disk:
    """What lies in the store."""

    def __init__(self, loop):
        self.backend = MemoryStore()
        self.modified = {}
        self._loop = loop

    def seen_by(self, life):
        """Return the store as a process uses it."""
        return _SeenStore(self, life)

    def now(self):
        return EPOCH + timedelta(seconds=self._loop.now_s)

    def copy(self):
        """Return all objects, as a backup has them."""
        store = Store("memory://", self.backend)
        return {found.path: (store.get(found.path), self.modified[found.path]) for found in store.objects("")}

    def restore(self, backup):
        """Have what a backup has, and nothing else."""
        self.backend, self.modified = MemoryStore(), {}
        store = Store("memory://", self.backend)
        for path, (content, modified) in backup.items():
            store.put(path, content)
            self.modified[path] = modified


class _SeenStore(Store):
    """The store of a process. What is asynchronous takes time, and ends where the process dies."""

    def __init__(self, disk, life):
        super().__init__("memory://", disk.backend)
        self._disk = disk
        self._life = life

    def get(self, path, *, max_bytes=None):
        self._life.check()
        return super().get(path, max_bytes=max_bytes)

    def objects(self, folder):
        self._life.check()
        for found in super().objects(folder):
            yield replace(found, modified=self._disk.modified[found.path])

    def put(self, path, content):
        self._life.moment()
        mark = super().put(path, content)
        self._disk.modified[path] = self._disk.now()
        self._life.moment()
        return mark

    def create(self, path, content, *, durable=False):
        self._life.moment()
        created = super().create(path, content, durable=durable)
        self._disk.modified.setdefault(path, self._disk.now())
        self._life.moment()
        return created

    def delete(self, path):
        self._life.moment()
        super().delete(path)
        self._life.moment()

    async def get_async(self, path):
        await self._life.waited()
        return self.get(path)

    async def put_async(self, path, content, *, durable=False):
        await self._life.waited()
        self.put(path, content)
        await self._life.waited()

    async def create_async(self, path, content):
        await self._life.waited()
        created = self.create(path, content)
        await self._life.waited()
        return created

    async def objects_async(self, folder):
        await self._life.waited()
        return list(self.objects(folder))

    async def delete_async(self, paths):
        for path in paths:
            await self._life.waited()
            self.delete(path)
