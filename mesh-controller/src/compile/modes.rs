//! The mTLS mode of a workload: the most specific MeshConfig that speaks of a port decides.
//!
//! Widest to most specific: the whole mesh (root namespace), the root namespace with a selector, the workload's namespace,
//! the namespace with a selector. MeshConfigs of the same reach that disagree mean STRICT, and so does one that cannot be
//! decoded. Where none speaks, PERMISSIVE. The order in which MeshConfigs are read never matters.

use std::time::Duration;

use mesh_core::model::{ConnectMode, MtlsMode, MtlsModes};

use super::ROOT_NAMESPACE;
use crate::index::{Index, Labels, selects};
use crate::object::Status;
use mesh_api::crd::MeshSettings;

/// A MeshConfig that concerns a workload.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// How specific it is; larger wins.
    pub rank: u8,
    /// What it says; `None` when it could not be decoded.
    pub settings: Option<&'a MeshSettings>,
}

/// The MeshConfigs that concern a workload with these labels.
pub(super) fn configs_of<'a>(index: &'a Index, namespace: &str, labels: &Labels) -> Vec<Reach<'a>> {
    let mut found = Vec::new();
    for (name, config) in &index.configs {
        let own = &*name.namespace == namespace;
        if !own && &*name.namespace != ROOT_NAMESPACE {
            continue;
        }
        let settings = config.settings.as_ref();
        // An unknown selector could name any pod, so it counts as one that does.
        let selected = settings.is_none_or(|s| !s.selector.is_empty());
        if settings.is_some_and(|s| !selects(&s.selector, labels)) {
            continue;
        }
        found.push(Reach { rank: 2 * u8::from(own) + u8::from(selected), settings });
    }
    found
}

/// The modes that come of `configs`.
pub fn merge(configs: &[Reach<'_>]) -> MtlsModes {
    let default = of_port(configs, None);
    let ports = configs.iter().filter_map(|c| c.settings).flat_map(|s| s.ports.keys().copied());
    let by_port = ports.map(|port| (port, of_port(configs, Some(port)))).filter(|(_, mode)| *mode != default);
    MtlsModes { default, by_port: by_port.collect() }
}

/// The mode of one port, or of every port that nobody names.
fn of_port(configs: &[Reach<'_>], port: Option<u16>) -> MtlsMode {
    let said = configs.iter().filter_map(|config| {
        let mode = match config.settings {
            None => Some(MtlsMode::Strict),
            Some(settings) => port.and_then(|p| settings.ports.get(&p).copied()).or(settings.mode),
        };
        // Within a rank a tie is STRICT: the larger of `(rank, strict)` wins.
        mode.map(|mode| (config.rank, mode == MtlsMode::Strict))
    });
    match said.max() {
        Some((_, true)) => MtlsMode::Strict,
        Some((_, false)) | None => MtlsMode::Permissive,
    }
}

/// Whether the most specific MeshConfig that speaks of it lets the pod opt out; a tie means no.
pub(super) fn allows_opt_out(configs: &[Reach<'_>]) -> bool {
    let said = configs.iter().filter_map(|config| {
        let allowed = config.settings.map_or(Some(false), |s| s.allow_opt_out)?;
        Some((config.rank, !allowed))
    });
    said.max().is_some_and(|(_, refused)| !refused)
}

/// What the most specific MeshConfig that speaks of it says of a lost agent: after how long pods are let pass. A tie means
/// the longest, and so does one that cannot be decoded: never.
pub(super) fn agent_lost_after(configs: &[Reach<'_>]) -> Option<Duration> {
    let said = configs.iter().filter_map(|config| {
        let after = config.settings.map_or(Some(None), |s| s.agent_lost_after)?;
        Some((config.rank, after.unwrap_or(Duration::MAX)))
    });
    said.max().map(|(_, after)| after).filter(|after| *after != Duration::MAX)
}

/// When `connect()` returns, by the most specific MeshConfig that speaks of it; a tie means honest, which hides nothing.
pub(super) fn connect(configs: &[Reach<'_>]) -> Option<ConnectMode> {
    let said = configs.iter().filter_map(|config| {
        let mode = config.settings?.connect?;
        Some((config.rank, mode == ConnectMode::Honest))
    });
    said.max().map(|(_, honest)| if honest { ConnectMode::Honest } else { ConnectMode::Eager })
}

/// Says which MeshConfigs select nothing, and which count as STRICT because nobody knows what they say.
pub(super) fn report(index: &Index, statuses: &mut Vec<Status>) {
    for (name, config) in &index.configs {
        let Some(settings) = &config.settings else {
            let message = format!("MeshConfig {name}: what it says cannot be known, so it counts as STRICT");
            statuses.push(Status::refused(&config.origin, "CountsAsStrict", message));
            continue;
        };
        let root = &*name.namespace == ROOT_NAMESPACE;
        let reach = index.candidates().filter(|p| root || p.name.namespace == name.namespace);
        let count = reach.filter(|p| selects(&settings.selector, &p.labels)).count();
        let (reason, message) = match count {
            0 => ("SelectsNothing", format!("MeshConfig {name}: no workload is selected")),
            _ => ("Accepted", format!("MeshConfig {name}: concerns {count} workloads")),
        };
        statuses.push(Status::noted(&config.origin, reason, message));
    }
}
