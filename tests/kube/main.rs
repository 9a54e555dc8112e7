//! Scenarios on a real control plane: etcd and kube-apiserver built from source, spoken to by kubectl as a user does.

mod agents;
mod api;
mod cold;
mod daemonset;
mod exec;
mod identity;
mod install;
mod installed;
mod kubelets;
mod membership;
mod mesh;
mod network;
mod outages;
mod plaintext;
mod probes;
mod rotation;
mod stage;
mod status;
mod taints;
mod uninstall;
