"""A TCP proxy between processes and their broker that can cut its connections, or swallow what they carry."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

_RST: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, with no time: a close is a reset."""
_PIECE: Final = 65536


class _Line:
    """One connection through the wire: the caller's end and, unless it fell into a hole, the server's."""

    def __init__(self, near: asyncio.StreamWriter) -> None:
        self.ends = [near]
        self.dead = False

    def abort(self) -> None:
        """End both ends by a reset."""
        for end in self.ends:
            raw = end.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
            end.transport.abort()


class Wire:
    """The proxy, in a thread of its own. It always takes new connections."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lines: set[_Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hole = False
        self._loop = asyncio.new_event_loop()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self._listening = self._loop.create_task(self._listen())
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"wire-{self.port}", daemon=True)
        self._thread.start()

    @property
    def carrying(self) -> int:
        """How many connections carry what they are given."""
        return self._call(lambda: sum(not line.dead for line in self._lines))

    def swallow(self) -> int:
        """From now on nothing comes through what is connected; both ends stay open. Returns how many."""
        return self._call(self._swallow)

    def hole(self, on: bool) -> int:
        """While on, nothing comes through at all; connections of that time stay dead afterwards. Returns how many."""

        def change() -> int:
            self._hole = on
            return self._swallow() if on else 0

        return self._call(change)

    def reset(self) -> int:
        """End all connections by a reset; returns how many."""

        def cut() -> int:
            lines = list(self._lines)
            for line in lines:
                line.abort()
            return len(lines)

        return self._call(cut)

    def close(self) -> None:
        """Cut the wire."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, act: Callable[[], int]) -> int:
        async def run() -> int:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def _swallow(self) -> int:
        fresh = [line for line in self._lines if not line.dead]
        for line in fresh:
            line.dead = True
        return len(fresh)

    async def _listen(self) -> None:
        # Not asyncio's server: closed in the middle of an accept it leaves that connection open (3.11).
        while True:
            near, _ = await self._loop.sock_accept(self._server)
            task = asyncio.ensure_future(self._serve(near))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, near: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=near)
        except BaseException:
            near.close()
            raise
        line = _Line(writer)
        self._lines.add(line)
        try:
            await self._carry(line, reader, writer)
        finally:
            line.abort()
            self._lines.discard(line)

    async def _carry(self, line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._hole:
            line.dead = True
            await self._pump(line, reader, None)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            return
        line.ends.append(far_writer)
        back = asyncio.ensure_future(self._pump(line, far_reader, writer))
        try:
            # A dead line lasts until its caller lets go: a far end that closes says nothing any more.
            forth = asyncio.ensure_future(self._pump(line, reader, far_writer))
            await asyncio.wait((forth, back), return_when=asyncio.FIRST_COMPLETED)
            if line.dead:
                await forth
        finally:
            for pump in (forth, back):
                pump.cancel()
            await asyncio.gather(forth, back, return_exceptions=True)

    @staticmethod
    async def _pump(line: _Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                if writer is not None and not line.dead:
                    writer.write(data)
                    await writer.drain()

    async def _end(self) -> None:
        # Not cancelled: a connection that was taken at this moment would belong to nobody.
        self._server.shutdown(socket.SHUT_RDWR)
        await asyncio.gather(self._listening, return_exceptions=True)
        self._server.close()
        # Once around, so that every task has begun and closes what it was given.
        await asyncio.sleep(0)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # And again, so that the aborted transports say that they are closed.
        for _ in range(3):
            await asyncio.sleep(0)
