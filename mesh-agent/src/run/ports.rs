//! The node's own sockets: metrics, administration, handover. Bound at the start, or those of the agent before.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use super::Parts;
use crate::config::AgentArgs;
use crate::control::admin::{Admin, AdminSocket, SocketFile};
use crate::handover::{self, HandoverSocket, NodeSockets};
use crate::observe;

/// Sockets that nobody serves yet.
pub(super) struct Ports {
    metrics: TcpListener,
    admin: AdminSocket,
    handover: HandoverSocket,
}

/// The same, served.
pub(super) struct Served {
    tasks: [AbortHandle; 2],
    /// Copies for a successor.
    pub(super) metrics: OwnedFd,
    pub(super) admin: OwnedFd,
    pub(super) file: Arc<SocketFile>,
    pub(super) handover: HandoverSocket,
}

impl Ports {
    /// New ones.
    pub(super) async fn bind(args: &AgentArgs) -> Result<Self> {
        let metrics = TcpListener::bind(args.metrics_addr)
            .await
            .with_context(|| format!("--metrics-addr {}", args.metrics_addr))?;
        let admin = AdminSocket::bind(&args.admin_socket)
            .with_context(|| format!("--admin-socket {}", args.admin_socket.display()))?;
        let path = handover::socket_path(&args.admin_socket);
        let handover =
            HandoverSocket::bind(&path).with_context(|| format!("the socket {}", path.display()))?;
        Ok(Self { metrics, admin, handover })
    }

    /// Those of the agent before.
    pub(super) fn inherit(args: &AgentArgs, sockets: NodeSockets) -> Result<Self> {
        Ok(Self {
            metrics: TcpListener::from_std(sockets.metrics)?,
            admin: AdminSocket::inherit(sockets.admin, &args.admin_socket)?,
            handover: HandoverSocket::inherit(sockets.handover)?,
        })
    }

    /// Serves metrics and administration from now on.
    pub(super) fn serve(self, args: &AgentArgs, parts: &Parts, tasks: &mut JoinSet<()>) -> Result<Served> {
        let Self { metrics, admin, handover } = self;
        let copy = metrics.as_fd().try_clone_to_owned().context("copying the metrics port")?;
        let (admin_copy, file) = (admin.copy().context("copying the administration socket")?, admin.file());
        let readings = observe::serve(metrics, Arc::clone(&parts.metrics), Arc::clone(&parts.readiness));
        let answers = Admin::new(args.node_settings(), parts.control.clone(), Arc::clone(&parts.node) as _);
        let tasks = [tasks.spawn(readings), tasks.spawn(answers.serve(admin))];
        Ok(Served { tasks, metrics: copy, admin: admin_copy, file, handover })
    }
}

/// Leaves the sockets to a successor: what asks there from now on is answered by it alone.
pub(super) fn leave(tasks: &[AbortHandle], file: &SocketFile) {
    file.own(false);
    tasks.iter().for_each(AbortHandle::abort);
}

impl Served {
    /// The tasks that serve.
    pub(super) fn tasks(&self) -> [AbortHandle; 2] {
        self.tasks.clone()
    }
}
