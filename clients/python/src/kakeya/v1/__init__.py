"""The messages of proto/kakeya/v1/runtime.proto."""
