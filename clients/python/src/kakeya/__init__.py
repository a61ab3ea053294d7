"""Client of the kakeya session server: sessions that the server holds, token ids in and out."""

from . import aio
from ._wire import GenerateResult, SessionInfo, StopReason
from .client import Client, Session
from .errors import (ContextFullError, DeadlineExceededError, InterTokenTimeoutError,
                     InvalidArgumentError, InvariantViolationError, KakeyaError,
                     ResourceExhaustedError, RpcCancelledError, SessionClosedError,
                     SessionNotFoundError, UnauthenticatedError, UnavailableError,
                     UnimplementedError)

__version__ = "0.1.0"

__all__ = [
    "Client", "Session", "SessionInfo", "GenerateResult", "StopReason", "aio", "KakeyaError",
    "SessionNotFoundError", "InvalidArgumentError", "ContextFullError", "InvariantViolationError",
    "ResourceExhaustedError", "UnimplementedError", "RpcCancelledError", "DeadlineExceededError",
    "UnauthenticatedError", "UnavailableError", "SessionClosedError", "InterTokenTimeoutError",
]
