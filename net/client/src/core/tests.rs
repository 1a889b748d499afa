//! Tests of the core against the model broker.
