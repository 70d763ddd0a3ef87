//! strict_backend
