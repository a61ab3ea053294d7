"""The client for asyncio: the same names, awaited.

    async with kakeya.aio.Client("127.0.0.1:50051") as client:
        async with await client.create_session() as session:
            await session.append_tokens([2, 17, 4])
            async for token in session.generate(64):
                ...
"""

from __future__ import annotations

import asyncio
from typing import AsyncIterator, Iterable, Optional, Union

import grpc

from . import _wire
from .v1 import runtime_pb2 as pb
from ._wire import SessionInfo
from .errors import InterTokenTimeoutError, SessionNotFoundError, from_rpc_error


class Client:
    """A connection to one server; arguments as of kakeya.Client. Belongs to one event loop."""

    def __init__(self, address: str, *, tls: Union[bool, bytes] = False, token: Optional[str] = None,
                 timeout: Optional[float] = None):
        self.address = address
        self.timeout = timeout
        self._metadata = _wire.metadata(token)
        if tls:
            creds = _wire.credentials(tls if isinstance(tls, bytes) else None)
            self._channel = grpc.aio.secure_channel(address, creds, _wire.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address, _wire.CHANNEL_OPTIONS)
        self._calls = {}
        for name, (path, request, reply) in _wire.METHODS.items():
            make = self._channel.unary_stream if name == "Generate" else self._channel.unary_unary
            self._calls[name] = make(path, request.SerializeToString, reply.FromString)

    def _start(self, name: str, request, timeout: Optional[float]):
        return self._calls[name](request, timeout=self.timeout if timeout is None else timeout,
                                 metadata=self._metadata)

    async def _call(self, name: str, request, timeout: Optional[float]):
        try:
            return await self._start(name, request, timeout)
        except grpc.RpcError as e:
            raise from_rpc_error(e) from None

    async def create_session(self, *, client_label: str = "", eos_token_ids: Iterable[int] = (),
                             timeout: Optional[float] = None) -> "Session":
        """A new session. eos_token_ids: in place of the model's."""
        request = pb.CreateSessionRequest(client_label=client_label, eos_token_ids=_wire.ids(eos_token_ids))
        return Session(self, (await self._call("CreateSession", request, timeout)).session_id)

    def session(self, session_id: str) -> "Session":
        """A session that is there already, by its id. Asks nothing of the server."""
        return Session(self, session_id)

    async def close(self) -> None:
        """Close the connection; sessions stay on the server."""
        await self._channel.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *exc) -> None:
        await self.close()


class Session(_wire.SessionState):
    """A conversation that the server holds. One call at a time runs; others wait in line."""

    def __init__(self, client: Client, session_id: str):
        super().__init__(session_id)
        self._client = client

    async def append_tokens(self, token_ids: Iterable[int], *, timeout: Optional[float] = None) -> int:
        """Append to the history; returns its length. However it is cut, the result is the same."""
        self._check_open()
        request = pb.AppendTokensRequest(session_id=self.session_id, token_ids=_wire.ids(token_ids))
        return (await self._client._call("AppendTokens", request, timeout)).history_length

    def generate(self, max_tokens: int, *, seed: Optional[int] = None,
                 temperature: Optional[float] = None, top_p: Optional[float] = None,
                 top_k: Optional[int] = None, min_p: Optional[float] = None,
                 repetition_penalty: Optional[float] = None,
                 repetition_last_n: Optional[int] = None, ignore_eos: Optional[bool] = None,
                 timeout: Optional[float] = None,
                 inter_token_timeout_s: Optional[float] = None) -> AsyncIterator[int]:
        """Token ids as they are made; greedy unless a temperature is given.

        Then last_result and last_stop_reason tell how it ended. Leaving the loop early (and closing
        the iterator, as `contextlib.aclosing` does) cancels the call; the session keeps the tokens
        that were committed.
        """
        options = dict(seed=seed, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
                       repetition_penalty=repetition_penalty,
                       repetition_last_n=repetition_last_n, ignore_eos=ignore_eos)
        request = self._generate_request(max_tokens, options)
        return self._tokens(request, timeout, inter_token_timeout_s)

    async def _tokens(self, request, timeout, gap) -> AsyncIterator[int]:
        stream = self._client._start("Generate", request, timeout)
        try:
            while True:
                frame = await asyncio.wait_for(stream.read(), gap)
                if frame is grpc.aio.EOF:
                    return
                token = self._frame(frame)
                if token is not None:
                    yield token
        except asyncio.TimeoutError:
            raise InterTokenTimeoutError(f"no token for {gap} s") from None
        except grpc.RpcError as e:
            raise from_rpc_error(e) from None
        finally:
            stream.cancel()

    async def info(self, *, timeout: Optional[float] = None) -> SessionInfo:
        """What the server counts. Does not keep the session from being idle."""
        self._check_open()
        request = pb.GetSessionInfoRequest(session_id=self.session_id)
        reply = await self._client._call("GetSessionInfo", request, timeout)
        return _wire.from_message(SessionInfo, reply)

    async def fork(self, *, client_label: str = "", timeout: Optional[float] = None) -> "Session":
        """A second session with the same history."""
        self._check_open()
        request = pb.ForkSessionRequest(session_id=self.session_id, client_label=client_label)
        reply = await self._client._call("ForkSession", request, timeout)
        return Session(self._client, reply.session_id)

    async def close(self, *, timeout: Optional[float] = None) -> Optional[int]:
        """End the session; returns the length of its history, or None if it was gone already."""
        if self.closed:
            return None
        self.closed = True
        request = pb.CloseSessionRequest(session_id=self.session_id)
        try:
            return (await self._client._call("CloseSession", request, timeout)).final_history_length
        except SessionNotFoundError:
            return None

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(self, *exc) -> None:
        await self.close()
