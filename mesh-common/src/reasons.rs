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
}
