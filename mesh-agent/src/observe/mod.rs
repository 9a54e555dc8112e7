//! Stage 7: exactly one record a connection.
