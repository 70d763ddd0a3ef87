//! Tests of the virtio transport.
