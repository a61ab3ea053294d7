from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AppendTokensRequest(_message.Message):
    __slots__ = ["session_id", "token_ids"]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class AppendTokensResponse(_message.Message):
    __slots__ = ["history_length"]
    HISTORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    history_length: int
    def __init__(self, history_length: _Optional[int] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ["session_id"]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ["final_history_length"]
    FINAL_HISTORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    final_history_length: int
    def __init__(self, final_history_length: _Optional[int] = ...) -> None: ...

class CreateSessionRequest(_message.Message):
    __slots__ = ["client_label", "eos_token_ids"]
    CLIENT_LABEL_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    client_label: str
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, client_label: _Optional[str] = ..., eos_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class CreateSessionResponse(_message.Message):
    __slots__ = ["session_id"]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ["client_label", "session_id"]
    CLIENT_LABEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    client_label: str
    session_id: str
    def __init__(self, session_id: _Optional[str] = ..., client_label: _Optional[str] = ...) -> None: ...

class ForkSessionResponse(_message.Message):
    __slots__ = ["history_length", "session_id"]
    HISTORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    history_length: int
    session_id: str
    def __init__(self, session_id: _Optional[str] = ..., history_length: _Optional[int] = ...) -> None: ...

class GenerateDone(_message.Message):
    __slots__ = ["accepted_tokens", "drafted_tokens", "generated_token_count", "prefill_duration_seconds", "queued_duration_seconds", "seed", "stop_reason", "total_duration_seconds", "verifier_steps"]
    class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = []
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PREFILL_DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_CANCELLED: GenerateDone.StopReason
    STOP_REASON_EOS: GenerateDone.StopReason
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_MAX_TOKENS: GenerateDone.StopReason
    STOP_REASON_TRUNCATED: GenerateDone.StopReason
    STOP_REASON_UNSPECIFIED: GenerateDone.StopReason
    TOTAL_DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_STEPS_FIELD_NUMBER: _ClassVar[int]
    accepted_tokens: int
    drafted_tokens: int
    generated_token_count: int
    prefill_duration_seconds: float
    queued_duration_seconds: float
    seed: int
    stop_reason: GenerateDone.StopReason
    total_duration_seconds: float
    verifier_steps: int
    def __init__(self, stop_reason: _Optional[_Union[GenerateDone.StopReason, str]] = ..., generated_token_count: _Optional[int] = ..., prefill_duration_seconds: _Optional[float] = ..., total_duration_seconds: _Optional[float] = ..., seed: _Optional[int] = ..., verifier_steps: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., queued_duration_seconds: _Optional[float] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ["ignore_eos", "max_tokens", "min_p", "repetition_last_n", "repetition_penalty", "seed", "session_id", "temperature", "top_k", "top_p"]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_LAST_N_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    ignore_eos: bool
    max_tokens: int
    min_p: float
    repetition_last_n: int
    repetition_penalty: float
    seed: int
    session_id: str
    temperature: float
    top_k: int
    top_p: float
    def __init__(self, session_id: _Optional[str] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., repetition_last_n: _Optional[int] = ..., ignore_eos: bool = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ["done", "token_id", "truncated"]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    done: GenerateDone
    token_id: int
    truncated: HistoryTruncated
    def __init__(self, token_id: _Optional[int] = ..., done: _Optional[_Union[GenerateDone, _Mapping]] = ..., truncated: _Optional[_Union[HistoryTruncated, _Mapping]] = ...) -> None: ...

class GetSessionInfoRequest(_message.Message):
    __slots__ = ["session_id"]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetSessionInfoResponse(_message.Message):
    __slots__ = ["cache_invariant_inv1_violations", "cache_invariant_inv2_violations", "drafter_device_bytes", "dropped_token_count", "history_length", "idle_seconds", "kv_device_bytes", "kv_host_bytes", "kv_live_bytes", "kv_shared_bytes", "resident_rows"]
    CACHE_INVARIANT_INV1_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    CACHE_INVARIANT_INV2_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KV_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_ROWS_FIELD_NUMBER: _ClassVar[int]
    cache_invariant_inv1_violations: int
    cache_invariant_inv2_violations: int
    drafter_device_bytes: int
    dropped_token_count: int
    history_length: int
    idle_seconds: float
    kv_device_bytes: int
    kv_host_bytes: int
    kv_live_bytes: int
    kv_shared_bytes: int
    resident_rows: int
    def __init__(self, history_length: _Optional[int] = ..., kv_live_bytes: _Optional[int] = ..., cache_invariant_inv1_violations: _Optional[int] = ..., cache_invariant_inv2_violations: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., kv_device_bytes: _Optional[int] = ..., drafter_device_bytes: _Optional[int] = ..., kv_host_bytes: _Optional[int] = ..., resident_rows: _Optional[int] = ..., dropped_token_count: _Optional[int] = ..., kv_shared_bytes: _Optional[int] = ...) -> None: ...

class HistoryTruncated(_message.Message):
    __slots__ = ["dropped_token_count"]
    DROPPED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    dropped_token_count: int
    def __init__(self, dropped_token_count: _Optional[int] = ...) -> None: ...
