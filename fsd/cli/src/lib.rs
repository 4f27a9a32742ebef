//! fsd-cli
