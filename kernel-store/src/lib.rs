//! kernel-store

pub mod image;
