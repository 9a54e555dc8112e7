//! A pod's listeners and their slots. In: the pod, and what the agent before handed over. Out: sockets that listen, in the
//! map where the kernel looks for them.

use mesh_core::model::Workload;

use super::{EnrolError, LISTENERS_PER_POD, Local, NetNs, Refusal, Sync, listen};

impl Sync {
    /// The pod's listeners, in their slots: those of the agent before, or new ones.
    pub(super) fn listeners(
        &mut self,
        workload: &Workload,
        pod: &Local,
        netns: &NetNs,
    ) -> Result<listen::Sockets, EnrolError> {
        let inherited = self.inherited.take(&workload.uid, netns.cookie);
        let in_place = inherited.is_some() && self.same_map;
        let sockets = match inherited {
            Some(listeners) => listen::Sockets::adopt(listeners).map_err(Refusal::Io)?,
            None => listen::open(netns, &workload.addresses)?,
        };
        if !in_place {
            for (slot, socket) in &sockets.inbound {
                self.maps.set_listener(pod.index * LISTENERS_PER_POD + *slot as u32, socket)?;
            }
        }
        Ok(sockets)
    }
}
