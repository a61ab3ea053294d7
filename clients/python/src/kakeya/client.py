"""The client for threads.

    with kakeya.Client("127.0.0.1:50051") as client:
        with client.create_session(client_label="docs") as session:
            session.append_tokens([2, 17, 4])
            for token in session.generate(64):
                ...
            print(session.last_stop_reason)
"""

from __future__ import annotations

import threading
import time
from typing import Iterable, Iterator, Optional, Union

import grpc

from . import _wire
from .v1 import runtime_pb2 as pb
from ._wire import SessionInfo
from .errors import InterTokenTimeoutError, SessionNotFoundError, from_rpc_error


class Client:
    """A connection to one server. Safe to use from many threads.

    address: "HOST:PORT". tls: False for plain text; True for the system's certificates; or the
    bytes of a PEM file. token: a bearer token. timeout: seconds for each call that is not given its own.
    """

    def __init__(self, address: str, *, tls: Union[bool, bytes] = False, token: Optional[str] = None,
                 timeout: Optional[float] = None):
        self.address = address
        self.timeout = timeout
        self._metadata = _wire.metadata(token)
        if tls:
            creds = _wire.credentials(tls if isinstance(tls, bytes) else None)
            self._channel = grpc.secure_channel(address, creds, _wire.CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, _wire.CHANNEL_OPTIONS)
        self._calls = {}
        for name, (path, request, reply) in _wire.METHODS.items():
            make = self._channel.unary_stream if name == "Generate" else self._channel.unary_unary
            self._calls[name] = make(path, request.SerializeToString, reply.FromString)

    def _call(self, name: str, request, timeout: Optional[float]):
        try:
            return self._calls[name](request, timeout=self.timeout if timeout is None else timeout,
                                     metadata=self._metadata)
        except grpc.RpcError as e:
            raise from_rpc_error(e) from None

    def create_session(self, *, client_label: str = "", eos_token_ids: Iterable[int] = (),
                       timeout: Optional[float] = None) -> "Session":
        """A new session. eos_token_ids: in place of the model's."""
        request = pb.CreateSessionRequest(client_label=client_label, eos_token_ids=_wire.ids(eos_token_ids))
        return Session(self, self._call("CreateSession", request, timeout).session_id)

    def session(self, session_id: str) -> "Session":
        """A session that is there already, by its id. Asks nothing of the server."""
        return Session(self, session_id)

    def close(self) -> None:
        """Close the connection; sessions stay on the server."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class _Watch(threading.Thread):
    """Cancels a stream that brings nothing for `gap` seconds while it is being waited for."""

    def __init__(self, stream, gap: float):
        super().__init__(daemon=True)
        self.late = False
        self._stream, self._gap = stream, gap
        self._changed = threading.Condition()
        self._until: Optional[float] = time.monotonic() + gap
        self._ended = False
        threading.Thread.start(self)

    def _set(self, until: Optional[float], ended: bool = False) -> None:
        with self._changed:
            self._until, self._ended = until, ended
            self._changed.notify()

    def start(self) -> None:
        self._set(time.monotonic() + self._gap)

    def pause(self) -> None:
        self._set(None)

    def end(self) -> None:
        self._set(None, ended=True)

    def run(self) -> None:
        with self._changed:
            while not self._ended:
                left = None if self._until is None else self._until - time.monotonic()
                if left is not None and left <= 0:
                    self.late = True
                    self._stream.cancel()
                    return
                self._changed.wait(left)


class Session(_wire.SessionState):
    """A conversation that the server holds. One call at a time runs; others wait in line."""

    def __init__(self, client: Client, session_id: str):
        super().__init__(session_id)
        self._client = client

    def append_tokens(self, token_ids: Iterable[int], *, timeout: Optional[float] = None) -> int:
        """Append to the history; returns its length. However it is cut, the result is the same."""
        self._check_open()
        request = pb.AppendTokensRequest(session_id=self.session_id, token_ids=_wire.ids(token_ids))
        return self._client._call("AppendTokens", request, timeout).history_length

    def generate(self, max_tokens: int, *, seed: Optional[int] = None,
                 temperature: Optional[float] = None, top_p: Optional[float] = None,
                 top_k: Optional[int] = None, min_p: Optional[float] = None,
                 repetition_penalty: Optional[float] = None,
                 repetition_last_n: Optional[int] = None, ignore_eos: Optional[bool] = None,
                 timeout: Optional[float] = None,
                 inter_token_timeout_s: Optional[float] = None) -> Iterator[int]:
        """Token ids as they are made; greedy unless a temperature is given.

        Then last_result and last_stop_reason tell how it ended. Leaving the loop early cancels the
        call; the session keeps the tokens that were committed.
        """
        options = dict(seed=seed, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
                       repetition_penalty=repetition_penalty,
                       repetition_last_n=repetition_last_n, ignore_eos=ignore_eos)
        request = self._generate_request(max_tokens, options)
        return self._tokens(request, timeout, inter_token_timeout_s)

    def _tokens(self, request, timeout, gap) -> Iterator[int]:
        stream = self._client._call("Generate", request, timeout)
        watch = _Watch(stream, gap) if gap else None
        try:
            for frame in stream:
                token = self._frame(frame)
                if token is not None:
                    if watch:
                        watch.pause()
                    yield token
                if watch:
                    watch.start()
        except grpc.RpcError as e:
            if watch and watch.late:
                raise InterTokenTimeoutError(f"no token for {gap} s") from None
            raise from_rpc_error(e) from None
        finally:
            if watch:
                watch.end()
            stream.cancel()

    def info(self, *, timeout: Optional[float] = None) -> SessionInfo:
        """What the server counts. Does not keep the session from being idle."""
        self._check_open()
        request = pb.GetSessionInfoRequest(session_id=self.session_id)
        return _wire.from_message(SessionInfo, self._client._call("GetSessionInfo", request, timeout))

    def fork(self, *, client_label: str = "", timeout: Optional[float] = None) -> "Session":
        """A second session with the same history."""
        self._check_open()
        request = pb.ForkSessionRequest(session_id=self.session_id, client_label=client_label)
        return Session(self._client, self._client._call("ForkSession", request, timeout).session_id)

    def close(self, *, timeout: Optional[float] = None) -> Optional[int]:
        """End the session; returns the length of its history, or None if it was gone already."""
        if self.closed:
            return None
        self.closed = True
        request = pb.CloseSessionRequest(session_id=self.session_id)
        try:
            return self._client._call("CloseSession", request, timeout).final_history_length
        except SessionNotFoundError:
            return None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exc) -> None:
        self.close()
