//! What is handed over. In the running agent: collected, and taken apart into frames and descriptors. In the successor: put
//! together again, each part checked.

use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use mesh_api::proto::ControllerMessage;
use mesh_core::model::WorkloadUid;
use prost::Message;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};

use super::HandoverError;
use super::wire::{Conversation, Kind, join, split};
use crate::control::{ControlState, PortableSvid};
use crate::intercept::{Inherited, PodListeners};

/// The listeners of the node itself.
#[derive(Debug)]
pub struct NodeSockets {
    /// Metrics and readiness.
    pub metrics: TcpListener,
    /// Administration.
    pub admin: UnixListener,
    /// Where the next successor asks.
    pub handover: UnixListener,
}

/// Everything that a successor gets.
#[derive(Debug)]
pub struct Estate {
    /// From the controller.
    pub control: ControlState,
    /// The listeners in the pods.
    pub pods: Inherited,
    /// The listeners of the node.
    pub node: NodeSockets,
}

/// The listeners of one pod, as they are given away.
#[derive(Debug)]
pub(super) struct PodEstate {
    pub(super) uid: WorkloadUid,
    pub(super) netns_cookie: u64,
    pub(super) listeners: PodListeners,
}

/// Announces what follows: `svids` SVID frames, and the descriptors of the node and then of each pod in this order.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// For the log.
    build: String,
    svids: usize,
    /// The kernel's id of the map that has the listeners in its slots.
    listeners_map: u32,
    addresses: Vec<IpAddr>,
    pods: Vec<PodHeader>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PodHeader {
    uid: String,
    netns_cookie: u64,
    outbound: usize,
    inbound: usize,
    mtls: usize,
}

/// The metrics port, administration, handover.
const NODE_SOCKETS: usize = 3;
/// One a port and family.
const MOST_LISTENERS: usize = 2;

fn malformed(what: &str) -> HandoverError {
    HandoverError::Unexpected(what.to_owned())
}

/// Gives everything away.
pub(super) fn send(
    conversation: &mut Conversation,
    control: &ControlState,
    (pods, listeners_map): (Vec<PodEstate>, u32),
    node: [OwnedFd; NODE_SOCKETS],
) -> Result<(), HandoverError> {
    let mut descriptors = Vec::from(node);
    let mut headers = Vec::new();
    for PodEstate { uid, netns_cookie, listeners: PodListeners { outbound, inbound, mtls, .. } } in pods {
        headers.push(PodHeader {
            uid: uid.to_string(),
            netns_cookie,
            outbound: outbound.len(),
            inbound: inbound.len(),
            mtls: mtls.len(),
        });
        descriptors.extend(outbound.into_iter().chain(inbound).chain(mtls).map(OwnedFd::from));
    }
    let header = Header {
        build: env!("CARGO_PKG_VERSION").to_owned(),
        svids: control.svids.len(),
        listeners_map,
        addresses: control.addresses.clone(),
        pods: headers,
    };
    let header = serde_json::to_vec(&header).map_err(|e| malformed(&e.to_string()))?;
    conversation.send(Kind::Header, &header)?;
    conversation.send(Kind::Snapshot, &control.snapshot.encode_to_vec())?;
    for svid in &control.svids {
        let head = [svid.identity.as_bytes(), svid.key.secret_pkcs8_der()];
        let parts = head.into_iter().chain(svid.chain.iter().map(Vec::as_slice));
        conversation.send(Kind::Svid, &join(parts))?;
    }
    conversation.send_descriptors(&descriptors)
}

/// Takes everything.
pub(super) fn receive(conversation: &mut Conversation) -> Result<Estate, HandoverError> {
    let header: Header = serde_json::from_slice(&conversation.expect(Kind::Header)?)
        .map_err(|e| HandoverError::Unexpected(format!("a header that cannot be read: {e}")))?;
    let snapshot = ControllerMessage::decode(conversation.expect(Kind::Snapshot)?.as_slice())
        .map_err(|e| HandoverError::Unexpected(format!("a snapshot that cannot be read: {e}")))?;
    let mut svids = Vec::new();
    for _ in 0..header.svids {
        svids.push(read_svid(&conversation.expect(Kind::Svid)?)?);
    }
    let counts = header.pods.iter().flat_map(|pod| [pod.outbound, pod.inbound, pod.mtls]);
    if counts.clone().any(|count| count > MOST_LISTENERS)
        || header.pods.len() > mesh_common::MAX_PODS as usize
    {
        return Err(malformed("more listeners than pods can have"));
    }
    let count = NODE_SOCKETS + counts.sum::<usize>();
    let mut descriptors = conversation.receive_descriptors(count)?.into_iter();
    let node = NodeSockets {
        metrics: TcpListener::from(next(&mut descriptors)?),
        admin: UnixListener::from(next(&mut descriptors)?),
        handover: UnixListener::from(next(&mut descriptors)?),
    };
    check_node(&node)?;
    let mut pods = Inherited::new(header.listeners_map);
    for pod in header.pods {
        let mut some = |count: usize| -> Vec<TcpListener> {
            descriptors.by_ref().take(count).map(TcpListener::from).collect()
        };
        let listeners = PodListeners {
            outbound: some(pod.outbound),
            inbound: some(pod.inbound),
            mtls: some(pod.mtls),
            held: None,
        };
        pods.add(WorkloadUid(pod.uid.into()), pod.netns_cookie, listeners)
            .map_err(|e| HandoverError::Unexpected(e.to_string()))?;
    }
    let control = ControlState { snapshot, svids, addresses: header.addresses };
    tracing::info!(build = header.build, pods = pods.len(), "the running agent hands over");
    Ok(Estate { control, pods, node })
}

fn next(descriptors: &mut impl Iterator<Item = OwnedFd>) -> Result<OwnedFd, HandoverError> {
    descriptors.next().ok_or_else(|| malformed("too few descriptors"))
}

pub(super) fn read_svid(content: &[u8]) -> Result<PortableSvid, HandoverError> {
    let parts = split(content).ok_or_else(|| malformed("an SVID that cannot be read"))?;
    let [identity, key, chain @ ..] = parts.as_slice() else {
        return Err(malformed("an SVID with parts missing"));
    };
    let identity =
        String::from_utf8((*identity).to_vec()).map_err(|_| malformed("an SVID without a name"))?;
    let key = PrivatePkcs8KeyDer::from((*key).to_vec());
    Ok(PortableSvid { identity, key, chain: chain.iter().map(|der| der.to_vec()).collect() })
}

/// They listen, and are of the family that they are used as.
fn check_node(node: &NodeSockets) -> Result<(), HandoverError> {
    let looked = || -> std::io::Result<bool> {
        let listens = |socket: &dyn AsFd| socket2::SockRef::from(&socket.as_fd()).is_listener();
        let unix = |socket: &UnixListener| {
            Ok::<_, std::io::Error>(socket2::SockRef::from(socket).domain()? == socket2::Domain::UNIX)
        };
        let good = listens(&node.metrics)? && listens(&node.admin)? && listens(&node.handover)?;
        let families = node.metrics.local_addr().is_ok() && unix(&node.admin)? && unix(&node.handover)?;
        node.metrics.set_nonblocking(true)?;
        node.admin.set_nonblocking(true)?;
        node.handover.set_nonblocking(true)?;
        Ok(good && families)
    };
    match looked() {
        Ok(true) => Ok(()),
        Ok(false) => Err(malformed("other sockets than the node's listeners")),
        Err(source) => Err(HandoverError::io("looking at the node's listeners")(source)),
    }
}
