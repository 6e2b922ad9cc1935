//! Buckets with faults, for tests.
