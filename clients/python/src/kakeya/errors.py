"""What can go wrong, as exceptions. Each carries the server's words; `status` is gRPC's."""

from __future__ import annotations

from typing import Optional, Type

import grpc


class KakeyaError(Exception):
    """Any failure. Statuses without a class of their own are this one."""

    def __init__(self, message: str, status: Optional[grpc.StatusCode] = None):
        super().__init__(message)
        self.status = status


class SessionNotFoundError(KakeyaError):
    """No such session: it was closed, expired or evicted, or never was."""


class InvalidArgumentError(KakeyaError):
    """A value out of range; nothing was done."""


class ContextFullError(InvalidArgumentError):
    """The tokens do not fit into the session's context; nothing was done."""


class InvariantViolationError(KakeyaError):
    """The server found a session's cache broken, and dropped the session."""


class ResourceExhaustedError(KakeyaError):
    """No room for another session or call, or a message over the limit."""


class UnimplementedError(KakeyaError):
    """The server does not know the call."""


class RpcCancelledError(KakeyaError):
    """The call was cancelled; the session keeps what was committed."""


class DeadlineExceededError(KakeyaError):
    """The call took longer than its timeout; the session keeps what was committed."""


class UnauthenticatedError(KakeyaError):
    """The server wants a bearer token that it knows."""


class UnavailableError(KakeyaError):
    """No server there, or it is going down."""


class SessionClosedError(KakeyaError):
    """This Session object was closed. No call was made."""


class InterTokenTimeoutError(KakeyaError):
    """No token came for inter_token_timeout_s. The stream was cancelled."""


_BY_STATUS: dict[grpc.StatusCode, Type[KakeyaError]] = {
    grpc.StatusCode.NOT_FOUND: SessionNotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: ContextFullError,
    grpc.StatusCode.FAILED_PRECONDITION: InvariantViolationError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.CANCELLED: RpcCancelledError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}


def from_rpc_error(error: grpc.RpcError) -> KakeyaError:
    """The exception for a failed call."""
    status = error.code() if callable(getattr(error, "code", None)) else None
    words = error.details() if callable(getattr(error, "details", None)) else None
    kind = _BY_STATUS.get(status, KakeyaError)
    return kind(words or str(error), status)
