//! A software libcuda and libnccl, for tests alone.
