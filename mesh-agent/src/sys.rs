//! Every system call that needs `unsafe` or enters another network namespace, and nothing else.
