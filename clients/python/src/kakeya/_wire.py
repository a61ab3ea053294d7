"""What the two clients share: methods, requests from arguments, results from replies."""

from __future__ import annotations

import dataclasses
import enum
from typing import Iterable, Optional, Sequence, Tuple

import grpc

from .v1 import runtime_pb2 as pb
from .errors import SessionClosedError

METHODS = {
    name: ("/kakeya.v1.RuntimeService/" + name, request, reply)
    for name, request, reply in (
        ("CreateSession", pb.CreateSessionRequest, pb.CreateSessionResponse),
        ("AppendTokens", pb.AppendTokensRequest, pb.AppendTokensResponse),
        ("Generate", pb.GenerateRequest, pb.GenerateResponse),
        ("CloseSession", pb.CloseSessionRequest, pb.CloseSessionResponse),
        ("GetSessionInfo", pb.GetSessionInfoRequest, pb.GetSessionInfoResponse),
        ("ForkSession", pb.ForkSessionRequest, pb.ForkSessionResponse),
    )
}

# A connection of its own for each client; pings find a dead server behind a silent network.
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 30000),
    ("grpc.keepalive_timeout_ms", 20000),
]


class StopReason(enum.IntEnum):
    """Why a generation ended."""

    UNSPECIFIED = pb.GenerateDone.STOP_REASON_UNSPECIFIED
    MAX_TOKENS = pb.GenerateDone.STOP_REASON_MAX_TOKENS
    EOS = pb.GenerateDone.STOP_REASON_EOS
    CANCELLED = pb.GenerateDone.STOP_REASON_CANCELLED
    TRUNCATED = pb.GenerateDone.STOP_REASON_TRUNCATED  # the context is full


@dataclasses.dataclass(frozen=True)
class GenerateResult:
    """How a generation went."""

    stop_reason: StopReason
    generated_token_count: int
    prefill_duration_seconds: float
    total_duration_seconds: float
    queued_duration_seconds: float
    seed: int
    verifier_steps: int
    drafted_tokens: int
    accepted_tokens: int


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """A session, as its server counts it. Bytes are what the allocator gave."""

    history_length: int
    kv_live_bytes: int
    cache_invariant_inv1_violations: int
    cache_invariant_inv2_violations: int
    idle_seconds: float
    kv_device_bytes: int
    drafter_device_bytes: int
    kv_host_bytes: int
    kv_shared_bytes: int
    resident_rows: int
    dropped_token_count: int


def from_message(kind, message):
    """A dataclass from the message's fields of the same names."""
    return kind(**{f.name: getattr(message, f.name) for f in dataclasses.fields(kind)})


def result_of(done: pb.GenerateDone) -> GenerateResult:
    result = from_message(GenerateResult, done)
    return dataclasses.replace(result, stop_reason=StopReason(done.stop_reason))


def credentials(root_certificates: Optional[bytes]) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates)


def metadata(token: Optional[str]) -> Optional[Sequence[Tuple[str, str]]]:
    return (("authorization", "Bearer " + token),) if token else None


def ids(tokens: Iterable[int]) -> list:
    """Token ids as the message takes them; what is no id is a ValueError before anything is sent."""
    out = [int(t) for t in tokens]
    for i, t in enumerate(out):
        if not 0 <= t < 1 << 32:
            raise ValueError(f"token {i} is {t}: an id is 0 to 4294967295")
    return out


class SessionState:
    """What a Session remembers between calls, whichever client it belongs to."""

    def __init__(self, session_id: str):
        self.session_id = session_id
        self.closed = False
        self.last_result: Optional[GenerateResult] = None
        self.last_dropped_token_count = 0

    @property
    def last_stop_reason(self) -> Optional[StopReason]:
        """Why the latest generation ended; None before the first, or if it failed."""
        return self.last_result.stop_reason if self.last_result else None

    def _check_open(self) -> None:
        if self.closed:
            raise SessionClosedError(f"session {self.session_id} was closed")

    def _generate_request(self, max_tokens: int, options: dict) -> pb.GenerateRequest:
        self._check_open()
        self.last_result = None
        self.last_dropped_token_count = 0
        given = {k: v for k, v in options.items() if v is not None}
        return pb.GenerateRequest(session_id=self.session_id, max_tokens=max_tokens, **given)

    def _frame(self, frame: pb.GenerateResponse) -> Optional[int]:
        """A token, or None for a frame that is noted."""
        kind = frame.WhichOneof("payload")
        if kind == "token_id":
            return frame.token_id
        if kind == "truncated":
            self.last_dropped_token_count = frame.truncated.dropped_token_count
        elif kind == "done":
            self.last_result = result_of(frame.done)
        return None
