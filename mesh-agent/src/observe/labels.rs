//! The labels of the golden metrics. Cheap to make and compare: shared strings and identities, written as text only
//! when metrics are fetched.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use mesh_core::identity::SpiffeId;
use mesh_core::model::{ServiceName, Workload};
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

/// What stands for a thing that is not known.
const UNKNOWN: &str = "unknown";
/// What stands for everything beyond the cap.
const OTHER: &str = "other";

/// Which end of the connection this agent was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's.
    Source,
    /// The server's.
    Destination,
}

impl Reporter {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// One end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Party {
    /// Nobody that the mesh knows.
    #[default]
    Unknown,
    /// A proven identity, of a workload that is not known.
    Principal(SpiffeId),
    /// A workload by its top owner. `principal`: its identity was proven, or is proven by the tunnel to it.
    Workload {
        /// The top owner's name.
        owner: Arc<str>,
        /// The identity; its namespace is the workload's.
        identity: SpiffeId,
        /// Whether the identity was proven.
        proven: bool,
    },
    /// Any, beyond the cap.
    Other,
}

impl Party {
    /// The end that `workload` is.
    pub fn of(workload: &Workload, proven: bool) -> Self {
        Self::Workload {
            owner: Arc::clone(&workload.owner.name),
            identity: workload.identity.clone(),
            proven,
        }
    }

    /// The top owner's name.
    pub fn workload(&self) -> &str {
        match self {
            Self::Workload { owner, .. } => owner,
            Self::Unknown | Self::Principal(_) => UNKNOWN,
            Self::Other => OTHER,
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Workload { identity, .. } | Self::Principal(identity) => identity.namespace(),
            Self::Unknown => UNKNOWN,
            Self::Other => OTHER,
        }
    }

    /// The proven identity.
    pub fn principal(&self) -> Option<&SpiffeId> {
        match self {
            Self::Workload { identity, proven: true, .. } | Self::Principal(identity) => Some(identity),
            _ => None,
        }
    }

    fn encode(&self, prefix: &str, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, format_args!("{prefix}_workload"), format_args!("{}", self.workload()))?;
        label(encoder, format_args!("{prefix}_workload_namespace"), format_args!("{}", self.namespace()))?;
        let key = format_args!("{prefix}_principal");
        match self.principal() {
            Some(identity) => label(encoder, key, format_args!("{identity}")),
            None if *self == Self::Other => label(encoder, key, format_args!("{OTHER}")),
            None => label(encoder, key, format_args!("{UNKNOWN}")),
        }
    }
}

/// One series of the golden metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Which end this agent was.
    pub reporter: Reporter,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The service that was dialled.
    pub service: Option<ServiceName>,
    /// `mutual_tls` or `none`.
    pub security_policy: &'static str,
    /// See [`super::Outcome::flags`].
    pub response_flags: &'static str,
}

impl Labels {
    /// The bucket for what is beyond the cap.
    pub fn other(&self) -> Self {
        Self {
            source: Party::Other,
            destination: Party::Other,
            service: None,
            response_flags: OTHER,
            ..self.clone()
        }
    }
}

/// [`Labels`], shared by the metrics of one series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SharedLabels(pub(super) Arc<Labels>);

impl EncodeLabelSet for SharedLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let Labels { reporter, source, destination, service, security_policy, response_flags } = &*self.0;
        label(encoder, format_args!("reporter"), format_args!("{}", reporter.as_str()))?;
        source.encode("source", encoder)?;
        destination.encode("destination", encoder)?;
        let key = format_args!("destination_service");
        match service {
            Some(name) => label(encoder, key, format_args!("{name}"))?,
            None if *destination == Party::Other => label(encoder, key, format_args!("{OTHER}"))?,
            None => label(encoder, key, format_args!("{UNKNOWN}"))?,
        }
        label(encoder, format_args!("connection_security_policy"), format_args!("{security_policy}"))?;
        label(encoder, format_args!("response_flags"), format_args!("{response_flags}"))
    }
}

fn label(
    encoder: &mut LabelSetEncoder<'_>,
    key: fmt::Arguments<'_>,
    value: fmt::Arguments<'_>,
) -> fmt::Result {
    let mut label = encoder.encode_label();
    let mut name = label.encode_label_key()?;
    name.write_fmt(key)?;
    let mut text = name.encode_label_value()?;
    text.write_fmt(value)?;
    text.finish()
}
