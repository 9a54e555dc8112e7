//! Scenarios: real programs, real kernel, two nodes of namespaces and cgroups. Test names read as sentences.

mod ground;
