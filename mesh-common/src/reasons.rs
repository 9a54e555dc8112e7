//! Why a program returned: one counter each in the per-CPU array `REASONS`, exported as `ferromesh_kernel_decisions_total`.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// The outcome of one run of a kernel program; the discriminant is the index in `REASONS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $variant,)+ }

        /// Every reason with its metric label, in index order.
        pub const REASONS: &[(Reason, &str)] = &[$((Reason::$variant, $name),)+];
    };
}

reasons! {
    /// connect: redirected to the agent.
    ConnectRedirected = "connect_redirected",
    /// connect: the caller is in the node's own network namespace.
    ConnectNodeNetns = "connect_node_netns",
    /// connect: no pod cgroup above the caller has an entry.
    ConnectUnclassified = "connect_unclassified",
    /// connect: the pod is not enrolled.
    ConnectNotEnrolled = "connect_not_enrolled",
    /// connect: not TCP.
    ConnectNotTcp = "connect_not_tcp",
    /// connect: loopback.
    ConnectLoopback = "connect_loopback",
    /// connect: the pod's own address.
    ConnectOwnAddress = "connect_own_address",
    /// connect: link-local, multicast, unspecified or metadata address.
    ConnectNeverRedirected = "connect_never_redirected",
    /// connect: the caller is in another network namespace than its pod.
    ConnectForeignNetns = "connect_foreign_netns",
    /// connect: the socket's storage could not be made; refused.
    ConnectNoStorage = "connect_no_storage",
    /// connect: no free token after several draws; refused.
    ConnectNoToken = "connect_no_token",
    /// connect: a virtual address without an endpoint; refused with ECONNREFUSED.
    ConnectUnserved = "connect_unserved",
    /// connect: `bpf_bind` to the pod's address failed; getsockname is answered by the hook instead.
    ConnectBindFailed = "connect_bind_failed",
    /// connect: the pod cannot be served now and is kept closed; refused.
    ConnectPodClosed = "connect_pod_closed",
    /// connect: the agent has been lost for longer than the owner allows; passed in plaintext.
    ConnectAgentLost = "connect_agent_lost",
    /// connect: the agent is away; redirected all the same, so closed.
    ConnectAgentAway = "connect_agent_away",
    /// sk_lookup: the agent has been lost for longer than the owner allows; passed to the application.
    LookupAgentLost = "lookup_agent_lost",
    /// sk_lookup: no application listens on the port; refused.
    LookupClosedPort = "lookup_closed_port",
    /// sock_ops: a socket began to listen and was counted.
    ListenBegan = "listen_began",
    /// sock_ops: a socket began to listen and could not be counted; the agent finds it.
    ListenNotCounted = "listen_not_counted",
    /// sock_ops: a counted socket ceased to listen.
    ListenEnded = "listen_ended",
    /// cgroup ingress: the agent has been lost for longer than the owner allows; passed to the application.
    IngressAgentLost = "ingress_agent_lost",
    /// bind: nothing that is kept for the agent.
    BindPassed = "bind_passed",
    /// bind: something kept for the agent, but not by a pod that is known.
    BindNotAPod = "bind_not_a_pod",
    /// bind: one of the agent's ports; refused.
    BindReservedPort = "bind_reserved_port",
    /// bind: an address that names connections; refused.
    BindTokenAddress = "bind_token_address",
    /// sock_create: not by an enrolled pod.
    SocketNotEnrolled = "socket_not_enrolled",
    /// sock_create: TCP or MPTCP, whose connections are redirected.
    SocketTcp = "socket_tcp",
    /// sock_create: UDP, which passes.
    SocketUdp = "socket_udp",
    /// sock_create: an echo ("ping") socket, which passes.
    SocketPing = "socket_ping",
    /// sock_create: a kind that could send past the mesh; let be, by the owner's choice.
    SocketLetBe = "socket_let_be",
    /// sock_create: a kind that could send past the mesh; refused.
    SocketRefused = "socket_refused",
    /// cgroup ingress: to a listening socket, over loopback.
    IngressLocal = "ingress_local",
    /// cgroup ingress: to the agent's own listening socket.
    IngressAgent = "ingress_agent",
    /// cgroup ingress: to a listening socket on the node's own network.
    IngressNodeNetns = "ingress_node_netns",
    /// cgroup ingress: to a listening socket of a pod that is not enrolled.
    IngressNotEnrolled = "ingress_not_enrolled",
    /// cgroup ingress: to an enrolled application, around the agent; dropped.
    IngressEnrolled = "ingress_enrolled",
    /// cgroup ingress: to a pod that nobody has classified yet; dropped until somebody has.
    IngressHeld = "ingress_held",
    /// cgroup ingress: to a pod that nobody has classified yet; passed, by the owner's choice or for lack of a helper.
    IngressUnclassified = "ingress_unclassified",
    /// sock_ops: an event that no redirected connection needs.
    SockOpsIgnored = "sock_ops_ignored",
    /// sock_ops: a redirected connection was established; its state is no longer followed.
    ConnectEstablished = "connect_established",
    /// sock_ops: two connections drew the same token; both will be reset.
    OrigDstCollision = "orig_dst_collision",
    /// sock_ops: an original destination was published.
    OrigDstPublished = "orig_dst_published",
    /// sock_ops: the map of original destinations is full; the agent will reset the connection.
    OrigDstFull = "orig_dst_full",
    /// sock_ops: a record was removed because the client closed before the agent accepted.
    OrigDstAbandoned = "orig_dst_abandoned",
    /// sock_ops: the true client was moved to the accepted socket.
    ClientMoved = "client_moved",
    /// sock_ops: the accepted socket's storage could not be made.
    ClientNoStorage = "client_no_storage",
    /// sock_ops: accepted from the agent's address range without a client record.
    ClientUnknown = "client_unknown",
    /// sk_lookup: assigned to the mutual TLS listener.
    LookupMtls = "lookup_mtls",
    /// sk_lookup: assigned to the plaintext listener.
    LookupPlain = "lookup_plain",
    /// sk_lookup: loopback or the pod's own address.
    LookupLocal = "lookup_local",
    /// sk_lookup: not TCP.
    LookupNotTcp = "lookup_not_tcp",
    /// sk_lookup: the kernel refused the listener (another family or protocol than the packet's); dropped.
    LookupAssignFailed = "lookup_assign_failed",
    /// sk_lookup: a listener slot is empty; dropped.
    LookupEmptySlot = "lookup_empty_slot",
    /// getpeername: answered with the true peer.
    PeernameAnswered = "peername_answered",
    /// getpeername: not a socket of the mesh; the kernel's answer stands.
    PeernameUntouched = "peername_untouched",
    /// getsockname: answered with the true local address.
    SocknameAnswered = "sockname_answered",
    /// getsockname: the kernel's answer is true.
    SocknameUntouched = "sockname_untouched",
    /// egress: a SYN was held for the agent's answer, for the first time or again.
    SynHeld = "syn_held",
    /// egress: a SYN was dropped, but the map of held connections is full: its next retransmit tries again.
    HeldFull = "held_full",
    /// egress: the ring of events is full; the agent learns of the SYN at its next retransmit.
    HeldRingFull = "held_ring_full",
    /// sock_ops: a held connection was answered: the agent connected back.
    HeldAnswered = "held_answered",
    /// sock_ops: a held connection ended without being connected: refused, unreachable, timed out, or closed by its client.
    HeldEnded = "held_ended",
    /// connect: the socket is bound to an interface that is not the pod's own; passed.
    ConnectOtherDevice = "connect_other_device",
    /// connect: the socket could not be taken off the interface that it is bound to; refused.
    ConnectDeviceKept = "connect_device_kept",
    /// egress: a SYN of an enrolled pod that no connect hook has seen, being older than the hooks or the enrolment; dropped.
    /// ingress: the answer to one that left before the hooks were there; dropped.
    SynUnseen = "syn_unseen",
    /// egress, ingress: the same of a pod that nobody has classified yet; dropped until somebody has.
    SynUnseenHeld = "syn_unseen_held",
    /// connect and sendmsg of UDP: a rule denies the destination; refused.
    UdpDenied = "udp_denied",
    /// connect and sendmsg of UDP: the pod's rules do not fit into the kernel's table; refused.
    UdpTableFull = "udp_table_full",
    /// cgroup ingress: to an enrolled application, the rest of a handshake that had begun before its pod joined; passed.
    IngressBegun = "ingress_begun",
    /// cgroup ingress: to an application on a host's network, dialled by the agent; passed.
    IngressDialled = "ingress_dialled",
    /// sk_lookup: on a host's network, dialled by the agent.
    LookupDialled = "lookup_dialled",
    /// sk_lookup: on a host's network, to a port of nobody who is enrolled.
    LookupNotEnrolled = "lookup_not_enrolled",
}
